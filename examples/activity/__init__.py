"""A model of one's own: activities from a phone's accelerometer and gyroscope, and phones that sit differently now."""
