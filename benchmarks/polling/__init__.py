"""Parts of `benchmarks/poll_bytes.py`."""
