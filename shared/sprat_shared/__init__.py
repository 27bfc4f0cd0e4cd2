"""What server and device must agree on: bytes, arithmetic, names, messages. It touches only files it is given."""
