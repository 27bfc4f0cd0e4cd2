"""The agent's numbers as Prometheus text (exposition format 0.0.4), by hand: base dependencies only."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from sprat_client.agent.meter import BUCKETS_S, Meter

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
Gauge = tuple[str, str, Mapping[str, object], float]  # name, help, labels, value


def render(meter: Meter, gauges: Iterable[Gauge]) -> str:
    """Return all series; those of one name stand together.

    Args:
        meter: counts of requests and swaps.
        gauges: what is true just now.
    """
    return "".join(f"{line}\n" for line in (*_requests(meter), *_gauges(gauges)))


def _requests(meter: Meter) -> Iterator[str]:
    counts = meter.counts()
    totals = (
        ("requests_total", "Requests answered, by the release that answered.", "answered"),
        ("request_failures_total", "Requests on which the model failed, or gave NaN or Inf.", "failed"),
        ("reported_errors_total", "Errors that applications reported of answers.", "reported"),
    )
    for name, said, member in totals:
        yield from _head(name, said, "counter")
        for model, release, one in counts:
            yield _line(name, {"model": model, "release": release}, getattr(one, member))
    name = "request_seconds"
    yield from _head(name, "Seconds of one answer.", "histogram")
    for model, release, one in counts:
        labels, below = {"model": model, "release": release}, 0
        for bound, count in zip((*BUCKETS_S, "+Inf"), one.buckets, strict=True):
            below += count
            yield _line(f"{name}_bucket", {**labels, "le": bound}, below)
        yield _line(f"{name}_sum", labels, one.seconds)
        yield _line(f"{name}_count", labels, one.answered)
    yield from _head("swaps_total", "How often another release began to serve.", "counter")
    for model, swaps in sorted(meter.swaps().items()):
        yield _line("swaps_total", {"model": model}, swaps)


def _gauges(gauges: Iterable[Gauge]) -> Iterator[str]:
    by_name: dict[str, list[Gauge]] = {}
    for gauge in gauges:
        by_name.setdefault(gauge[0], []).append(gauge)
    for name, found in by_name.items():
        yield from _head(name, found[0][1], "counter" if name.endswith("_total") else "gauge")
        for _, _, labels, value in found:
            yield _line(name, labels, value)


def _head(name: str, said: str, kind: str) -> Iterator[str]:
    yield f"# HELP sprat_agent_{name} {said}"
    yield f"# TYPE sprat_agent_{name} {kind}"


def _line(name: str, labels: Mapping[str, object], value: float) -> str:
    inner = ",".join(f'{key}="{_escaped(str(one))}"' for key, one in labels.items())
    return f"sprat_agent_{name}{f'{{{inner}}}' if inner else ''} {value}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
