"""What a device says of the samples that its applications labelled: counts and histograms, never a sample."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal
from uuid import UUID

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.fields import Fields, canonical_json

BINS: Final = 10  # of the histograms, equally wide, over top probabilities from 0 to 1
CLASSES_SAID: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutReport:
    """The holdout that applications keep fresh, and how the serving release does on it.

    It belongs to no assignment. Report by report it shows how classes, confidence and accuracy drift.

    Attributes:
        device: who says it.
        sequence: as a `Report`'s, in one row with them.
        model: whose holdout.
        release: that serves; its answers are counted here.
        samples: how many are kept.
        added: how many were ever added.
        classes: label and count of the most frequent labels, at most 64 of them,
        others: and the samples of all other labels.
        confidences: how many samples have their top probability in each of 10 equally wide bins, and
        correct: how many of these are right.
        agent: version of the agent.
    """

    device: UUID
    sequence: int
    model: str
    release: int
    samples: int
    added: int
    classes: tuple[tuple[int, int], ...]
    others: int
    confidences: tuple[int, ...]
    correct: tuple[int, ...]
    agent: str
    kind: Literal["holdout"] = "holdout"

    def to_json(self) -> bytes:
        """Return the canonical bytes that are signed and sent."""
        return canonical_json({**asdict(self), "device": str(self.device)})

    @classmethod
    def from_json(cls, body: bytes) -> "HoldoutReport":
        """Read a report.

        Raises:
            InvalidInput: a field is missing or wrong, or the counts contradict each other.
        """
        fields = Fields.parse(body, "report")
        if fields.text("kind") != "holdout":
            raise InvalidInput(f"report: kind {fields.text('kind')[:40]!r} is not 'holdout'")
        report = cls(
            device=fields.uuid("device"),
            sequence=fields.integer("sequence", minimum=1),
            model=fields.model("model"),
            release=fields.integer("release", minimum=1),
            samples=fields.integer("samples"),
            added=fields.integer("added"),
            classes=tuple(_pair(pair) for pair in fields.list_of("classes")),
            others=fields.integer("others"),
            confidences=_counts(fields, "confidences"),
            correct=_counts(fields, "correct"),
            agent=fields.text("agent", max_length=100),
        )
        report._check()
        return report

    def _check(self) -> None:
        if len(self.classes) > CLASSES_SAID or sum(count for _, count in self.classes) + self.others != self.samples:
            raise InvalidInput(f"report: the counts by class must be at most {CLASSES_SAID} and sum to the samples")
        if sum(self.confidences) != self.samples or any(
            right > count for right, count in zip(self.correct, self.confidences, strict=True)
        ):
            raise InvalidInput(
                "report: the histogram must sum to the samples, and no bin have more right than it holds"
            )


def _pair(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(_is_count(one) for one in value):  # noqa: PLR2004  # label, count
        raise InvalidInput(f"report: field 'classes' must hold pairs of label and count, got {value!r:.80}")
    return value[0], value[1]


def _counts(fields: Fields, name: str) -> tuple[int, ...]:
    counts = fields.list_of(name)
    if len(counts) != BINS or not all(_is_count(count) for count in counts):
        raise InvalidInput(f"report: field {name!r} must be {BINS} counts")
    return tuple(counts)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53
