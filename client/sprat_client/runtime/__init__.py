"""Runtimes that answer with a model: the port, and the onnxruntime host behind it."""
