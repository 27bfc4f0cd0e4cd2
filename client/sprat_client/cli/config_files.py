"""Small files that people write: YAML, and JSON, which is a part of it."""

from pathlib import Path
from typing import Any, Final

from sprat_shared.errors import InvalidInput

_MOST_BYTES: Final = 1 << 20


def read_mapping(option: str, file: Path) -> dict[str, Any]:
    """Read a file that holds one object.

    Args:
        option: by which it was named, for messages.
        file: to be read.

    Raises:
        InvalidInput: it cannot be read, is no YAML, or holds something else.
    """
    import yaml  # noqa: PLC0415 - only commands that read files need it

    try:
        text = file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{option} {file}: {error.strerror}") from None
    if len(text) > _MOST_BYTES:
        raise InvalidInput(f"{option} {file}: {len(text)} bytes are more than {_MOST_BYTES}")
    try:
        said = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise InvalidInput(f"{option} {file} is neither YAML nor JSON ({' '.join(str(error).split())})") from None
    if not isinstance(said, dict) or not all(isinstance(name, str) for name in said):
        raise InvalidInput(f"{option} {file} must hold an object: names, and what stands for each")
    return said
