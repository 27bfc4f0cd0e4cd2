"""The Python call for applications on the device: ask the agent that runs on a folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np

from sprat_client.agent.http_endpoint import RELEASE_HEADER, SAFETENSORS
from sprat_client.agent.serve import Answer
from sprat_client.agent.site.peer_headers import ANSWER, DEADLINE, TRACE
from sprat_client.agent.site.task_answer import TaskAnswer
from sprat_client.runtime.ports import Array
from sprat_client.runtime.tensor_bodies import decode_tensors, encode_tensors
from sprat_shared.errors import InvalidInput, NotFound, TryLater


class Endpoint:
    """Asks a running agent over loopback. Example: `Endpoint("/var/lib/sprat").infer("pcb-defects", image)`.

    Args:
        folder: the agent's folder.
        timeout_s: of one request.

    Raises:
        NotFound: no agent runs on the folder.
    """

    def __init__(self, folder: Path | str, *, timeout_s: float = 60.0) -> None:
        path = Path(folder) / "endpoint.json"
        try:
            url = json.loads(path.read_bytes())["url"]
        except (OSError, ValueError, KeyError, TypeError):
            raise NotFound(f"{path}: no agent runs on this folder; start `sprat-agent run --dir {folder}`") from None
        self._client = httpx.Client(base_url=url, timeout=timeout_s, trust_env=False)

    def infer(self, model: str, inputs: Array | Mapping[str, Array]) -> Answer:
        """Ask a model.

        Args:
            model: its name.
            inputs: (batch, ...) array, or arrays by input name.

        Raises:
            InvalidInput: the inputs do not fit.
            NotFound: the model is not served.
            TryLater: the agent is gone, or the model failed.
        """
        arrays = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
        response = self._ask(
            "POST", f"/v1/models/{model}/infer", content=encode_tensors(arrays), headers={"Content-Type": SAFETENSORS}
        )
        return Answer(release=int(response.headers[RELEASE_HEADER]), outputs=decode_tensors(response.content))

    def infer_task(
        self, task: str, inputs: Mapping[str, Array], *, deadline_s: float | None = None, trace: str | None = None
    ) -> TaskAnswer:
        """Ask a task of the site.

        Args:
            task: its name.
            inputs: arrays by the names of its inputs.
            deadline_s: of this request; the plan's where that is shorter, or none is said.
            trace: `traceparent` header of the caller's trace, which goes along to each device.

        Raises:
            InvalidInput: the inputs do not fit.
            NotFound: the task is not served.
            TryLater: the agent is gone, or the task was not answered in time; the code says why.
        """
        headers = {"Content-Type": SAFETENSORS}
        if deadline_s is not None:
            headers[DEADLINE] = str(max(1, round(1000 * deadline_s)))
        if trace is not None:
            headers[TRACE] = trace
        response = self._ask("POST", f"/v2/tasks/{task}/infer", content=encode_tensors(inputs), headers=headers)
        return TaskAnswer.of(json.loads(response.headers[ANSWER]), decode_tensors(response.content))

    def tasks(self) -> list[dict[str, Any]]:
        """Return the tasks that can be asked for, and what each takes."""
        items: list[dict[str, Any]] = self._ask("GET", "/v2/tasks").json()["items"]
        return items

    def report_error(self, model: str, text: str, *, release: int | None = None) -> int:
        """Say that an answer was wrong. A release on trial that gives rise to too many of these is taken back.

        Args:
            model: its name.
            text: what was wrong, 1 to 500 characters, for logs and the report; no samples.
            release: `Answer.release`; the release that serves when left out.

        Returns:
            The release that it counts against.

        Raises:
            InvalidInput: the text is empty or too long.
            NotFound: the model is not served.
            TryLater: the agent is gone, or there are too many of these.
        """
        said = self._ask("POST", f"/v1/models/{model}/errors", json={"text": text, "release": release}).json()
        return int(said["release"])

    def add_labelled(self, model: str, inputs: Array, labels: Array | Sequence[int]) -> int:
        """Add labelled samples to those that new releases must not do worse on; they never leave the device.

        Args:
            model: its name.
            inputs: (n, ...), as the model takes them.
            labels: (n,) whole numbers from 0.

        Returns:
            How many samples are kept now: the newest of each class, within the agent's bounds.

        Raises:
            InvalidInput: they do not fit the model or each other.
            NotFound: the model is not served.
            TryLater: the agent is gone, or there are too many of these.
        """
        content = encode_tensors({"inputs": np.asarray(inputs), "labels": np.asarray(labels)})
        headers = {"Content-Type": SAFETENSORS}
        return int(self._ask("POST", f"/v1/models/{model}/samples", content=content, headers=headers).json()["kept"])

    def describe(self, model: str, *, verify: bool = False) -> dict[str, Any]:
        """Return what serves; with `verify` also `digest` and `digest_matches`, recomputed from the mapped files."""
        said: dict[str, Any] = self._ask("GET", f"/v1/models/{model}", params={"verify": int(verify)}).json()
        return said

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, **more)
        except httpx.HTTPError as bad:
            raise TryLater(f"{path}: the agent does not answer ({type(bad).__name__})") from bad
        if response.is_success:
            return response
        said = response.json() if "json" in response.headers.get("content-type", "") else {}
        detail, code = said.get("detail", f"{path}: status {response.status_code}"), said.get("code")
        if response.status_code == httpx.codes.NOT_FOUND:
            raise NotFound(detail, code=code)
        if response.is_client_error and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            raise InvalidInput(detail, code=code)
        raise TryLater(detail, code=code)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, bad: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
