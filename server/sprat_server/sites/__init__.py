"""Sites: the devices that run tasks together, what is asked of them, and the plans by which they do."""
