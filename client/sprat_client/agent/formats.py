"""Which formats of the agent's own files this agent reads: each file says its format, and a newer one is left alone.

Older formats are read; a file that says none is of format 1. An agent that is too old for a folder must not take for
damage what it cannot read, and throw it away.
"""

from pathlib import Path
from typing import Any, Final

from sprat_shared.errors import SpratError
from sprat_shared.protocol.fields import Fields

FORMAT: Final = "format"


class NewerFormat(SpratError):
    """A newer agent wrote this file; nothing in the folder was changed."""

    code = "agent.newer-format"
    exit_code = 78


def check_format(value: Any, path: Path, newest: int) -> int:
    """Return the format of a file's JSON object.

    Raises:
        NewerFormat: it is newer than `newest`.
        InvalidInput: it is not an object, or its format is not a number.
    """
    fields = Fields(value, str(path))
    found = fields.integer(FORMAT, minimum=1) if fields.has(FORMAT) else 1
    if found > newest:
        raise NewerFormat(f"{path}: format {found}; this agent reads up to {newest}: install a newer agent")
    return found
