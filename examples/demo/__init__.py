"""The demo: one update goes the whole way, between real processes on this machine (`python -m demo`)."""
