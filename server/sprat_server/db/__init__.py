"""PostgreSQL and the blobs: connections, transactions, migrations, the embedded server, content-addressed storage."""
