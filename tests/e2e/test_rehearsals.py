"""A small played fleet against a real server: what `sprat simulate fleet` promises."""

from typing import Any

import pytest
import tiny_models
from house import House

from sprat_shared.errors import NotFound

MODEL = "rehearsed"
DEVICES = 60


@pytest.fixture(scope="module")
def known(house: House) -> House:
    """The house, with two releases of a model."""
    house.register(MODEL)
    house.release(MODEL, tiny_models.truth())
    return house


def rehearse(house: House, trouble: str, *more: str, codes: tuple[int, ...] = (0,)) -> Any:
    words = ["simulate", "fleet", f"{MODEL}@2", "--devices", str(DEVICES), "--trouble", trouble, "--interval-s", "0.3"]
    return house.shell.one(*words, "--silence-s", "4", *more, codes=codes)


def test_a_good_release_reaches_every_played_device(known: House) -> None:
    done = rehearse(known, "none", "--waves", "20,100%")
    assert (done["state"], done["exposed"]) == ("succeeded", DEVICES)
    assert done["committed"] == done["serving"]["2"] == DEVICES - done["declined"]
    assert done["declined"] < DEVICES / 10  # its own test refuses a harmless release now and then


@pytest.mark.parametrize("trouble", ["worse", "crashes", "silence"])
def test_a_bad_release_is_stopped_and_every_device_is_back(known: House, trouble: str) -> None:
    done = rehearse(known, trouble, "--waves", "20,40,100%", "--patience-s", "60")
    assert done["state"] in {"halted", "held"}
    assert 2 <= done["exposed"] <= 40
    assert done["serving"] == {"1": DEVICES - done["silent"]}
    assert (done["silent"] > 0) is (trouble == "silence")
    assert all(device["revoked_at"] for device in known.shell.all("device", "list") if "played" in device["name"])


def test_a_rehearsal_that_ends_otherwise_than_it_must_says_so(known: House) -> None:
    failed = known.shell.run("simulate", "fleet", f"{MODEL}@2", "--trouble", "boredom", "--devices", "1")
    assert failed.returncode == NotFound.exit_code
    assert "none, worse, worse-on-one-profile" in failed.stderr
    small = ("--trouble", "worse", "--devices", "3", "--interval-s", "0.1")
    unproven = known.shell.run("simulate", "fleet", f"{MODEL}@2", *small)
    assert unproven.returncode == 1
    assert "it succeeded" in unproven.stderr  # three devices prove nothing
