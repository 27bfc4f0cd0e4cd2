"""`sprat doctor`: what will need someone soon, and what is wrong now."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.keys import waiting
from sprat_client.cli.output import emit_table
from sprat_shared.errors import AccessDenied, SpratError

if TYPE_CHECKING:
    from sprat_client.api import CustodyView, RoleView

_MOST_SKEW: Final = timedelta(seconds=30)

Level = Literal["ok", "soon", "wrong"]


class Unwell(SpratError):
    """`sprat doctor` found something that is wrong now, or with `--strict` something that will be."""

    code = "doctor.unwell"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do."""

    check: str
    level: Level
    detail: str


def doctor(
    ctx: typer.Context,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Fail for what will need someone soon, too.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Check the server, your clock and token, and the life of all signed metadata.

    `wrong` needs someone now, `soon` before a date. Exit code 1 when anything is wrong.

    Example: sprat doctor --json
    """
    findings = list(_look(ctx))
    columns = {
        "check": lambda one: one["check"],
        "is": lambda one: one["level"],
        "detail": lambda one: one["detail"],
    }
    emit_table([asdict(one) for one in findings], columns, as_json=json_, empty="")
    bad = [one.check for one in findings if one.level == "wrong" or (strict and one.level == "soon")]
    if bad:
        raise Unwell(f"{', '.join(bad)}: see above")


def _look(ctx: typer.Context) -> Iterator[Finding]:
    before = datetime.now(UTC)
    try:
        with connect(ctx) as client:
            custody = client.keys.show()
    except AccessDenied as refused:
        yield Finding("server", "ok", "it answers")
        yield Finding("token", "wrong", str(refused))
        return
    except SpratError as failed:
        yield Finding("server", "wrong", str(failed))
        return
    after = datetime.now(UTC)
    yield Finding("server", "ok", f"answers within {(after - before).total_seconds():.2f} s")
    yield Finding("token", "ok", "it is accepted")
    yield from judge(custody, before + (after - before) / 2)


def judge(custody: "CustodyView", here: datetime) -> Iterator[Finding]:
    """Judge what the server says against the clock of this machine. Pure."""
    now = datetime.fromisoformat(custody["now"])
    skew = now - here
    apart = (
        f"the server's clock is {abs(skew.total_seconds()):.1f} s {'ahead of' if skew > timedelta() else 'behind'} ours"
    )
    yield Finding("clock", "ok" if abs(skew) <= _MOST_SKEW else "wrong", apart)
    for role in custody["roles"]:
        yield _judge_role(role, now)
    for draft in custody["waiting"]:
        yield Finding(f"signatures of {draft['role']}", "soon", waiting(draft))


def _judge_role(role: "RoleView", now: datetime) -> Finding:
    expires, renew = datetime.fromisoformat(role["expires_at"]), datetime.fromisoformat(role["renew_at"])
    left = f"expires in {(expires - now) / timedelta(days=1):.1f} days"
    if expires <= now:
        return Finding(role["role"], "wrong", f"expired at {expires:%Y-%m-%d %H:%M} UTC: devices refuse everything new")
    if now < renew:
        return Finding(role["role"], "ok", left)
    if role["online"]:
        late = "the server should have signed it again; its log says why not"
        return Finding(role["role"], "wrong" if now > renew + timedelta(hours=1) else "ok", f"{left}; {late}")
    holders = ", ".join(key["holder"] or key["keyid"][:12] for key in role["keys"])
    return Finding(role["role"], "soon", f"{left}; {role['threshold']} of {holders} must sign it: sprat keys sign")
