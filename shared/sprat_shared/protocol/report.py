"""What a device says happened to an assignment, signed with its key so that nobody else can say it."""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as members_of
from enum import StrEnum
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.facts_report import FactsReport
from sprat_shared.protocol.fields import Fields, canonical_json
from sprat_shared.protocol.holdout_report import HoldoutReport
from sprat_shared.protocol.measures_report import MeasuresReport
from sprat_shared.protocol.site_report import SiteReport
from sprat_shared.protocol.watched import Watched, positive, share

SIGNATURE_HEADER: Final = "Sprat-Signature"
_SIGNATURE_BYTES: Final = 64


class Outcome(StrEnum):
    """How an assignment ended, or how far it is."""

    COMMITTED = "committed"  # the release serves and its trial is over
    REFUSED = "refused"  # it was never served: verification, rebuild or validation said no
    ROLLED_BACK = "rolled_back"  # it served in a trial and went back
    FAILED = "failed"  # the device could not do it (disk, link, too many cuts); the old release serves
    RETURNED = "returned"  # it went back to a release it still held, as assigned
    READY = "ready"  # it was assigned ahead, and waits, rebuilt, for the assignment that lets it serve


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a device found out about a new release beside the old one: validation, then shadow and trial.

    What is not known is left out of the report; a peer of an older version reads the first eight fields.

    Attributes:
        samples: how many were compared; 0 where there was no holdout.
        old_correct: correct answers of the old release; None where there was none.
        new_correct: correct answers of the new one.
        only_old: samples that only the old one had right (discordant pairs).
        only_new: samples that only the new one had right.
        p_worse: one-sided exact probability of so many `only_old` if both were equally good.
        old_latency_s: median seconds of one inference of the old release, and
        new_latency_s: of the new one.
        mode: `paired`; `labelled` where there was no old release; `unlabelled` where inputs had no labels: weaker;
            `unvalidated` where there was neither.
        unproven: fewer samples than the policy asks for were compared, and it accepts that.
        old_latency_p95_s: 95th percentile of the old release, and
        new_latency_p95_s: of the new one.
        old_memory_bytes: what the old release takes loaded: its tensor files, which are mapped, and private memory,
        new_memory_bytes: and the new one, measured likewise.
        compared: unlabelled inputs that both answered, and
        agreed: inputs of these with the same class on top.
        max_drop: by which accuracy on such inputs can have fallen at most, at 95 %.
        old_confidence: mean top probability of the old release on them, and
        new_confidence: of the new one.
        input_drift: distance (0 to 1, Kolmogorov and Smirnov) of the newer half of these inputs from the older one in
            their means, and
        confidence_drift: in the old release's confidence.
        shadow: None: there was none.
        trial: likewise.
    """

    samples: int
    old_correct: int | None
    new_correct: int
    only_old: int
    only_new: int
    p_worse: float
    old_latency_s: float | None
    new_latency_s: float
    mode: str | None = None
    unproven: bool = False
    old_latency_p95_s: float | None = None
    new_latency_p95_s: float | None = None
    old_memory_bytes: int | None = None
    new_memory_bytes: int | None = None
    compared: int | None = None
    agreed: int | None = None
    max_drop: float | None = None
    old_confidence: float | None = None
    new_confidence: float | None = None
    input_drift: float | None = None
    confidence_drift: float | None = None
    shadow: Watched | None = None
    trial: Watched | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object, without what is not known of the later fields."""
        said = {one.name: getattr(self, one.name) for one in members_of(self)}
        said |= {name: None if said[name] is None else said[name].as_json() for name in ("shadow", "trial")}
        return {name: value for name, value in said.items() if name in _EVER or value not in (None, False)}

    @classmethod
    def of(cls, value: Any) -> "Evidence":
        """Read the JSON object.

        Raises:
            InvalidInput: a field is missing or wrong, or the counts contradict each other.
        """
        said = Fields(value, "evidence")
        later: dict[str, Any] = {name: said.integer(name) for name in _COUNTS if said.has(name)}
        later |= {name: positive(said, name, "evidence") for name in ("old_latency_p95_s", "new_latency_p95_s")}
        later |= {name: share(said, name, "evidence") for name in _SHARES}
        evidence = cls(
            samples=said.integer("samples"),
            old_correct=said.integer("old_correct") if said.has("old_correct") else None,
            new_correct=said.integer("new_correct"),
            only_old=said.integer("only_old"),
            only_new=said.integer("only_new"),
            p_worse=said.number("p_worse"),
            old_latency_s=said.number("old_latency_s") if said.has("old_latency_s") else None,
            new_latency_s=said.number("new_latency_s"),
            mode=said.text("mode", max_length=40) if said.has("mode") else None,
            unproven=said.flag("unproven") if said.has("unproven") else False,
            shadow=Watched.of(said.mapping("shadow"), "shadow") if said.has("shadow") else None,
            trial=Watched.of(said.mapping("trial"), "trial") if said.has("trial") else None,
            **later,
        )
        evidence._check()
        return evidence

    def _check(self) -> None:
        if max(self.new_correct, self.old_correct or 0, self.only_old + self.only_new) > self.samples:
            raise InvalidInput(f"evidence: more answers than the {self.samples} samples")
        if (self.agreed or 0) > (self.compared or 0):
            raise InvalidInput(f"evidence: more inputs agreed than the {self.compared or 0} that were compared")
        if not 0 <= self.p_worse <= 1 or not all(
            math.isfinite(t) and t >= 0 for t in (self.old_latency_s or 0.0, self.new_latency_s)
        ):
            raise InvalidInput("evidence: p_worse must be 0 to 1 and latencies finite and not negative")


_EVER: Final = frozenset(one.name for one in members_of(Evidence)[:8])  # what every version sends
_COUNTS: Final = ("old_memory_bytes", "new_memory_bytes", "compared", "agreed")
_SHARES: Final = ("max_drop", "old_confidence", "new_confidence", "input_drift", "confidence_drift")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One report.

    Attributes:
        device: who says it.
        sequence: grows with every report of this device; a repeated or smaller one is a replay.
        model: the model concerned.
        assignment: counter of the assignment that it answers.
        release: the release that was assigned.
        outcome: how it ended.
        serving_release: the release that serves now; None where none does.
        serving_weights: weights digest of what serves now, computed over the files.
        error_code: public code of what went wrong, and
        error_detail: the sentence for people; None where all went well.
        evidence: of validation; None where it was not reached.
        received_bytes: body bytes read for this assignment, over all attempts.
        seconds: from the assignment's arrival to its end, on the device's clock.
        agent: version of the agent.
    """

    device: UUID
    sequence: int
    model: str
    assignment: int
    release: int
    outcome: Outcome
    serving_release: int | None
    serving_weights: str | None
    error_code: str | None
    error_detail: str | None
    evidence: Evidence | None
    received_bytes: int
    seconds: float
    agent: str
    kind: Literal["assignment"] = "assignment"

    def to_json(self) -> bytes:
        """Return the canonical bytes that are signed and sent."""
        return canonical_json(
            {
                "kind": self.kind,
                "device": str(self.device),
                "sequence": self.sequence,
                "model": self.model,
                "assignment": self.assignment,
                "release": self.release,
                "outcome": self.outcome.value,
                "serving_release": self.serving_release,
                "serving_weights": self.serving_weights,
                "error_code": self.error_code,
                "error_detail": self.error_detail,
                "evidence": None if self.evidence is None else self.evidence.as_json(),
                "received_bytes": self.received_bytes,
                "seconds": self.seconds,
                "agent": self.agent,
            }
        )

    @classmethod
    def from_json(cls, body: bytes) -> "Report":
        """Read a report.

        Raises:
            InvalidInput: a field is missing or wrong.
        """
        fields = Fields.parse(body, "report")
        if fields.text("kind") != "assignment":
            raise InvalidInput(f"report: kind {fields.text('kind')[:40]!r} is not known; 'assignment' is")
        outcome = fields.text("outcome")
        if outcome not in set(Outcome):
            raise InvalidInput(f"report: outcome {outcome[:40]!r} is not one of {', '.join(Outcome)}")
        seconds = fields.number("seconds")
        if not math.isfinite(seconds) or seconds < 0:
            raise InvalidInput("report: field 'seconds' must be finite and not negative")
        return cls(
            device=fields.uuid("device"),
            sequence=fields.integer("sequence", minimum=1),
            model=fields.model("model"),
            assignment=fields.integer("assignment", minimum=1),
            release=fields.integer("release", minimum=1),
            outcome=Outcome(outcome),
            serving_release=fields.integer("serving_release", minimum=1) if fields.has("serving_release") else None,
            serving_weights=fields.digest("serving_weights") if fields.has("serving_weights") else None,
            error_code=fields.text("error_code", max_length=100) if fields.has("error_code") else None,
            error_detail=fields.text("error_detail") if fields.has("error_detail") else None,
            evidence=Evidence.of(fields.mapping("evidence")) if fields.has("evidence") else None,
            received_bytes=fields.integer("received_bytes"),
            seconds=seconds,
            agent=fields.text("agent", max_length=100),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustReport:
    """Says that what a server, or somebody in its place, sent was refused, or that somebody holds it back.

    It belongs to no assignment: signed metadata stand before any.

    Attributes:
        device: who says it.
        sequence: as a `Report`'s, in one row with them.
        error_code: public code of the refusal.
        error_detail: the sentence for people.
        agent: version of the agent.
    """

    device: UUID
    sequence: int
    error_code: str
    error_detail: str
    agent: str
    kind: Literal["trust"] = "trust"

    def to_json(self) -> bytes:
        """Return the canonical bytes that are signed and sent."""
        return canonical_json({**asdict(self), "device": str(self.device)})

    @classmethod
    def from_json(cls, body: bytes) -> "TrustReport":
        """Read a report.

        Raises:
            InvalidInput: a field is missing or wrong.
        """
        fields = Fields.parse(body, "report")
        if fields.text("kind") != "trust":
            raise InvalidInput(f"report: kind {fields.text('kind')[:40]!r} is not 'trust'")
        return cls(
            device=fields.uuid("device"),
            sequence=fields.integer("sequence", minimum=1),
            error_code=fields.text("error_code", max_length=100),
            error_detail=fields.text("error_detail"),
            agent=fields.text("agent", max_length=100),
        )


AnyReport: TypeAlias = Report | TrustReport | HoldoutReport | FactsReport | SiteReport | MeasuresReport


def read_report(body: bytes) -> AnyReport:
    """Read a report of any kind.

    Raises:
        InvalidInput: the kind is not known, or a field is missing or wrong.
    """
    kinds: Mapping[str, type[AnyReport]] = {
        "assignment": Report,
        "trust": TrustReport,
        "holdout": HoldoutReport,
        "facts": FactsReport,
        "site": SiteReport,
        "measures": MeasuresReport,
    }
    kind = Fields.parse(body, "report").text("kind")
    if kind not in kinds:
        raise InvalidInput(f"report: kind {kind[:40]!r} is not known; {', '.join(map(repr, kinds))} are")
    return kinds[kind].from_json(body)


def format_signature(raw: bytes) -> str:
    """Return the value of the `Sprat-Signature` header for a 64-byte ed25519 signature over the body."""
    return base64.b64encode(raw).decode()


def parse_signature(header: str) -> bytes:
    """Read a `Sprat-Signature` header.

    Raises:
        InvalidInput: it is not the base64 of 64 bytes.
    """
    try:
        raw = base64.b64decode(header, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != _SIGNATURE_BYTES:
        raise InvalidInput(f"{SIGNATURE_HEADER}: expected the base64 of {_SIGNATURE_BYTES} bytes (ed25519)")
    return raw
