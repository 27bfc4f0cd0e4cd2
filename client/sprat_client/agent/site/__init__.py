"""Running the tasks of a site together with its other devices, by the plan that the director signed (docs/site.md)."""
