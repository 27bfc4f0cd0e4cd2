"""Simulated rollouts, the gate over many of them at once, and what others use in its place."""
