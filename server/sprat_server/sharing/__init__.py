"""Sharing layers between models without retraining: measured by similarity, decided and certified by agreement."""
