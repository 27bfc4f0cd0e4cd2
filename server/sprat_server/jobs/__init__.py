"""Work that takes longer than a request: queued in the transaction that asks for it, done by a worker."""
