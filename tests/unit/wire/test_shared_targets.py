"""What is signed of a release that uses layers of another model."""

from typing import Any

import pytest
from securesystemslib.formats import encode_canonical

from sprat_shared.errors import UntrustedUpdate
from sprat_shared.trust.targets import Shares, UpdateTarget

DIGEST = f"sha256:{'a' * 64}"
SHARES = Shares(base=2, weights=DIGEST, donor="face", budget_ppm=50_000)


def target(shares: Shares | None = SHARES) -> UpdateTarget:
    return UpdateTarget(
        model="gate", release=5, weights=DIGEST, graph=DIGEST, base_release=2, base_weights=DIGEST, shares=shares
    )


def test_what_a_release_shares_is_signed_and_read_back() -> None:
    assert UpdateTarget.from_custom(target().path, target().to_custom()) == target()
    assert encode_canonical(target().to_custom())  # TUF signs no fractions
    assert target().shares is not None
    assert SHARES.budget == 0.05


def test_a_release_by_itself_says_nothing_of_sharing_as_before() -> None:
    custom = target(None).to_custom()
    assert "shares" not in custom["sprat"]
    assert UpdateTarget.from_custom(target().path, custom).shares is None


@pytest.mark.parametrize(
    ("member", "wrong"),
    [
        *[("base", value) for value in (0, -1, 5, 6, True, "2", None, 2.0)],
        *[("weights", value) for value in ("a" * 64, None, 7)],
        *[("donor", value) for value in ("gate", "Face", "", "a" * 64, None, 3)],
        *[("budget_ppm", value) for value in (0, -1, 1_000_001, 0.05, True, "5", None)],
    ],
)
def test_what_is_out_of_bounds_is_refused(member: str, wrong: Any) -> None:
    custom = target().to_custom()
    custom["sprat"]["shares"][member] = wrong
    with pytest.raises(UntrustedUpdate):
        UpdateTarget.from_custom(target().path, custom)


@pytest.mark.parametrize("wrong", [[], "face", 5, {"base": 2}, True])
def test_what_is_no_description_is_refused(wrong: Any) -> None:
    custom = target().to_custom()
    custom["sprat"]["shares"] = wrong
    with pytest.raises(UntrustedUpdate):
        UpdateTarget.from_custom(target().path, custom)


def test_an_agent_that_does_not_know_of_a_member_reads_on() -> None:
    custom = target().to_custom()
    custom["sprat"]["of-times-to-come"] = {"x": 1}
    assert UpdateTarget.from_custom(target().path, custom) == target()
