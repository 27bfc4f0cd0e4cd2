"""What `benchmarks/update_size.py` runs: cases, the methods that are compared, their points, table and plot."""
