"""Bytes: tensor tables and their digest, safetensors files, the integer coder, update files (docs/wire-format.md)."""
