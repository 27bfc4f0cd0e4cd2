"""`python -m sprat_server.cli` is `sprat-server`."""

from sprat_server.cli import main

main()
