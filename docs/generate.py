"""Write the pages of the docs that come out of the code: `docs/errors.md`, `docs/cli.md` and `docs/openapi.json`.

python docs/generate.py           write them
python docs/generate.py --check   exit 1 and say which are out of date
"""

import argparse
import sys
from pathlib import Path

from commands_page import commands_page
from errors_page import errors_page
from openapi_page import openapi_page

DOCS = Path(__file__).resolve().parent
PAGES = {"errors.md": errors_page, "cli.md": commands_page, "openapi.json": openapi_page}


def main() -> int:
    """Write or check the pages; the exit code is 1 when a checked page is out of date."""
    parser = argparse.ArgumentParser(description="Write the pages of the docs that come out of the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a page is out of date")
    check = parser.parse_args().check
    stale = []
    for name, page in PAGES.items():
        file, text = DOCS / name, page()
        if file.exists() and file.read_text() == text:
            continue
        if check:
            stale.append(name)
        else:
            file.write_text(text)
            print(f"wrote docs/{name}")
    if stale:
        print(f"out of date: {', '.join(f'docs/{name}' for name in stale)}; run `make docs`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
