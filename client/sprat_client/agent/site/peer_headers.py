"""The headers of requests between members, and of applications' requests for tasks."""

import re
from typing import Final

PLAN: Final = "Sprat-Plan"  # `site/number`: under which plan
DEADLINE: Final = "Sprat-Deadline-Ms"  # how much of the deadline is left
REQUEST: Final = "Sprat-Request-Id"
TRACE: Final = "traceparent"  # W3C trace context
ANSWER: Final = "Sprat-Answer"  # who answered a task, as JSON
TIMES: Final = "Sprat-Times-Ms"  # of a module: waited, ran, how many requests ran in that go
LARGEST_DEADLINE_MS: Final = 3_600_000

_TRACE: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_REQUEST: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


def trace_or_none(text: str | None) -> str | None:
    """Return a `traceparent` header as it is, if it is one; anything else is left out, as W3C says."""
    return text if text is not None and _TRACE.fullmatch(text) else None


def request_or_none(text: str | None) -> str | None:
    """Return a request id, if it is one."""
    return text if text is not None and _REQUEST.fullmatch(text) else None
