"""Strict reading of a JSON object: each field by name and type, an error that says which field is wrong and why."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sprat_shared.errors import InvalidInput
from sprat_shared.ids import check_model_name, parse_digest


def canonical_json(value: Any) -> bytes:
    """Return the one JSON form that is signed and hashed: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


class Fields:
    """A JSON object that is read field by field. Unknown fields are ignored: a newer peer may send more.

    Args:
        value: the parsed object.
        where: what the object is, for messages.

    Raises:
        InvalidInput: from every method, when the field is missing or of another type or range.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise InvalidInput(f"{where}: expected a JSON object, got {type(value).__name__}")
        self._value, self._where = value, where

    @classmethod
    def parse(cls, body: bytes, where: str) -> "Fields":
        """Read JSON bytes."""
        try:
            value = json.loads(body)
            again = json.dumps(value, ensure_ascii=False)
            again.encode()
        except (UnicodeError, json.JSONDecodeError, RecursionError) as bad:
            raise InvalidInput(f"{where}: not JSON ({bad})") from None
        if "\\u0000" in again:
            raise InvalidInput(f"{where}: a text holds a NUL character, which no database takes")
        return cls(value, where)

    def _get(self, name: str, kind: type | tuple[type, ...], said: str) -> Any:
        value = self._value.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InvalidInput(f"{self._where}: field {name!r} must be {said}, got {value!r:.80}")
        return value

    def has(self, name: str) -> bool:
        """Return whether the field is there and not null."""
        return self._value.get(name) is not None

    def text(self, name: str, *, max_length: int = 4096) -> str:
        """Return a text field."""
        value: str = self._get(name, str, "text")
        if len(value) > max_length:
            raise InvalidInput(f"{self._where}: field {name!r} is longer than {max_length} characters")
        return value

    def integer(self, name: str, *, minimum: int = 0, maximum: int = 2**53) -> int:
        """Return an integer field."""
        value: int = self._get(name, int, "an integer")
        if not minimum <= value <= maximum:
            raise InvalidInput(f"{self._where}: field {name!r} must be {minimum} to {maximum}, got {value}")
        return value

    def number(self, name: str) -> float:
        """Return a number field as float."""
        value: int | float = self._get(name, (int, float), "a number")
        try:
            return float(value)
        except OverflowError:
            raise InvalidInput(f"{self._where}: field {name!r} is larger than any number here") from None

    def flag(self, name: str) -> bool:
        """Return a true/false field."""
        value: bool = self._get(name, bool, "true or false")
        return value

    def uuid(self, name: str) -> UUID:
        """Return a field that is the text of a UUID."""
        text = self.text(name)
        try:
            return UUID(text)
        except ValueError:
            raise InvalidInput(f"{self._where}: field {name!r} is not a UUID: {text!r:.80}") from None

    def digest(self, name: str) -> str:
        """Return a digest field, `sha256:<64 hex>`."""
        value = self.text(name)
        try:
            parse_digest(value)
        except InvalidInput as bad:
            raise InvalidInput(f"{self._where}: field {name!r}: {bad}") from None
        return value

    def model(self, name: str) -> str:
        """Return a model name field."""
        return check_model_name(self.text(name))

    def list_of(self, name: str) -> list[Any]:
        """Return a list field."""
        value: list[Any] = self._get(name, list, "a list")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object field as it is."""
        value: dict[str, Any] = self._get(name, dict, "an object")
        return value
