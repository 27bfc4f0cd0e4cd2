"""One device of the demo: its folder, its agent process, and the questions that a local application asks it."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import httpx
import numpy as np
import numpy.typing as npt

from demo.processes import ProcessFailed, Program, environment, program

_READY_S: Final = 30.0
_BATCH: Final = 50


class Device:
    """An agent on a folder. Enrol it, then use it as a context manager: it runs until the block ends.

    Args:
        name: what people call it.
        folder: its folder; made at enrolment.
        server_url: where it reaches the server: directly, or over a bad link.
        options: further options of `sprat-agent run`, such as its holdout.
        link: its link, in words.
    """

    def __init__(self, name: str, folder: Path, server_url: str, *, options: tuple[str, ...], link: str) -> None:
        self.name, self.folder, self.server_url, self.link = name, folder, server_url, link
        command = [program("sprat-agent"), "run", "--dir", str(folder), *options]
        log = folder.with_suffix(".log")
        self.process = Program(name, command, log=log, env=environment())
        self._http = httpx.Client(trust_env=False, timeout=60.0)

    def __enter__(self) -> Self:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()
        self._http.close()

    def enrol(self, token: str) -> None:
        """Join the fleet.

        Raises:
            ProcessFailed: the server, or the link to it, does not let it in.
        """
        words = ["enrol", "--server", self.server_url, "--token", token, "--dir", str(self.folder), "--name", self.name]
        ended = subprocess.run(
            [program("sprat-agent"), *words], env=environment(), capture_output=True, text=True, check=False
        )
        if ended.returncode != 0:
            raise ProcessFailed(f"{self.name} could not enrol:\n{ended.stderr.strip()}")

    @property
    def endpoint(self) -> str:
        """Where local applications reach its models; waits until the agent says so."""

        def look() -> str | None:
            try:
                said = json.loads((self.folder / "endpoint.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return None
            return str(said["url"]) if said["pid"] == self.process.pid else None

        return self.process.until(look, "a loopback endpoint", _READY_S)

    def serves(self, model: str, *, verify: bool = False) -> Mapping[str, Any] | None:
        """Return what it serves of a model (None: nothing yet); `verify` recomputes the digest from mapped files."""
        answer = self._http.get(f"{self.endpoint}/v1/models/{model}", params={"verify": "1"} if verify else {})
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        answer.raise_for_status()
        said: Mapping[str, Any] = answer.json()
        return said

    def wait_for(self, model: str, release: int, timeout_s: float) -> Mapping[str, Any]:
        """Return what it serves once that is `model@release`, committed.

        Raises:
            ProcessFailed: it does not come to that in time.
        """

        def look() -> Mapping[str, Any] | None:
            said = self.serves(model)
            return said if said is not None and said["release"] == release and not said["on_trial"] else None

        return self.process.until(look, f"serving {model}@{release}", timeout_s)

    def infer(self, model: str, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the model's first output for `inputs` (n, ...), asked over its loopback endpoint."""
        url = f"{self.endpoint}/v1/models/{model}/infer"
        rows: list[Any] = []
        for start in range(0, len(inputs), _BATCH):
            answer = self._http.post(url, json={"inputs": inputs[start : start + _BATCH].tolist()})
            if answer.is_error:
                raise ProcessFailed(f"{self.name}: {answer.text}")
            rows += next(iter(answer.json()["outputs"].values()))
        return np.asarray(rows)

    def accuracy(self, model: str, inputs: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
        """Return the share of samples whose largest output is the label's."""
        return float((self.infer(model, inputs).argmax(1) == labels).mean())
