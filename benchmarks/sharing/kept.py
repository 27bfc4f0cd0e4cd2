"""What was measured, a file of the repository for each zoo and seed: an interrupted run goes on."""

import json
from pathlib import Path
from typing import Any


class Kept:
    """Measured facts by key, appended as they come, under the digest of the code that made them.

    Args:
        path: of the file; it need not be there.
        code: digest; facts that other code made are not looked at.
    """

    def __init__(self, path: Path, code: str) -> None:
        self._path, self._code = path, code
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        facts = [json.loads(line) for line in lines if line.endswith("}")]
        self._facts = {fact["key"]: fact["value"] for fact in facts if fact["code"] == code}
        if len(self._facts) != len(lines):  # of other code, or a line that was cut off
            path.write_text("".join(self._line(*fact) for fact in self._facts.items()), encoding="utf-8")

    def get(self, key: str) -> Any:
        """Return a fact, None where it is not known yet."""
        return self._facts.get(key)

    def put(self, key: str, value: Any) -> Any:
        """Write a fact down, and return it."""
        self._facts[key] = value
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._line(key, value))
        return value

    def _line(self, key: str, value: Any) -> str:
        return json.dumps({"code": self._code, "key": key, "value": value}) + "\n"
