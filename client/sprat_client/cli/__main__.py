"""`python -m sprat_client.cli` is `sprat`."""

from sprat_client.cli import main

main()
