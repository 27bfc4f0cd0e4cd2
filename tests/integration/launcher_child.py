"""Starts the embedded PostgreSQL of a folder, says its pid and URL on one line, and waits to be killed or told."""

import json
import sys
from pathlib import Path

from sprat_server.db.embedded import EmbeddedPostgres
from sprat_server.observe import logs

logs.configure(log_format="json", log_level="info")
with EmbeddedPostgres(Path(sys.argv[1])) as server:
    print(json.dumps({"pid": server.pid, "url": server.url}), flush=True)  # noqa: T201 - read by the test
    for line in sys.stdin:
        if line == "restart\n":
            server.restart()
            print(json.dumps({"pid": server.pid, "url": server.url}), flush=True)  # noqa: T201 - read by the test
