"""The loopback HTTP endpoint of an agent: a bare ASGI application under uvicorn, in a thread of its own.

    POST /v1/models/<model>/infer     {"inputs": [...]} or {"inputs": {"name": [...]}}, or a safetensors body
    POST /v1/models/<model>/errors    {"text": "...", "release": 3}: an answer was wrong; the release may be left out
    POST /v1/models/<model>/samples   {"inputs": [...], "labels": [...]}, or a safetensors body
    GET  /v1/models                   what serves
    GET  /v1/models/<model>           the release that serves; ?verify=1 recomputes its digest from the mapped files
    GET  /v2/tasks                    the tasks of the site that can be asked for
    POST /v2/tasks/<task>/infer       a task: KServe's JSON (V2), or a safetensors body; Sprat-Deadline-Ms
    POST /v2/models/<model>/infer     a model, likewise; GET /v2/models/<model>, /v2/health/live, /v2/health/ready
    GET  /healthz                     what is wrong; 503 where a model or a task that should serve does not
    GET  /metrics                     Prometheus text
A safetensors body (Content-Type: application/vnd.safetensors) is answered in kind. Errors are problem+json (RFC 9457).
Any process of the device may call these, so bodies and rates of what is kept are bounded.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import parse_qs

from sprat_client.agent.applications import Applications, Rate, TooMany
from sprat_client.agent.metrics import CONTENT_TYPE
from sprat_client.agent.site.failures import Busy, status_of
from sprat_client.agent.site.peer_headers import (
    ANSWER,
    DEADLINE,
    LARGEST_DEADLINE_MS,
    REQUEST,
    TRACE,
    request_or_none,
    trace_or_none,
)
from sprat_client.agent.version import VERSION
from sprat_shared.errors import InvalidInput, NotFound, SpratError

if TYPE_CHECKING:
    from sprat_client.agent.serve import Serving

SAFETENSORS: Final = "application/vnd.safetensors"
RELEASE_HEADER: Final = "Sprat-Release"
_JSON: Final = "application/json"
_MAX_BODY_BYTES: Final = 256 << 20
_MAX_SAMPLES_BYTES: Final = 64 << 20
_MAX_ERROR_BYTES: Final = 8 << 10
_ANSWER_TIMEOUT_S: Final = 60.0  # for what is under way when the agent ends
_KEEP_ALIVE_S: Final = 75  # longer than clients keep idle connections: whoever closes first must not be the server
_MOST_CONNECTIONS: Final = 256
_TASKS_AT_ONCE: Final = 64  # further ones are turned away by the router
_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})

_Scope: TypeAlias = Mapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
_Send: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[None]]


class _Application:
    """The ASGI application. Each model answers in a thread of its own, one request at a time, in the order they came.

    One thread per model: a session uses one, and requests that wait hold nothing but their bodies.
    """

    def __init__(self, applications: Applications) -> None:
        self._applications = applications
        self._workers: dict[str, ThreadPoolExecutor] = {}  # touched by the event loop's thread alone
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writes")
        self._tasks = ThreadPoolExecutor(_TASKS_AT_ONCE + 1, thread_name_prefix="tasks")
        self._errors, self._samples = Rate(20, 2.0), Rate(50, 10.0)

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

    async def _route(self, scope: _Scope, receive: _Receive) -> "_Reply":  # noqa: PLR0911  # one return for each route
        _check_host(scope)
        servings = self._applications.servings
        match (scope["method"], scope["path"].strip("/").split("/")):
            case "GET", ["healthz"]:
                well, said = await asyncio.to_thread(self._applications.health)
                return HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, _JSON.encode(), _dumped(said), []
            case "GET", ["metrics"]:
                text = await asyncio.to_thread(self._applications.metrics)
                return HTTPStatus.OK, CONTENT_TYPE.encode(), text.encode(), []
            case "GET", ["v1", "models"]:
                return _json({"items": [_describe(servings.of(name)) for name in servings.names()]})
            case "GET", ["v1", "models", model]:
                serving = servings.of(model)
                verify = parse_qs(scope["query_string"].decode("ascii", "replace")).get("verify", ["0"])[-1] == "1"
                digest = await asyncio.to_thread(serving.digest) if verify else None
                return _json(_describe(serving, digest))
            case "POST", ["v1", "models", model, "infer"]:
                servings.of(model)
                kind, body = _kind(scope), await _read_body(receive, _MAX_BODY_BYTES)
                return await _in(self._worker(model), lambda: self._infer(model, kind, body))
            case "POST", ["v1", "models", model, "errors"]:
                _check_origin(scope)
                body = await _read_body(receive, _MAX_ERROR_BYTES)
                return self._report_error(model, body)
            case "POST", ["v1", "models", model, "samples"]:
                _check_origin(scope)
                servings.of(model)
                kind, body = _kind(scope), await _read_body(receive, _MAX_SAMPLES_BYTES)
                return await _in(self._writer, lambda: self._add_labelled(model, kind, body))
            case method, ["v2", *path]:
                return await self._route_v2(method, path, scope, receive)
            case _, _:
                raise NotFound(f"{scope['method']} {scope['path']}: no such route; see GET /v1/models")

    async def _route_v2(  # noqa: PLR0911  # as above
        self, method: str, path: list[str], scope: _Scope, receive: _Receive
    ) -> "_Reply":
        """Answer by KServe's open inference protocol, which many clients speak; tasks as if they were models."""
        servings = self._applications.servings
        match (method, path):
            case "GET", []:
                return _json({"name": "sprat-agent", "version": VERSION, "extensions": []})
            case "GET", ["health", "live"]:
                return _json({"live": True})
            case "GET", ["health", "ready"]:
                well, _ = await asyncio.to_thread(self._applications.health)
                status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
                return status, _JSON.encode(), _dumped({"ready": well}), []
            case "GET", ["models", model]:
                return _json(self._described_v2(servings.of(model)))
            case "GET", ["models", model, "ready"]:
                return _json({"name": model, "ready": bool(servings.of(model))})
            case "POST", ["models", model, "infer"]:
                servings.of(model)
                kind, body = _kind(scope), await _read_body(receive, _MAX_BODY_BYTES)
                return await _in(self._worker(model), lambda: self._infer_v2(model, kind, body))
            case "GET", ["tasks"]:
                return _json({"items": self._applications.tasks()})
            case "POST", ["tasks", task, "infer"]:
                kind, body = _kind(scope), await _read_body(receive, _MAX_BODY_BYTES)
                headers = dict(scope["headers"])
                return await _in(self._tasks, lambda: self._infer_task(task, kind, body, headers))
            case _:
                raise NotFound(f"{method} {scope['path']}: no such route; see GET /v2/tasks and GET /v1/models")

    @staticmethod
    def _described_v2(serving: "Serving") -> dict[str, Any]:
        from sprat_client.agent.kserve import described  # noqa: PLC0415  # numpy, which came with the model

        return described(serving.manifest.model, [str(serving.slot.release)], serving.host)

    def _infer_v2(self, model: str, kind: str, body: bytes) -> "_Reply":
        from sprat_client.agent.kserve import answered, asked  # noqa: PLC0415  # as above

        answer = self._applications.infer(model, asked(body, safetensors=kind == SAFETENSORS))
        said = {"model_name": model, "model_version": str(answer.release)}
        release = [(RELEASE_HEADER.lower().encode(), str(answer.release).encode())]
        reply = answered(said, answer.outputs, safetensors=kind == SAFETENSORS)
        return HTTPStatus.OK, kind.encode(), reply, release

    def _infer_task(self, task: str, kind: str, body: bytes, headers: Mapping[bytes, bytes]) -> "_Reply":
        from sprat_client.agent.kserve import answered, asked  # noqa: PLC0415  # numpy, which tasks need

        def header(name: str) -> str | None:
            value = headers.get(name.lower().encode())
            return None if value is None else value.decode("latin-1")

        answer = self._applications.infer_task(
            task,
            asked(body, safetensors=kind == SAFETENSORS),
            deadline_s=_deadline_s(header(DEADLINE)),
            trace=trace_or_none(header(TRACE)),
            request=request_or_none(header(REQUEST)),
        )
        summary = answer.summary()
        said = {"model_name": task, "model_version": answer.plan, "id": answer.request, "parameters": summary}
        reply = answered(said, answer.outputs, safetensors=kind == SAFETENSORS)
        return HTTPStatus.OK, kind.encode(), reply, [(ANSWER.lower().encode(), _dumped(summary))]

    def _infer(self, model: str, kind: str, body: bytes) -> "_Reply":
        from sprat_client.agent.bodies import answer_body, inputs_of  # noqa: PLC0415  # numpy, which only a model needs

        safetensors = kind == SAFETENSORS
        answer = self._applications.infer(model, inputs_of(body, safetensors=safetensors))
        release = [(RELEASE_HEADER.lower().encode(), str(answer.release).encode())]
        return HTTPStatus.OK, kind.encode(), answer_body(model, answer, safetensors=safetensors), release

    def _report_error(self, model: str, body: bytes) -> "_Reply":
        self._errors.take("reported errors")
        match _object(body):
            case {"text": str(text), **rest} if set(rest) <= {"release"}:
                release = rest.get("release")
                if release is None or (isinstance(release, int) and not isinstance(release, bool)):
                    return _json({"model": model, "release": self._applications.report_error(model, text, release)})
        raise InvalidInput('the body must be {"text": "what was wrong", "release": 3}; the release may be left out')

    def _add_labelled(self, model: str, kind: str, body: bytes) -> "_Reply":
        self._samples.take("labelled samples")
        from sprat_client.agent.bodies import samples_of  # noqa: PLC0415  # as above

        inputs, labels = samples_of(body if kind == SAFETENSORS else _object(body))
        return _json({"model": model, "kept": self._applications.add_labelled(model, inputs, labels)})

    def _worker(self, model: str) -> ThreadPoolExecutor:
        """Return the thread of a model that is served; there are as many as models that ever were."""
        if model not in self._workers:
            self._workers[model] = ThreadPoolExecutor(1, thread_name_prefix=f"infer-{model}")
        return self._workers[model]

    def close(self) -> None:
        """Wait for the answers under way."""
        for worker in (*self._workers.values(), self._writer, self._tasks):
            worker.shutdown()


async def _in(worker: ThreadPoolExecutor, work: Callable[[], "_Reply"]) -> "_Reply":
    return await asyncio.get_running_loop().run_in_executor(worker, work)


def _kind(scope: _Scope) -> str:
    kind: str = (
        dict(scope["headers"]).get(b"content-type", b"application/json").partition(b";")[0].strip().decode("latin-1")
    )
    if kind not in {SAFETENSORS, _JSON}:
        raise InvalidInput(f"Content-Type {kind!r:.100}: send application/json or {SAFETENSORS}")
    return kind


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as bad:
        raise InvalidInput(f"the body is not JSON ({bad!r:.100})") from None
    if not isinstance(said, dict):
        raise InvalidInput("the body must be a JSON object")
    return said


_Reply: TypeAlias = tuple[int, bytes, bytes, list[tuple[bytes, bytes]]]


def _check_host(scope: _Scope) -> None:
    """Refuse names that a web page could point at this machine."""
    host = dict(scope["headers"]).get(b"host", b"localhost").decode("latin-1")
    if host.rpartition(":")[0] not in _HOSTS and host not in _HOSTS:
        raise InvalidInput(f"Host {host[:100]!r}: this endpoint answers on localhost only")


def _check_origin(scope: _Scope) -> None:
    """Refuse web pages, which a browser on the device would let send, though not read."""
    if b"origin" in dict(scope["headers"]):
        raise InvalidInput("this endpoint takes nothing from web pages")


def _deadline_s(header: str | None) -> float | None:
    if header is None:
        return None
    if not header.isdecimal() or not 0 < int(header[:12]) <= LARGEST_DEADLINE_MS:
        raise InvalidInput(f"{DEADLINE} must be 1 to {LARGEST_DEADLINE_MS}")
    return int(header) / 1000


async def _read_body(receive: _Receive, most: int) -> bytes:
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidInput("the request was cut")
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > most:
            raise InvalidInput(f"this request may take {most} bytes")
        if not message.get("more_body"):
            return b"".join(pieces)


def _describe(serving: "Serving", digest: str | None = None) -> dict[str, Any]:
    """Return what serves, with the digest recomputed where it was asked for."""
    said: dict[str, Any] = {
        "model": serving.manifest.model,
        "release": serving.slot.release,
        "release_id": serving.slot.release_id,
        "weights": serving.slot.weights,
        "on_trial": serving.fallback is not None,
        "answered": serving.answered,
        "failed": serving.failed,
        "reported": serving.reported,
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
    return HTTPStatus.OK, _JSON.encode(), _dumped(value), extra or []


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _problem(bad: SpratError) -> _Reply:
    status = HTTPStatus.TOO_MANY_REQUESTS if isinstance(bad, TooMany) else status_of(bad)
    said = {
        "type": f"about:blank#{bad.code}",
        "title": status.phrase,
        "status": status,
        "detail": str(bad),
        "code": bad.code,
    }
    extra = [(b"retry-after", b"1")] if isinstance(bad, TooMany | Busy) else []
    return status, b"application/problem+json", _dumped(said), extra


class HttpEndpoint:
    """Runs the application on 127.0.0.1.

    Args:
        applications: the calls that it takes.
        port: 0: any free one.
    """

    def __init__(self, applications: Applications, port: int) -> None:
        self._application, self._port = _Application(applications), port
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
            timeout_keep_alive=_KEEP_ALIVE_S,
            limit_concurrency=_MOST_CONNECTIONS,
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
        self._thread.join(_ANSWER_TIMEOUT_S)
        self._application.close()
        self._listener.close()
