"""What runs outside the server: the command of operators, and the agent of a device."""
