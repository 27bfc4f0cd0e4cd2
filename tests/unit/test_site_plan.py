"""A site's plan, its signed target and its reports: read back as they were, refused by name where they are wrong."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from sprat_shared.errors import InvalidInput, UntrustedUpdate
from sprat_shared.protocol.report import read_report
from sprat_shared.protocol.site_plan import Member, PlannedModule, PlannedTask, SitePlan
from sprat_shared.protocol.site_report import PlanState, SiteReport
from sprat_shared.tasks.graph import TaskGraph
from sprat_shared.trust.site_targets import Phase, SignedPlan, is_site_path

CAMERA, BOX = UUID(int=1), UUID(int=2)
SEE = {
    "inputs": {"image": "float32[n, 4]"},
    "steps": {"see": {"model": "vision", "inputs": {"image": "image"}}},
    "outputs": {"features": "see.features"},
}


def a_plan() -> SitePlan:
    return SitePlan(
        site="line-3",
        number=7,
        expires_at=datetime(2027, 1, 1, tzinfo=UTC),
        authority=b"authority",
        members=(
            Member(device=CAMERA, name="camera", address="10.0.0.5:8478", certificate=b"one"),
            Member(device=BOX, name="box", address="[fd00::6]:8478", certificate=b"two"),
        ),
        modules={
            "vision": PlannedModule(model="vision", release=4, release_id=f"sha256:{'1' * 64}", hosts=(BOX, CAMERA)),
            "small": PlannedModule(model="small", release=1, release_id=f"sha256:{'2' * 64}", hosts=(CAMERA,)),
        },
        tasks={
            "see": PlannedTask(
                graph=TaskGraph.of(SEE),
                deadline_s=0.5,
                fallback=TaskGraph.of(_by("small")),
                routes={CAMERA: {"see": (BOX, CAMERA)}},
            )
        },
    )


def _by(model: str) -> dict[str, Any]:
    return {**SEE, "steps": {"see": {"model": model, "inputs": {"image": "image"}}}}


def test_a_plan_is_what_it_was_after_its_bytes() -> None:
    plan = a_plan()
    assert SitePlan.from_bytes(plan.to_bytes()) == plan
    assert SitePlan.from_bytes(plan.to_bytes()).to_bytes() == plan.to_bytes()


def test_a_member_that_only_asks_needs_no_address() -> None:
    phone = Member(device=UUID(int=7), name="phone", address=None, certificate=b"three")
    plan = replace(a_plan(), members=(*a_plan().members, phone))
    assert SitePlan.from_bytes(plan.to_bytes()) == plan
    with pytest.raises(InvalidInput, match="phone has no address"):
        phone.host  # noqa: B018 - raises


def test_a_plan_says_who_holds_what_and_where_it_is_reached() -> None:
    plan = a_plan()
    assert [one.model for one in plan.modules_of(CAMERA)] == ["small", "vision"]
    assert [one.model for one in plan.modules_of(BOX)] == ["vision"]
    assert plan.member[BOX].host == ("fd00::6", 8478)
    assert plan.title == "line-3/7"
    assert plan.server_name == "7.line-3.plan.sprat"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("plan",), 0, "'plan' must be 1 to"),
        (("site",), "Line 3", "cannot name a model"),
        (("expires_at",), "tomorrow", "is no time"),
        (("authority",), "§", "authority is not base64"),
        (("authority",), "", "authority takes 1 to 4096 bytes"),
        (("members",), [], "1 to 200 members, not 0"),
        (("members", 0, "device"), str(BOX), "a member is there twice"),
        (("members", 0, "address"), "10.0.0.5", "is no address"),
        (("members", 0, "address"), "10.0.0.5:70000", "is no address"),
        (("members", 0, "address"), None, "module small is on camera, which has no address"),
        (("modules", 0, "hosts"), [], "is of another name, or on no device"),
        (("modules", 0, "hosts"), ["x"], "are not device ids"),
        (("modules", 0, "hosts"), [str(UUID(int=9))], "which is no member"),
        (("modules", 0, "model"), "vision", "a module is there twice"),
        (("modules", 0, "id"), "sha256:12", "is not a digest"),
        (("tasks", "see", "deadline_s"), 0, "0 to 3,600 s"),
        (("tasks", "see", "graph", "steps", "see", "model"), "sound", "task see uses sound, which is on no device"),
        (("tasks", "see", "routes"), {str(CAMERA): {"look": [str(BOX)]}}, "leads nowhere: ['look']"),
        (("tasks", "see", "routes"), {str(CAMERA): {"see": [str(UUID(int=9))]}}, "leads nowhere: ['see']"),
        (("tasks", "see", "routes"), {str(CAMERA): {"see": [str(BOX), str(BOX)]}}, "leads nowhere: ['see']"),
        (("tasks", "see", "routes"), {str(CAMERA): {"see": str(BOX)}}, "are not device -> step -> devices"),
        (("tasks", "see", "routes"), {"camera": {}}, "are not device -> step -> devices"),
        (("tasks", "see", "fallback", "inputs", "image"), "float32[n, 5]", "its fallback has other inputs or outputs"),
    ],
)
def test_a_plan_that_is_wrong_is_refused_by_name(path: tuple[str | int, ...], value: Any, said: str) -> None:
    body = json.loads(a_plan().to_bytes())
    at = body
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(InvalidInput) as bad:
        SitePlan.from_bytes(json.dumps(body).encode())
    assert said in str(bad.value)


def test_a_plan_that_is_too_large_is_not_read() -> None:
    with pytest.raises(InvalidInput, match="are more than"):
        SitePlan.from_bytes(b" " * ((4 << 20) + 1))


def test_a_signed_plan_is_told_from_an_assignment_by_its_path() -> None:
    signed = SignedPlan(device=BOX, site="line-3", number=7, phase=Phase.HOLD)
    assert is_site_path(signed.path)
    assert not is_site_path("site/3/full")
    assert SignedPlan.from_custom(signed.path, signed.to_custom()) == signed


@pytest.mark.parametrize("path", [".site/line-3/0", ".site/line-3", ".site/line-3/07", ".site/Line/7", "site/line-3/7"])
def test_a_path_that_is_no_plan_s_is_refused(path: str) -> None:
    with pytest.raises(UntrustedUpdate, match="cannot be read"):
        SignedPlan.from_custom(path, {"sprat": {"device": str(BOX), "phase": "hold"}})


@pytest.mark.parametrize("said", [None, {}, {"device": "box", "phase": "hold"}, {"device": str(BOX), "phase": "go"}])
def test_a_signed_plan_that_cannot_be_read_is_refused(said: Any) -> None:
    with pytest.raises(UntrustedUpdate, match="cannot be read"):
        SignedPlan.from_custom(".site/line-3/7", {"sprat": said} if said is not None else None)


def test_a_report_is_what_it_was_after_json() -> None:
    ready = SiteReport(device=BOX, sequence=3, site="line-3", plan=7, state=PlanState.READY, agent="1")
    refused = replace(ready, state=PlanState.REFUSED, error_code="site.no-room", error_detail="2 MB lack")
    for report in (ready, refused):
        assert read_report(report.to_json()) == report
    for wrong in (replace(ready, error_code="x"), replace(refused, error_code=None)):
        with pytest.raises(InvalidInput, match="error_code"):
            SiteReport.from_json(wrong.to_json())
