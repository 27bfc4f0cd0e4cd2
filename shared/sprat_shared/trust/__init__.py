"""What the signed metadata say about a target, typed: one view for the server that signs and the device that checks."""
