"""Reads the text of a filter (docs/targeting.md). Every error points at the column and says what is known there.

`labels.site = "lab" and model.digits.active < 4 and not profile in ("cam-v1", "cam-v2") and last_seen > 7d ago`
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any, Final

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from sprat_server.fleet.filters import (
    KNOWN,
    OF_A_MODEL,
    PLAIN,
    Ago,
    All,
    Compare,
    Expression,
    Fact,
    Flag,
    Has,
    Kind,
    Node,
    Not,
    OneOf,
    Some,
    Value,
    facts_in,
)
from sprat_shared.errors import InvalidInput
from sprat_shared.ids import check_model_name

GRAMMAR: Final = r"""
start: some
?some: all ("or" all)*
?all: one ("and" one)*
?one: "not" one                               -> no
    | "(" some ")"
    | "has" PATH                              -> has
    | PATH COMPARISON value                   -> compare
    | PATH "in" "(" value ("," value)* ")"    -> one_of
    | PATH "not" "in" "(" value ("," value)* ")" -> none_of
    | PATH                                    -> flag
value: TEXT | NUMBER | AGO | DATE

COMPARISON: "<=" | ">=" | "!=" | "=" | "<" | ">" | "~"
PATH: /[a-z_]+(\.[A-Za-z0-9_]([A-Za-z0-9._\/-]*[A-Za-z0-9_])?)?/
TEXT: /"([^"\\\x00-\x1f\x7f\ud800-\udfff]|\\["\\])*"/
NUMBER: /-?[0-9]{1,15}(\.[0-9]{1,6})?/
AGO.2: /[0-9]{1,6}[smhdw] +ago/
DATE.2: /[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2})?Z?)?/
%ignore /[ \t\r\n]+/
"""

MOST_CHARACTERS: Final = 2000
MOST_DEPTH: Final = 20
MOST_COMPARISONS: Final = 100
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LONGEST_AGO_S: Final = 10 * 366 * 86400
_SHOWN: Final = 60  # characters of the text on each side of an error

_WORDS: Final = {
    "PATH": "a fact",
    "TEXT": 'a text such as "lab"',
    "NUMBER": "a number",
    "AGO": "a time such as 7d ago",
    "DATE": "a date such as 2026-01-31",
    "COMPARISON": "a comparison: = != < <= > >= ~",
    "LPAR": "(",
    "RPAR": ")",
    "COMMA": ",",
    "$END": "the end",
}
_FITTING: Final = {
    Kind.TEXT: ('= != ~ in, and a text such as "lab"', frozenset({"=", "~"}), (str,)),
    Kind.LOOSE: ('= != ~ in, and a text such as "lab", or a number and < <= > >= too', None, (str, Decimal)),
    Kind.NUMBER: ("= != < <= > >= in, and a number", frozenset({"=", "<", "<=", ">", ">="}), (Decimal,)),
    Kind.TIME: (
        "< <= > >=, and a time such as 7d ago or 2026-01-31",
        frozenset({"<", "<=", ">", ">="}),
        (Ago, datetime),
    ),
    Kind.FLAG: ("nothing: it stands by itself, or after not", frozenset[str](), ()),
}


class BadFilter(InvalidInput):
    """A filter cannot be read; the message shows where, and what is known there."""

    code = "filter.bad"


@dataclass(frozen=True, slots=True)
class _Wrong(Exception):
    """What is wrong at a column (from 0)."""

    at: int
    what: str


@dataclass(frozen=True, slots=True)
class _Made:
    """A node, how deep it nests, and where it begins."""

    node: Node
    depth: int
    at: int


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """Read a filter.

    Raises:
        BadFilter: it cannot be read, compares what cannot be compared, or is too long or nested too deeply.
    """
    if len(text) > MOST_CHARACTERS:
        raise BadFilter(f"a filter has at most {MOST_CHARACTERS} characters, not {len(text)}; save a part as labels")
    try:
        made: _Made = _parser().parse(text)  # type: ignore[assignment]  # lark does not know what the callbacks make
    except UnexpectedInput as bad:
        raise pointing(text, len(text) if _at_the_end(bad) else bad.pos_in_stream or 0, _unexpected(bad)) from None
    except _Wrong as bad:
        raise pointing(text, bad.at, bad.what) from None
    facts = facts_in(made.node)
    if len(facts) > MOST_COMPARISONS:
        last = facts[MOST_COMPARISONS].at
        raise pointing(text, last, f"a filter has at most {MOST_COMPARISONS} comparisons; say some of it by a label")
    models = {fact.key: fact.at for fact in reversed(facts) if fact.root == "model"}
    moves = any(fact.root == "last_seen" or fact.member == "previous" for fact in facts) or _looks_at_clock(made.node)
    return Expression(text, made.node, models, moves)


def pointing(text: str, at: int, what: str) -> BadFilter:
    """Return the error that shows a column (from 0) of a filter's text, by a caret under its line."""
    start = text.rfind("\n", 0, at) + 1
    line = text[start:].partition("\n")[0]
    column = at - start
    first = max(0, column - _SHOWN)
    before = "…" if first else ""
    shown = before + line[first : column + _SHOWN].replace("\t", " ")
    return BadFilter(
        f"filter, column {column + 1}: {what}\n  {shown}\n  {' ' * (len(before) + column - first)}^",
    )


@cache
def _parser() -> Lark:
    return Lark(GRAMMAR, parser="lalr", transformer=_Reader(), propagate_positions=False)


@v_args(inline=True)
class _Reader(Transformer[Token, Any]):
    """Makes nodes while the text is read, from the inside out, so that nothing recurses."""

    def start(self, made: _Made) -> _Made:
        """Return the whole."""
        return made

    def some(self, *parts: _Made) -> _Made:
        """One of several."""
        return _deeper(Some(tuple(part.node for part in parts)), parts)

    def all(self, *parts: _Made) -> _Made:
        """All of several."""
        return _deeper(All(tuple(part.node for part in parts)), parts)

    def no(self, part: _Made) -> _Made:
        """The opposite."""
        return _deeper(Not(part.node), (part,))

    def has(self, path: Token) -> _Made:
        """A fact is known."""
        return _made(Has(_fact(path)), path)

    def flag(self, path: Token) -> _Made:
        """A fact by itself."""
        fact = _fact(path)
        if fact.kind != Kind.FLAG:
            raise _Wrong(_at(path), f"{fact.path} is {fact.kind}; compare it, or write has {fact.path}")
        return _made(Flag(fact), path)

    def compare(self, path: Token, op: Token, value: "_Said") -> _Made:
        """A fact and a value."""
        fact, sign = _fact(path), "=" if op == "!=" else str(op)
        words, signs, types = _FITTING[fact.kind]
        if fact.kind == Kind.LOOSE:
            signs = frozenset({"=", "~"}) if isinstance(value.value, str) else frozenset({"=", "<", "<=", ">", ">="})
        if not isinstance(value.value, types):
            raise _Wrong(value.at, f"{fact.path} is {fact.kind}; with it go {words}")
        if signs is None or sign not in signs:
            raise _Wrong(_at(op), f"{fact.path} is {fact.kind}; with it go {words}")
        node = Compare(fact, sign, value.value)
        return _made(Not(node) if op == "!=" else node, path)

    def one_of(self, path: Token, *values: "_Said") -> _Made:
        """A fact and a list of values."""
        fact = _fact(path)
        _, _, types = _FITTING[fact.kind]
        listed = []
        for said in values:
            same = isinstance(said.value, str) == isinstance(values[0].value, str)
            if not isinstance(said.value, str | Decimal) or not isinstance(said.value, types) or not same:
                raise _Wrong(said.at, f"{fact.path} is {fact.kind}; in takes texts alone, or numbers alone")
            listed.append(said.value)
        return _made(OneOf(fact, tuple(listed)), path)

    def none_of(self, path: Token, *values: "_Said") -> _Made:
        """A fact that is none of several values."""
        made = self.one_of(path, *values)
        return _deeper(Not(made.node), (made,))

    def value(self, token: Token) -> "_Said":
        """A value."""
        return _Said(_value(token), _at(token))


@dataclass(frozen=True, slots=True)
class _Said:
    """A value, and where it stands."""

    value: Value
    at: int


def _made(node: Node, path: Token) -> _Made:
    return _Made(node, 1, _at(path))


def _deeper(node: Node, parts: Sequence[_Made]) -> _Made:
    depth = 1 + max(part.depth for part in parts)
    if depth > MOST_DEPTH:
        raise _Wrong(parts[0].at, f"this is nested deeper than {MOST_DEPTH} times; say a part by a label")
    return _Made(node, depth, parts[0].at)


def _fact(path: Token) -> Fact:
    at, (root, _, rest) = _at(path), str(path).partition(".")
    if root in PLAIN and not rest:
        return Fact(root, PLAIN[root], at=at)
    if root in {"labels", "attributes"} and rest:
        return Fact(root, Kind.LOOSE, rest, at=at)
    if root == "model":
        name, _, member = rest.partition(".")
        if member not in OF_A_MODEL:
            raise _Wrong(at, f"of a model are known: {', '.join(f'model.NAME.{one}' for one in OF_A_MODEL)}")
        try:
            return Fact(root, OF_A_MODEL[member], check_model_name(name), member, at)
        except InvalidInput as bad:
            raise _Wrong(at, str(bad)) from None
    raise _Wrong(at, f"there is no fact {str(path)!r:.80}; known are {KNOWN}")


def _value(token: Token) -> Value:
    match token.type:
        case "TEXT":
            return token[1:-1].replace('\\"', '"').replace("\\\\", "\\")
        case "NUMBER":
            return Decimal(token)
        case "AGO":
            count = token.split()[0]
            seconds = int(count[:-1]) * _SECONDS[count[-1]]
            if seconds > _LONGEST_AGO_S:
                raise _Wrong(_at(token), "ten years ago is the longest")
            return Ago(seconds)
        case _:
            try:
                moment = datetime.fromisoformat(token)
            except ValueError as bad:
                raise _Wrong(_at(token), f"{token} is no date ({bad})") from None
            return moment.replace(tzinfo=UTC)


def _at(token: Token) -> int:
    return token.start_pos or 0


def _looks_at_clock(node: Node) -> bool:
    match node:
        case Not(part):
            return _looks_at_clock(part)
        case All(parts) | Some(parts):
            return any(_looks_at_clock(part) for part in parts)
        case Compare(_, _, value):
            return isinstance(value, Ago)
        case _:
            return False


def _at_the_end(bad: UnexpectedInput) -> bool:
    return isinstance(bad, UnexpectedToken) and bad.token.type == "$END"


def _unexpected(bad: UnexpectedInput) -> str:
    if isinstance(bad, UnexpectedCharacters):
        if bad.char == '"':
            return 'this text is not closed, or holds a backslash that is not in \\" or \\\\'
        if bad.char == "'":
            return 'texts stand in double quotes: "lab"'
        found, expected = repr(bad.char), bad.allowed
    elif isinstance(bad, UnexpectedToken):
        found = "the end" if _at_the_end(bad) else repr(str(bad.token))[:_SHOWN]
        expected = bad.accepts or bad.expected
    else:
        return "this cannot be read"
    words = [word for name, word in _WORDS.items() if name in (expected or ())]
    words += sorted(name.lower() for name in expected or () if name not in _WORDS)
    facts = f". Facts are {KNOWN}" if "PATH" in (expected or ()) else ""
    return f"{found} does not fit here; expected {', '.join(words)}{facts}"
