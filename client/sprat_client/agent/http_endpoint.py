"""The loopback HTTP endpoint of an agent: a bare ASGI application under uvicorn, in a thread of its own.

    POST /v1/models/<model>/infer     {"inputs": [...]} or {"inputs": {"name": [...]}}, or a safetensors body
    GET  /v1/models                   what serves
    GET  /v1/models/<model>           the release that serves; ?verify=1 recomputes its digest from the mapped files
    GET  /healthz                     200 while the agent lives
A safetensors body (Content-Type: application/vnd.safetensors) is answered in kind. Errors are problem+json (RFC 9457).
"""

import asyncio
import json
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs

import numpy as np

from sprat_client.agent.serve import Answer, Serving, Servings
from sprat_client.runtime.ports import Array
from sprat_shared.errors import InvalidInput, NotFound, SpratError
from sprat_shared.wire.safetensors import SafetensorsFile, safetensors_header
from sprat_shared.wire.tensors import DTYPES, TensorSpec, TensorTable, raw_bytes

SAFETENSORS: Final = "application/vnd.safetensors"
RELEASE_HEADER: Final = "Sprat-Release"
_MAX_BODY_BYTES: Final = 256 << 20
_START_TIMEOUT_S: Final = 10.0
_NUMPY: Final[Mapping[str, str]] = {  # numpy dtype to safetensors code
    TensorSpec("x", code, ()).storage.str: code for code in DTYPES if code not in {"BF16", "F8_E4M3", "F8_E5M2"}
}
_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})

_Scope: TypeAlias = Mapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
_Send: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[None]]


def decode_tensors(body: bytes) -> dict[str, Array]:
    """Read a safetensors body.

    Raises:
        InvalidInput: it is not one.
    """
    descriptor = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(body)
        with SafetensorsFile(Path(f"/proc/self/fd/{descriptor}")) as tensors:
            return {spec.name: np.array(tensors.read(index)) for index, spec in enumerate(tensors.table)}
    finally:
        os.close(descriptor)


def encode_tensors(arrays: Mapping[str, Array]) -> bytes:
    """Return a safetensors body."""
    table = TensorTable(TensorSpec(name, _NUMPY[array.dtype.str], array.shape) for name, array in arrays.items())
    return b"".join([safetensors_header(table), *(bytes(raw_bytes(arrays[spec.name])) for spec in table)])


class _Application:
    """The ASGI application. Models answer in a worker thread, one at a time: one thread per runtime."""

    def __init__(self, servings: Servings) -> None:
        self._servings = servings
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="infer")

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            return
        try:
            status, kind, body, extra = await self._route(scope, receive)
        except SpratError as bad:
            status, kind, body, extra = _problem(bad)
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *extra]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _route(self, scope: _Scope, receive: _Receive) -> "_Reply":
        _check_host(scope)
        match (scope["method"], scope["path"].strip("/").split("/")):
            case "GET", ["healthz"]:
                return _json({"status": "ok", "models": self._servings.names()})
            case "GET", ["v1", "models"]:
                return _json({"items": [_describe(self._servings.of(name)) for name in self._servings.names()]})
            case "GET", ["v1", "models", model]:
                serving = self._servings.of(model)
                verify = parse_qs(scope["query_string"].decode("ascii", "replace")).get("verify", ["0"])[-1] == "1"
                digest = await asyncio.to_thread(serving.digest) if verify else None
                return _json(_describe(serving, digest))
            case "POST", ["v1", "models", model, "infer"]:
                return await self._infer(model, scope, receive)
            case _, _:
                raise NotFound(f"{scope['method']} {scope['path']}: no such route; see GET /v1/models")

    async def _infer(self, model: str, scope: _Scope, receive: _Receive) -> "_Reply":
        kind = dict(scope["headers"]).get(b"content-type", b"application/json").partition(b";")[0].strip().decode()
        body = await _read_body(receive)
        inputs: Array | Mapping[str, Array]
        if kind == SAFETENSORS:
            inputs = decode_tensors(body)
            inputs = inputs["inputs"] if set(inputs) == {"inputs"} else inputs
        elif kind == "application/json":
            inputs = _json_inputs(body)
        else:
            raise InvalidInput(f"Content-Type {kind!r}: send application/json or {SAFETENSORS}")
        answer = await self._in_worker(lambda: self._servings.of(model).answer(inputs))
        release = [(RELEASE_HEADER.lower().encode(), str(answer.release).encode())]
        if kind == SAFETENSORS:
            return HTTPStatus.OK, SAFETENSORS.encode(), encode_tensors(answer.outputs), release
        return _json(_listed(model, answer), release)

    async def _in_worker(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def close(self) -> None:
        """Wait for the answer under way."""
        self._worker.shutdown()


_Reply: TypeAlias = tuple[int, bytes, bytes, list[tuple[bytes, bytes]]]


def _check_host(scope: _Scope) -> None:
    """Refuse names that a web page could point at this machine."""
    host = dict(scope["headers"]).get(b"host", b"localhost").decode("latin-1")
    if host.rpartition(":")[0] not in _HOSTS and host not in _HOSTS:
        raise InvalidInput(f"Host {host[:100]!r}: this endpoint answers on localhost only")


async def _read_body(receive: _Receive) -> bytes:
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidInput("the request was cut")
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > _MAX_BODY_BYTES:
            raise InvalidInput(f"a request may take {_MAX_BODY_BYTES} bytes")
        if not message.get("more_body"):
            return b"".join(pieces)


def _json_inputs(body: bytes) -> Array | dict[str, Array]:
    try:
        inputs = json.loads(body)["inputs"]
        if isinstance(inputs, dict):
            return {name: np.asarray(values) for name, values in inputs.items()}
        return np.asarray(inputs)
    except (ValueError, TypeError, KeyError, RecursionError) as bad:
        raise InvalidInput(f'the body must be {{"inputs": [...]}} with equally long rows ({bad!r:.100})') from None


def _listed(model: str, answer: Answer) -> dict[str, Any]:
    outputs = {name: output.tolist() for name, output in answer.outputs.items()}
    return {"model": model, "release": answer.release, "outputs": outputs}


def _describe(serving: Serving, digest: str | None = None) -> dict[str, Any]:
    """Return what serves, with the digest recomputed where it was asked for."""
    said: dict[str, Any] = {
        "model": serving.manifest.model,
        "release": serving.slot.release,
        "release_id": serving.slot.release_id,
        "weights": serving.slot.weights,
        "on_trial": serving.fallback is not None,
        "answered": serving.answered,
        "failed": serving.failed,
        "inputs": [
            {"name": spec.name, "dtype": str(spec.dtype), "shape": list(spec.shape)} for spec in serving.host.inputs
        ],
        "outputs": [
            {"name": spec.name, "dtype": str(spec.dtype), "shape": list(spec.shape)} for spec in serving.host.outputs
        ],
    }
    if digest is not None:
        said |= {"digest": digest, "digest_matches": digest == serving.slot.weights}
    return said


def _json(value: Any, extra: list[tuple[bytes, bytes]] | None = None) -> _Reply:
    return HTTPStatus.OK, b"application/json", json.dumps(value).encode(), extra or []


def _problem(bad: SpratError) -> _Reply:
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    if isinstance(bad, InvalidInput):
        status = HTTPStatus.BAD_REQUEST
    elif isinstance(bad, NotFound):
        status = HTTPStatus.NOT_FOUND
    said = {
        "type": f"about:blank#{bad.code}",
        "title": status.phrase,
        "status": status,
        "detail": str(bad),
        "code": bad.code,
    }
    return status, b"application/problem+json", json.dumps(said).encode(), []


class HttpEndpoint:
    """Runs the application on 127.0.0.1.

    Args:
        servings: what answers.
        port: 0: any free one.
    """

    def __init__(self, servings: Servings, port: int) -> None:
        self._application, self._port = _Application(servings), port
        self.url = ""

    def start(self) -> str:
        """Listen; return the URL.

        Raises:
            InvalidInput: the port is taken.
        """
        import uvicorn  # noqa: PLC0415  # 60 ms that commands which do not serve need not pay

        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", self._port))
            listener.listen()  # whoever reads the address now waits in the queue and is not refused
        except OSError as bad:
            listener.close()
            raise InvalidInput(f"--port {self._port}: {bad.strerror}; choose another, or 0 for any free one") from bad
        config = uvicorn.Config(
            self._application,
            lifespan="off",
            log_config=None,
            access_log=False,
            ws="none",
            interface="asgi3",
            loop="asyncio",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="endpoint", daemon=True
        )
        self._thread.start()
        self._listener = listener
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        return self.url

    def stop(self) -> None:
        """Answer what is under way, then stop listening."""
        if not self.url:
            return
        self._server.should_exit = True
        self._thread.join(_START_TIMEOUT_S)
        self._application.close()
        self._listener.close()
