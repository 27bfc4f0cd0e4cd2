"""Training in the worker: recipes, full retrain as teacher, factors on their integer grid, search, ONNX export."""
