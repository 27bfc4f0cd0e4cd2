"""The devices: how they join, which release each should run, what each reports."""
