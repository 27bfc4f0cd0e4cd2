"""The zoos of the benchmark, the rows of its table that are parts of them, and measuring all their pairs."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from sizes.ledger import source_digest

from sharing import measure as measure_code
from sharing import pretrained
from sharing.kept import Kept
from sharing.measure import MISSES, Row, Subject, stitches, ties
from sharing.rules import Measured
from sharing.zoo import MIXED, SIBLINGS, TASKS, Kind, Zoo

_FEW_MISSES: Final = (1.0, 0.5)
_KEPT_IN_MEMORY: Final = {"siblings", "mixed"}  # zoos whose activations fit: up to 5 GB; each pair makes them anew else
GROUPS: Final[Mapping[str, Sequence[Kind]]] = {"siblings": SIBLINGS, "mixed": MIXED, "pretrained": pretrained.KINDS}

Part = Callable[[Kind], bool]
ROWS: Final[Mapping[str, tuple[str, str, Part]]] = {
    "a": ("siblings of one base on different tasks", "siblings", lambda _: True),
    "b": ("same shape trained apart", "mixed", lambda kind: kind.family == "vgg"),
    "c": ("different width", "mixed", lambda kind: kind.family.startswith("vgg")),
    "d": ("different family", "mixed", lambda kind: kind.family != "vgg-wide"),
    "e": ("pretrained trunks with heads", "pretrained", lambda _: True),
    "mixed": ("the mixed zoo: all twelve of (b), (c) and (d)", "mixed", lambda _: True),
}
"""Row of the table -> title, zoo, and which of its models belong to it."""


class Group:
    """A zoo of one seed.

    Args:
        key: one of `GROUPS`.
        seed: of data and training.
        cache: folder of trained models.
        measured: folder of what was measured.
    """

    def __init__(self, key: str, seed: int, cache: Path, measured: Path) -> None:
        self.key, self.seed, self._cache = key, seed, cache
        self.kinds = {kind.name: kind for kind in GROUPS[key]}
        self.kept = Kept(measured / f"{key}-{seed}.jsonl", source_digest(Path(str(measure_code.__file__))))
        self._subjects: dict[str, Subject] = {}

    @cached_property
    def zoo(self) -> Zoo:
        """Return where the models come from."""
        return (pretrained.Pretrained if self.key == "pretrained" else Zoo)(self.seed, self._cache)

    def subject(self, name: str) -> Subject:
        """Return a model, ready to be run."""
        if name not in self._subjects:
            member = self.zoo.member(self.kinds[name])
            self._subjects[name] = Subject(member, self.zoo.domain(member.task))
        return self._subjects[name]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield donor and recipient, recipients of one domain after the other."""
        tasks = {**TASKS, **pretrained.TASKS}
        domain_of = {name: tasks[kind.task].domain for name, kind in self.kinds.items()}
        for domain in sorted(set(domain_of.values())):
            recipients = [name for name in self.kinds if domain_of[name] == domain]
            yield from ((donor, recipient) for recipient in recipients for donor in self.kinds if donor != recipient)

    def whole(self) -> bool:
        """Return whether all pairs are measured."""
        return all(self.kept.get(_key(*pair)) is not None for pair in self.pairs())

    def measure(self) -> None:
        """Measure the pairs that are not measured yet."""
        held = None
        for donor, recipient in self.pairs():
            if self.kept.get(_key(donor, recipient)) is not None:
                continue
            domain = self.subject(recipient).domain
            if held is not domain and self.key in _KEPT_IN_MEMORY:
                for name in self.kinds:
                    self.subject(name).keep(domain)
                held = domain
            found = self._measured(self.subject(donor), self.subject(recipient))
            self.kept.put(_key(donor, recipient), [row.kept() for row in found])
            print(f"{self.key}, seed {self.seed}: {donor} into {recipient}", file=sys.stderr, flush=True)
        for subject in self._subjects.values():
            subject.keep(None)

    def _measured(self, donor: Subject, recipient: Subject) -> Iterator[Row]:
        yield from stitches(donor, recipient)
        if donor.family == recipient.family:
            yield from ties(donor, recipient, MISSES if self.key == "siblings" else _FEW_MISSES)

    def rows(self, part: Part) -> list[Row]:
        """Return what was measured of some of the models."""
        names = {name for name, kind in self.kinds.items() if part(kind)}
        return [
            Row(**row) for pair in self.pairs() if names.issuperset(pair) for row in self.kept.get(_key(*pair)) or []
        ]

    def sizes(self, part: Part) -> dict[str, int]:
        """Return the bytes of some of the models."""
        known: dict[str, int] | None = self.kept.get("sizes")
        if known is None:
            known = self.kept.put("sizes", {name: self.subject(name).release.nbytes for name in self.kinds})
        return {name: size for name, size in (known or {}).items() if part(self.kinds[name])}

    def known(self, part: Part) -> Measured:
        """Return what a rule may look at."""
        families = {name: kind.family for name, kind in self.kinds.items()}
        certifying: dict[str, int] | None = self.kept.get("certifying")
        if certifying is None:
            certifying = {name: len(self.subject(name).domain.inputs["certify"]) for name in self.kinds}
            self.kept.put("certifying", certifying)
        return Measured(self.sizes(part), families, self.rows(part), certifying, self.seed)


def _key(donor: str, recipient: str) -> str:
    return f"pair {donor} {recipient}"
