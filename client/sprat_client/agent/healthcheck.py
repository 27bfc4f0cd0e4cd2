"""`python -m sprat_client.agent.healthcheck [DIR]`: for containers: ends with 0 where the agent answers."""

import json
import sys
import urllib.request
from pathlib import Path

_TIMEOUT_S = 3.0


def main(arguments: list[str]) -> int:
    """Ask the endpoint that the folder names; return the exit code."""
    folder = Path(arguments[0] if arguments else "/var/lib/sprat-agent")
    try:
        url = json.loads((folder / "endpoint.json").read_bytes())["url"]
        with urllib.request.urlopen(f"{url}/healthz", timeout=_TIMEOUT_S) as answer:  # noqa: S310 - a loopback address that the agent wrote
            return 0 if answer.status == 200 else 1  # noqa: PLR2004 - OK
    except (OSError, ValueError, KeyError) as bad:
        sys.stderr.write(f"{folder}: {bad}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
