"""The server of sprat: retrains, compresses, signs, publishes and rolls out."""
