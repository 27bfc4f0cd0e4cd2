"""What `benchmarks/layer_sharing.py` runs: zoos of models, all splices of two of them measured, rules, a table."""
