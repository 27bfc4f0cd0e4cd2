"""`docs/openapi.json`: the API as it describes itself, for clients that are made from it and for reviews of changes."""

import json
import tempfile
from pathlib import Path

from sprat_server.app import create_app
from sprat_server.settings import Settings


def openapi_page() -> str:
    """Return the description, indented, keys in the order of the code. No database is opened."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(database_url="postgresql://nobody@localhost/nothing", data_dir=Path(folder))
        return json.dumps(create_app(settings).openapi(), indent=1, ensure_ascii=False) + "\n"
