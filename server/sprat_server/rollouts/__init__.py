"""Rollouts: bring devices to a release wave by wave, and stop at the first harm."""
