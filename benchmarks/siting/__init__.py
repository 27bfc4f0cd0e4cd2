"""The site that `benchmarks/site.py` measures: pretrained encoders, heads trained on real data, devices and links."""
