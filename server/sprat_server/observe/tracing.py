"""Traces for OpenTelemetry, where its standard environment asks for them; elsewhere a call here costs a comparison.

    with tracing.span("webhook.deliver", kind="client", attributes={"sprat.webhook": str(webhook_id)}):
        ...

The span that is open here is kept here and not in OpenTelemetry's own context, where libraries put theirs. No span has
a value of a statement, a token, a body, or the text of an error: those may be secrets.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

from sqlalchemy import Engine, event
from sqlalchemy.engine import Connection, ExceptionContext
from structlog.typing import EventDict, WrappedLogger

from sprat_server.db.projects import acts_in
from sprat_shared.errors import InvalidInput

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

Kind = Literal["server", "client", "consumer"]

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"
_LONGEST_STATEMENT: Final = 4000
_OPEN: Final = "sprat.spans"
_TARGET: Final = re.compile(r"\b(?:FROM|INTO|UPDATE)\s+(?:ONLY\s+)?([a-z_][a-z0-9_]*)")


@dataclass(frozen=True, slots=True)
class _Exporting:
    provider: "TracerProvider"
    tracer: "Tracer"


@dataclass(slots=True)
class _State:
    exporting: _Exporting | None = None


_STATE: Final = _State()
_SPAN: Final[ContextVar["Span | None"]] = ContextVar("sprat.span", default=None)


def configure(process: str) -> None:
    """Export traces from now on, if the environment asks for it and nobody called this before.

    Args:
        process: what this is, `api` or `worker`; an attribute of all that it exports.

    Raises:
        InvalidInput: the extra `otel` is not installed, or another protocol is asked for.
    """
    if _STATE.exporting is not None or not _is_asked_for(os.environ):
        return
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        raise InvalidInput(
            f"traces are asked for by {protocol[:40]!r}, and sprat-server speaks {_PROTOCOL}; say "
            f"{_PROTOCOLS[1]}={_PROTOCOL}, with the port of the collector that takes it (4318 as a rule)",
            code="settings.otel",
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - only now
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - only now
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - only now
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - only now
    except ImportError:
        asks = next(name for name in _ENDPOINTS if os.environ.get(name))
        raise InvalidInput(
            f"{asks} asks for traces, which need the extra `otel`: pip install 'sprat[server,otel]', or unset it",
            code="settings.otel",
        ) from None
    about = {"service.version": version("sprat"), "sprat.process": process}
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not named:
        about["service.name"] = "sprat-server"
    provider = TracerProvider(resource=Resource.create(about))  # not the global one: no library exports through it
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _STATE.exporting = _Exporting(provider, provider.get_tracer("sprat_server", about["service.version"]))


def is_on() -> bool:
    """Tell whether traces are exported."""
    return _STATE.exporting is not None


def flush() -> None:
    """Send what has ended and was not sent yet."""
    if _STATE.exporting is not None:
        _STATE.exporting.provider.force_flush()


def stop() -> None:
    """Send what has ended, and export nothing more."""
    exporting, _STATE.exporting = _STATE.exporting, None
    if exporting is not None:
        exporting.provider.shutdown()


def span(
    name: str,
    *,
    kind: Kind,
    attributes: Mapping[str, Any] | None = None,
    caller: Mapping[str, str] | None = None,
    link: str | None = None,
) -> AbstractContextManager[None]:
    """Open a span, a child of the one that is open, and make it the open one until the context ends.

    Args:
        name: few, whatever is asked for: no ids.
        kind: as OpenTelemetry has them.
        attributes: what is known already; `note` adds more.
        caller: the headers traceparent and tracestate of whoever asks, who becomes the parent.
        link: the traceparent of what this is done for; unlike a parent it has ended long ago.
    """
    exporting = _STATE.exporting
    if exporting is None:
        return nullcontext()
    return _opened(exporting.tracer, name, kind=kind, attributes=attributes or {}, caller=caller, link=link)


def note(attributes: Mapping[str, Any]) -> None:
    """Say more of the span that is open; None is left out."""
    open_span = _SPAN.get()
    if open_span is not None:
        open_span.set_attributes({name: value for name, value in attributes.items() if value is not None})


def rename(name: str) -> None:
    """Give the span that is open another name."""
    open_span = _SPAN.get()
    if open_span is not None:
        open_span.update_name(name)


def fail(why: str) -> None:
    """Mark the span that is open as failed; `why` is a code or the name of a class."""
    open_span = _SPAN.get()
    if open_span is not None:
        _mark_failed(open_span, why)


def traceparent() -> str | None:
    """Return the span that is open as W3C's header `traceparent`, to be kept with what is done for it later."""
    open_span = _SPAN.get()
    if open_span is None:
        return None
    context = open_span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def in_log(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Name the open span in a log line: a processor of structlog."""
    open_span = _SPAN.get()
    if open_span is not None:
        context = open_span.get_span_context()
        line["trace_id"], line["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return line


def watch(engine: Engine) -> None:
    """Make a span of each statement that is sent while one is open; to be called after `configure`."""
    if _STATE.exporting is not None:
        event.listen(engine, "before_cursor_execute", _begin_statement)
        event.listen(engine, "after_cursor_execute", _end_statement)
        event.listen(engine, "handle_error", _fail_statement)


def _is_asked_for(environ: Mapping[str, str]) -> bool:
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    return not off and any(environ.get(name) for name in _ENDPOINTS)


@contextmanager
def _opened(
    tracer: "Tracer",
    name: str,
    *,
    kind: Kind,
    attributes: Mapping[str, Any],
    caller: Mapping[str, str] | None,
    link: str | None,
) -> Iterator[None]:
    from opentelemetry.trace import Link, SpanKind, get_current_span  # noqa: PLC0415 - installed where this is called

    linked = [] if link is None else [Link(get_current_span(_remote({"traceparent": link})).get_span_context())]
    opened = tracer.start_span(
        name,
        context=_beneath(_SPAN.get()) if caller is None else _remote(caller),
        kind=SpanKind[kind.upper()],
        attributes={key: value for key, value in attributes.items() if value is not None},
        links=linked,
    )
    before = _SPAN.set(opened)
    try:
        yield
    except BaseException as error:
        _mark_failed(opened, type(error).__qualname__)
        raise
    finally:
        _SPAN.reset(before)
        opened.end()


def _remote(headers: Mapping[str, str]) -> "Context":
    from opentelemetry.context import Context  # noqa: PLC0415 - installed where this is called
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415 - likewise

    return TraceContextTextMapPropagator().extract(headers, Context())


def _beneath(parent: "Span | None") -> "Context":
    from opentelemetry.context import Context  # noqa: PLC0415 - installed where this is called
    from opentelemetry.trace import set_span_in_context  # noqa: PLC0415 - installed where this is called

    return Context() if parent is None else set_span_in_context(parent, Context())


def _mark_failed(failed: "Span", why: str) -> None:
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - installed where this is called

    failed.set_attribute("error.type", why)
    failed.set_status(Status(StatusCode.ERROR))


def _begin_statement(
    connection: Connection, _cursor: object, statement: str, _parameters: object, _context: object, _many: object
) -> None:
    exporting, parent = _STATE.exporting, _SPAN.get()
    spans: list[Span | None] = connection.info.setdefault(_OPEN, [])
    if exporting is None or parent is None or not parent.is_recording():
        spans.append(None)
        return
    project = acts_in(connection)
    if project is not None:
        parent.set_attribute("sprat.project", str(project))
    spans.append(_statement_span(exporting.tracer, parent, statement, project))


def _statement_span(tracer: "Tracer", parent: "Span", statement: str, project: UUID | None) -> "Span":
    from opentelemetry.trace import SpanKind  # noqa: PLC0415 - installed where this is called

    operation = statement.lstrip().partition(" ")[0].partition("\n")[0].upper()
    target = _TARGET.search(statement)
    attributes = {
        "db.system.name": "postgresql",
        "db.operation.name": operation,
        "db.query.text": statement[:_LONGEST_STATEMENT],
    }
    if target is not None:
        attributes["db.collection.name"] = target[1]
    if project is not None:
        attributes["sprat.project"] = str(project)
    name = operation if target is None else f"{operation} {target[1]}"
    return tracer.start_span(name, context=_beneath(parent), kind=SpanKind.CLIENT, attributes=attributes)


def _end_statement(connection: Connection, *_: object) -> None:
    _take(connection, failed=None)


def _fail_statement(context: ExceptionContext) -> None:
    if context.connection is not None:
        _take(context.connection, failed=context.original_exception)


def _take(connection: Connection, *, failed: BaseException | None) -> None:
    spans: list[Span | None] = connection.info.get(_OPEN) or [None]
    ended = spans.pop()
    if ended is not None:
        if failed is not None:
            code = getattr(failed, "sqlstate", None)
            _mark_failed(ended, str(code or type(failed).__qualname__))
        ended.end()
