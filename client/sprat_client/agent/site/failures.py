"""What can go wrong between the members of a site, by name; the same names over HTTP, there and back."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from sprat_client.runtime.ports import InferenceFailed
from sprat_shared.errors import Conflict, InvalidInput, LimitExceeded, NotFound, SpratError, TryLater, UpdateRejected

PROBLEM_TYPE: Final = "application/problem+json"
_LONGEST_DETAIL: Final = 1000


class MdnsMissing(InvalidInput):
    """Devices of the site are to be looked for by mDNS, and the package for it is not installed."""

    code = "site.mdns-missing"


class PlanRefused(UpdateRejected):
    """This device cannot run by a plan that was signed for it; the plan before it goes on."""

    code = "site.plan-refused"


class PlanExpired(TryLater):
    """The plan is over; nothing is begun or answered by it until the server has signed a newer one."""

    code = "site.plan-expired"


class OtherPlan(Conflict):
    """A request names another plan than the one that its connection was opened under."""

    code = "site.other-plan"


class NotHeld(NotFound):
    """The member does not hold this release of this module under this plan."""

    code = "site.not-held"


class NoSuchTask(NotFound):
    """No plan by which this device serves has the task."""

    code = "site.no-such-task"


class Busy(TryLater):
    """More requests wait here than may; nothing was computed."""

    code = "site.busy"


class TooLate(TryLater):
    """A request's deadline was over before it was its turn; nothing was computed."""

    code = "site.too-late"


class Unreachable(TryLater):
    """No member that holds a step's module answers."""

    code = "site.unreachable"


class DeadlineOver(TryLater):
    """A task was not answered within its deadline, and has no fallback here."""

    code = "site.deadline"


STATUS: Final[Mapping[type[SpratError], HTTPStatus]] = {
    OtherPlan: HTTPStatus.CONFLICT,
    Busy: HTTPStatus.SERVICE_UNAVAILABLE,
    PlanExpired: HTTPStatus.SERVICE_UNAVAILABLE,
    Unreachable: HTTPStatus.SERVICE_UNAVAILABLE,
    TooLate: HTTPStatus.GATEWAY_TIMEOUT,
    DeadlineOver: HTTPStatus.GATEWAY_TIMEOUT,
    InvalidInput: HTTPStatus.BAD_REQUEST,
    LimitExceeded: HTTPStatus.BAD_REQUEST,
    NotFound: HTTPStatus.NOT_FOUND,
    InferenceFailed: HTTPStatus.INTERNAL_SERVER_ERROR,
}
_BY_CODE: Final[Mapping[str, type[SpratError]]] = {
    kind.code: kind for kind in (OtherPlan, Busy, PlanExpired, TooLate, NotHeld, InferenceFailed, InvalidInput)
}


def status_of(bad: SpratError) -> HTTPStatus:
    """Return the HTTP status that stands for an error."""
    return next((STATUS[kind] for kind in type(bad).__mro__ if kind in STATUS), HTTPStatus.INTERNAL_SERVER_ERROR)


def problem_body(bad: SpratError) -> bytes:
    """Return an error as problem+json (RFC 9457)."""
    status = status_of(bad)
    said = {"type": f"about:blank#{bad.code}", "title": status.phrase, "status": status, "detail": str(bad)}
    return json.dumps({**said, "code": bad.code}).encode()


def said_by(status: int, body: bytes) -> SpratError:
    """Return the error that a member answered with."""
    try:
        said: Any = json.loads(body)
        code, detail = str(said["code"])[:100], str(said["detail"])[:_LONGEST_DETAIL]
    except (ValueError, TypeError, KeyError, RecursionError):
        return Unreachable(f"it answers with status {status} and no reason")
    if status == HTTPStatus.BAD_REQUEST:
        return InvalidInput(detail, code=code)
    return _BY_CODE.get(code, Unreachable)(detail)
