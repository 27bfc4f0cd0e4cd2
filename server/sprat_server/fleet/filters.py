"""Filters of devices: what an expression says, and whether it holds for what is known of one device. Pure.

The text is read by `filter_grammar`, the same meaning as a condition of SQL stands in `filter_sql`. A fact that is
missing makes each comparison with it false; `not` turns that round, and `!=` is `not` with `=`.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, TypeAlias

NUMBER_TEXT: Final = "-?[0-9]{1,15}([.][0-9]{1,6})?"
"""What of a label or an attribute is read as a number; as a regular expression for Python and for PostgreSQL."""

FAILED: Final = frozenset({"refused", "rolled_back", "failed"})
"""Outcomes of a report that make `failed` hold."""


class Kind(StrEnum):
    """What a fact is, and with what it can be compared."""

    TEXT = "a text"
    LOOSE = "a text, or a number where it reads as one"
    NUMBER = "a number"
    TIME = "a time"
    FLAG = "true or false"


@dataclass(frozen=True, slots=True)
class Fact:
    """Something known of a device.

    Attributes:
        root: first word of its path, such as `labels` or `last_seen`.
        kind: what it is.
        key: of the label or attribute, or the name of the model.
        member: which fact of the model.
        at: where an expression names it, the column from 0; two facts do not differ by it.
    """

    root: str
    kind: Kind
    key: str = ""
    member: str = ""
    at: int = field(default=0, compare=False, repr=False)

    @property
    def path(self) -> str:
        """Return how an expression names it."""
        return ".".join(part for part in (self.root, self.key, self.member) if part)


PLAIN: Final[Mapping[str, Kind]] = {
    "name": Kind.TEXT,
    "site": Kind.TEXT,
    "profile": Kind.TEXT,
    "agent": Kind.TEXT,
    "enrolled": Kind.TIME,
    "last_seen": Kind.TIME,
    "failed": Kind.FLAG,
}
OF_A_MODEL: Final[Mapping[str, Kind]] = {
    "active": Kind.NUMBER,
    "previous": Kind.NUMBER,
    "failed": Kind.FLAG,
    "reported": Kind.TIME,
}
KNOWN: Final = f"{', '.join(PLAIN)}, labels.KEY, attributes.KEY, model.NAME.{'|'.join(OF_A_MODEL)}"


@dataclass(frozen=True, slots=True)
class Ago:
    """A time that moves: so many seconds before now."""

    seconds: int


Value: TypeAlias = str | Decimal | datetime | Ago


@dataclass(frozen=True, slots=True)
class Compare:
    """`fact op value`; op is one of `=`, `<`, `<=`, `>`, `>=`, and `~`: the text fits a pattern of `*` and `?`."""

    fact: Fact
    op: str
    value: Value


@dataclass(frozen=True, slots=True)
class OneOf:
    """`fact in (values)`; all of them texts, or all of them numbers."""

    fact: Fact
    values: tuple[str | Decimal, ...]


@dataclass(frozen=True, slots=True)
class Has:
    """`has fact`: it is known."""

    fact: Fact


@dataclass(frozen=True, slots=True)
class Flag:
    """A fact that is true or false, by itself."""

    fact: Fact


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    part: "Node"


@dataclass(frozen=True, slots=True)
class All:
    """Every part holds."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Some:
    """At least one part holds."""

    parts: tuple["Node", ...]


Node: TypeAlias = Compare | OneOf | Has | Flag | Not | All | Some


@dataclass(frozen=True, slots=True)
class Expression:
    """A filter that was read.

    Attributes:
        text: as it was written.
        root: what it says.
        models: the models that it names, each with the column (from 0) where it does so first.
        moves: devices may come and go without a word of theirs: it looks at the clock, at when they were last seen,
            or at the release that they can go back to (a rollout may take that away).
    """

    text: str
    root: Node
    models: Mapping[str, int]
    moves: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """What a device holds of a model, as far as its reports say."""

    active: int | None
    previous: int | None
    outcome: str
    reported: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What is known of one device.

    Attributes:
        name: what people call it.
        site: the group that it joined with; gates call that its site too.
        profile: the class of devices that it said it is of.
        agent: version of its agent.
        enrolled: when it joined.
        last_seen: when it last polled.
        labels: what operators say of it, and
        attributes: what it says of itself.
        models: what it holds, by the model's name.
    """

    name: str
    site: str
    profile: str | None
    agent: str
    enrolled: datetime
    last_seen: datetime | None
    labels: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, ModelState] = field(default_factory=dict)


COMPARISONS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def holds(node: Node, facts: DeviceFacts, now: datetime) -> bool:  # noqa: PLR0911 - one for each kind of node
    """Return whether what a filter says is so for a device."""
    match node:
        case Not(part):
            return not holds(part, facts, now)
        case All(parts):
            return all(holds(part, facts, now) for part in parts)
        case Some(parts):
            return any(holds(part, facts, now) for part in parts)
        case Has(fact):
            return _value(fact, facts) is not None
        case Flag(fact):
            return _value(fact, facts) is True
        case OneOf(fact, values):
            return _comparable(fact, facts, values[0]) in values
        case Compare(fact, op, value):
            known = _comparable(fact, facts, value)
            if known is None:
                return False
            if op == "~":
                return re.fullmatch(pattern_regex(str(value)), known, re.DOTALL) is not None
            return bool(COMPARISONS[op](known, moment(value, now)))


def moment(value: Value, now: datetime) -> Value:
    """Return the time that a moving time stands for now; every other value as it is."""
    return now - timedelta(seconds=value.seconds) if isinstance(value, Ago) else value


def pattern_regex(pattern: str) -> str:
    """Return the regular expression for a whole text that fits a pattern: `*` is any text, `?` any one character."""
    return "".join({"*": ".*", "?": "."}.get(char) or re.escape(char) for char in pattern)


def facts_in(node: Node) -> Sequence[Fact]:
    """Return the facts that a filter looks at, in the order of its text, as often as it does."""
    match node:
        case Not(part):
            return facts_in(part)
        case All(parts) | Some(parts):
            return [fact for part in parts for fact in facts_in(part)]
        case _:
            return [node.fact]


def _comparable(fact: Fact, facts: DeviceFacts, value: Value) -> Any:
    """Return the fact as it is compared with a value: a loose one as a number, where the value is one."""
    known = _value(fact, facts)
    if fact.kind == Kind.LOOSE and isinstance(value, Decimal):
        return Decimal(known) if known is not None and re.fullmatch(NUMBER_TEXT, known, re.ASCII) else None
    return known


def _value(fact: Fact, facts: DeviceFacts) -> Any:
    """Return what is known; None: nothing."""
    match fact.root:
        case "labels":
            return facts.labels.get(fact.key)
        case "attributes":
            return facts.attributes.get(fact.key)
        case "failed":
            return any(state.outcome in FAILED for state in facts.models.values())
        case "model":
            state = facts.models.get(fact.key)
            if state is None:
                return None
            return state.outcome in FAILED if fact.member == "failed" else getattr(state, fact.member)
        case _:
            return getattr(facts, fact.root)
