"""The site that `benchmarks/sites.py` measures: pretrained encoders, heads trained on real data, devices and links."""
