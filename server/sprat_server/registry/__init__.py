"""What exists: models, their graphs and numbered releases, the updates between them, the datasets."""
