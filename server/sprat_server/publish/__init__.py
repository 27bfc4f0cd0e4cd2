"""The image repository: signed TUF metadata in PostgreSQL, and the keys that sign them."""
