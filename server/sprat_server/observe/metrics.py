"""What Prometheus reads at /metrics."""

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call] # no annotations there

REGISTRY: Final = CollectorRegistry()
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

REQUESTS: Final = Counter(
    "sprat_http_requests_total",
    "Requests answered, by method, route template and status.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
REQUEST_SECONDS: Final = Histogram(
    "sprat_http_request_seconds",
    "Seconds from a request's first byte to the last byte of its answer.",
    ["method", "route"],
    registry=REGISTRY,
)
SENT_BYTES: Final = Counter(
    "sprat_http_sent_bytes_total", "Bytes of answers' bodies, by route template.", ["route"], registry=REGISTRY
)
JOBS: Final = Gauge("sprat_jobs", "Jobs, by state; read when asked.", ["state"], registry=REGISTRY)
METADATA_EXPIRES_S: Final = Gauge(
    "sprat_metadata_expires_seconds",
    "Seconds until the newest metadata of a role expire; read when asked.",
    ["project", "role"],
    registry=REGISTRY,
)
METADATA_WAITING: Final = Gauge(
    "sprat_metadata_waiting",
    "Versions of a role that wait for signatures; read when asked.",
    ["project", "role"],
    registry=REGISTRY,
)
ROLLOUT_E_VALUE: Final = Gauge(
    "sprat_rollout_e_value",
    "Evidence of harm in a live rollout, by metric of its gate and over `all`; read when asked.",
    ["project", "model", "rollout", "metric"],
    registry=REGISTRY,
)
ROLLOUT_HALTS_AT: Final = Gauge(
    "sprat_rollout_halts_at",
    "The e-value over `all` at which a live rollout halts; read when asked.",
    ["project", "model", "rollout"],
    registry=REGISTRY,
)
ROLLOUT_DEVICES: Final = Gauge(
    "sprat_rollout_devices",
    "Devices of a live rollout: exposed, reported, failed, lost, and the room that the gate leaves; read when asked.",
    ["project", "model", "rollout", "what"],
    registry=REGISTRY,
)
SITE_MEMBERS: Final = Gauge(
    "sprat_site_members",
    "Members of a site's plans that are signed, by the plan's state and how far they said to be; read when asked.",
    ["project", "site", "plan", "state"],
    registry=REGISTRY,
)
WEBHOOK_WAITING: Final = Gauge(
    "sprat_webhook_waiting",
    "Events that wait to be sent to a webhook, or to be sent again; read when asked.",
    ["project", "webhook"],
    registry=REGISTRY,
)
WEBHOOK_OLDEST_S: Final = Gauge(
    "sprat_webhook_oldest_seconds",
    "For how long the oldest of them has waited; 0: none waits; read when asked.",
    ["project", "webhook"],
    registry=REGISTRY,
)
EVENT_STREAMS: Final = Gauge(
    "sprat_event_streams", "Callers who follow events as a stream of this process.", registry=REGISTRY
)


class KeptCounter(Collector):
    """A counter that the database keeps, for what other processes count: read when asked, the same in every replica.

    Args:
        name: without `_total`.
        documentation: as of any metric.
        labels: their names.
    """

    def __init__(self, name: str, documentation: str, labels: tuple[str, ...]) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._counts: Mapping[tuple[str, ...], int] = {}
        REGISTRY.register(self)

    def read(self, counts: Mapping[tuple[str, ...], int]) -> None:
        """Show these counts, by the values of the labels, from now on."""
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Give what was read last."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, count in self._counts.items():
            family.add_metric(values, count)
        yield family


WEBHOOK_DELIVERIES: Final = KeptCounter(
    "sprat_webhook_deliveries",
    "Attempts to send an event to a webhook: delivered, failed, or given up with the last one; read when asked.",
    ("project", "webhook", "outcome"),
)


def text() -> bytes:
    """Return all metrics in Prometheus's text format."""
    return generate_latest(REGISTRY)
