"""Sites to place on, and the rules that the placement is measured beside."""
