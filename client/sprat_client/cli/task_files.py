"""Tasks of sites as files: one or several by name, read into what the API takes; errors are said with their lines.

find:
inputs: {image: "float32[n, 3, 224, 224]", words: "int64[n, 64]"}
steps:
see: {model: vision, inputs: {image: image}}
judge: {model: find-head, inputs: {image: see.features, words: words}}
outputs: {score: judge.score}
deadline_s: 0.5
fallback: {steps: {alone: {model: small, inputs: {image: image, words: words}}}, outputs: {score: alone.score}}
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sprat_client.cli.documents import Reading, read_documents
from sprat_shared.errors import InvalidInput, SpratError

CODE: Final = "task.bad-file"
_PARTS: Final = ("inputs", "steps", "outputs")
_EDGE: Final = re.compile(r"edge (?:\S+ -> |to )([^\s:]+):")
_STEP: Final = re.compile(r"step ([^\s:]+):(?: input (\S+))?")


@dataclass(frozen=True, slots=True)
class TaskFile:
    """The tasks of a file.

    Attributes:
        tasks: the bodies of the API, by name.
        reading: where each value stands.
    """

    tasks: dict[str, dict[str, Any]]
    reading: Reading

    def located(self, task: str, bad: SpratError) -> str:
        """Return an error of the server with the line that it is about, as far as it says what that is."""
        text = re.sub(rf"^(?:[a-z-]+ failed: )?(?:task {re.escape(task)}: )?(?:body\.)?", "", str(bad))
        part, said = (".fallback", text.removeprefix("fallback: ")) if text.startswith("fallback: ") else ("", text)
        path = f"{task}{part}"
        if (edge := _EDGE.match(said)) is not None:
            step, _, port = edge[1].partition(".")
            path += f".steps.{step}.inputs.{port}" if port else f".outputs.{step}"
        elif (found := _STEP.match(said)) is not None:
            path += f".steps.{found[1]}" + (f".inputs.{found[2]}" if found[2] else "")
        else:
            path += "." + re.split(r"[: ]", said, maxsplit=1)[0]
        return f"{self.reading.source}:{self.reading.line(path, self.reading.line(task, 1))}: {text}"


def read_tasks(file: Path) -> TaskFile:
    """Read tasks.

    Raises:
        InvalidInput: the file cannot be read, or holds no tasks; all problems are named, each with its line.
    """
    readings = read_documents(file, code=CODE, what="task")
    reading = readings[0]
    if len(readings) > 1:
        raise InvalidInput(f"{file}: {len(readings)} documents; write the tasks of one, by name", code=CODE)
    if not isinstance(reading.said, dict):
        reading.bad("", "tasks are a mapping of names")
        reading.require_good()
    tasks = {}
    for name, said in reading.said.items():
        if not isinstance(said, dict):
            reading.bad(name, f"expected a mapping, got {said!r:.60}")
            continue
        for part in _PARTS:
            if not isinstance(said.get(part), dict) or not said[part]:
                reading.bad(f"{name}.{part}" if part in said else name, f"a task needs {part}, by name")
        tasks[name] = {"name": name, **said}
    reading.require_good()
    return TaskFile(tasks, reading)
