"""Every error that sprat raises on purpose. `code` is public and stable; `exit_code` follows sysexits(3).

SpratError                          exit 1
├── InvalidInput                    what was given cannot be used as it is                       exit 65
├── NotFound                        it does not exist, or not for this caller                    exit 66
├── Conflict                        it cannot be done in the present state                       exit 73
├── AccessDenied                    the caller may not do this                                   exit 77
│   └── Unauthenticated             the caller is not known
├── UpdateRejected                  never install it; trying again will not help                 exit 76
│   ├── MalformedUpdate             the bytes are not an update file
│   ├── WireVersionUnsupported      the file needs a newer sprat
│   ├── BaseMismatch                it was made for other weights
│   ├── DigestMismatch              what came out is not what was promised
│   ├── LimitExceeded               it declares more than the reader allows
│   └── UntrustedUpdate             the signed metadata do not vouch for it
├── UnsafeArithmetic                this process would compute other bits                        exit 70
└── TryLater                        link, disk, clock or server is not ready; the work may be good   exit 75
"""

from typing import ClassVar

__all__ = [
    "AccessDenied",
    "BaseMismatch",
    "Conflict",
    "DigestMismatch",
    "InvalidInput",
    "LimitExceeded",
    "MalformedUpdate",
    "NotFound",
    "SpratError",
    "TryLater",
    "Unauthenticated",
    "UnsafeArithmetic",
    "UntrustedUpdate",
    "UpdateRejected",
    "WireVersionUnsupported",
]


class SpratError(Exception):
    """The root: something sprat understands went wrong. The message says what, to what, and what to do.

    Args:
        message: the sentence a person reads.
        code: overrides the class's public code where one class stands for several causes.
    """

    code: str = "sprat.failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class InvalidInput(SpratError):
    """What was given cannot be used as it is."""

    code = "input.invalid"
    exit_code = 65


class NotFound(SpratError):
    """The thing named does not exist, or not for this caller."""

    code = "input.not-found"
    exit_code = 66


class Conflict(SpratError):
    """The request cannot be done in the present state."""

    code = "state.conflict"
    exit_code = 73


class AccessDenied(SpratError):
    """The caller is known and may not do this."""

    code = "access.denied"
    exit_code = 77


class Unauthenticated(AccessDenied):
    """The caller is not known: no token, or one that is wrong, expired or revoked."""

    code = "access.unauthenticated"


class UpdateRejected(SpratError):
    """An update that must never be installed; trying again will not help."""

    code = "update.rejected"
    exit_code = 76


class MalformedUpdate(UpdateRejected):
    """The bytes do not follow docs/wire-format.md."""

    code = "update.malformed"


class WireVersionUnsupported(UpdateRejected):
    """The file is of a wire version that this sprat does not read."""

    code = "update.wire-version"


class BaseMismatch(UpdateRejected):
    """The update was made for other weights than those it is applied to."""

    code = "update.base-mismatch"


class DigestMismatch(UpdateRejected):
    """What was computed or received is not what was promised."""

    code = "update.digest-mismatch"

    def __init__(self, *, subject: str, expected: str, actual: str) -> None:
        super().__init__(f"{subject}: expected {expected[:23]}…, got {actual[:23]}…; it is not installed")
        self.subject, self.expected, self.actual = subject, expected, actual


class LimitExceeded(UpdateRejected):
    """The file declares more than the reader allows: refused before memory is taken."""

    code = "update.limit"


class UntrustedUpdate(UpdateRejected):
    """Signed metadata do not vouch for this update, or contradict it."""

    code = "update.untrusted"


class UnsafeArithmetic(SpratError):
    """This process computes other bits than the format's arithmetic (flush-to-zero, another rounding mode)."""

    code = "arithmetic.unsafe"
    exit_code = 70


class TryLater(SpratError):
    """The update may be good; link, disk, clock or server is not."""

    code = "try-later"
    exit_code = 75
