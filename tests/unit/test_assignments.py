"""What the director signs for a device is read back as it was said, and never misread."""

from dataclasses import replace
from typing import Any

import pytest

from sprat_shared.errors import UntrustedUpdate
from sprat_shared.ids import new_id
from sprat_shared.trust.assignments import Assigned
from sprat_shared.trust.policy import DevicePolicy, Wanted

SAID = Assigned(device=new_id(), model="digits", release=3, assignment=7, path=("digits/3/from-2",))
AHEAD = replace(SAID, prefetch=True, policy=DevicePolicy(alpha=0.01, fetch=Wanted(unmetered=True)))


@pytest.mark.parametrize("said", [SAID, replace(SAID, path=()), replace(SAID, profile="camera-s"), AHEAD])
def test_an_assignment_is_read_as_it_was_said(said: Assigned) -> None:
    assert said.full == "digits/3/full"
    assert Assigned.from_custom(said.full, said.to_custom()) == said


def test_what_later_versions_add_is_passed_over() -> None:
    custom = SAID.to_custom()
    custom["sprat"]["plans"] = {"sharing": "sha256:00"}
    assert Assigned.from_custom(SAID.full, custom) == SAID


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("digits/3/from-2", {}),
        ("digits/3", {}),
        ("Digits/3/full", {}),
        ("digits/0/full", {}),
        ("digits/03/full", {}),
        ("digits/3/full", {"device": "me"}),
        ("digits/3/full", {"device": None}),
        ("digits/3/full", {"assignment": 0}),
        ("digits/3/full", {"assignment": True}),
        ("digits/3/full", {"assignment": "7"}),
        ("digits/3/full", {"path": "digits/3/from-2"}),
        ("digits/3/full", {"path": [2]}),
        ("digits/3/full", {"profile": 5}),
        ("digits/3/full", {"prefetch": 1}),
        ("digits/3/full", {"policy": {"alpha": 0.6}}),
        ("digits/3/full", {"policy": {"alfa": "0.01"}}),
    ],
)
def test_what_is_missing_or_wrong_is_refused_by_name(path: str, changes: dict[str, Any]) -> None:
    custom = SAID.to_custom()
    custom["sprat"] |= changes
    with pytest.raises(UntrustedUpdate, match="assignment"):
        Assigned.from_custom(path, custom)


@pytest.mark.parametrize("field", ["device", "assignment", "path"])
def test_no_field_may_be_missing(field: str) -> None:
    custom = SAID.to_custom()
    del custom["sprat"][field]
    with pytest.raises(UntrustedUpdate, match=field):
        Assigned.from_custom(SAID.full, custom)
