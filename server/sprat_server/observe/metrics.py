"""What Prometheus reads at /metrics."""

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
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

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


def text() -> bytes:
    """Return all metrics in Prometheus's text format."""
    return generate_latest(REGISTRY)
