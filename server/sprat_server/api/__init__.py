"""HTTP for operators and devices."""
