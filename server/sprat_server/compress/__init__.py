"""Update files from trained records or finished weights, and the exact weights that decoding them gives."""
