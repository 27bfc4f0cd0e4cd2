"""Plans to share layers with fine-tuned levels, made by the job: what agrees better is kept, what cannot says why."""

from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from fastapi import FastAPI
from fleet_calls import made
from http_calls import Api
from sharing_calls import PLANS, House, runner, tiny_models
from training_calls import finished

from sprat_server.db.blobs import Blobs
from sprat_server.flows import finetuned_levels, tasks_sharing
from sprat_server.settings import Settings
from sprat_server.sharing import finetune
from sprat_server.sharing.offers import parted
from sprat_shared.evidence.certificate import certify_answers
from sprat_shared.wire.safetensors import SafetensorsFile
from sprat_shared.wire.tensors import Array

APART = 0.08  # siblings so far apart that a tie changes some answers
BUDGET = 0.4


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of a server that runs the tests' recipe."""
    return Settings(
        database_url=database_url, data_dir=tmp_path / "data", recipe_packages=("tiny_recipe",), auto_sign="*"
    )


@pytest.fixture
def house(app: FastAPI, settings: Settings, admin: Api, blobs: Blobs, tmp_path: Path) -> House:
    return House(app, runner(app, settings, blobs), admin, blobs, tmp_path, apart=APART, recipe=True)


def digests(house: House, blob: str) -> dict[str, str]:
    with house.blobs.local(blob) as path, SafetensorsFile(path) as file:
        return {spec.name: file.sha256(index).hex() for index, spec in enumerate(file.table)}


def levels(plan: dict[str, Any]) -> list[dict[str, Any]]:
    (one,) = plan["result"]["chosen"]
    found: list[dict[str, Any]] = one["levels"]
    return found


def require_untrained(house: House, why: str, detail: str) -> None:
    """No level is trained, and each is what it is without fine-tuning."""
    plain, tuned = (levels(house.planned(budget=BUDGET, levels=1, finetune=asked)) for asked in (False, True))
    assert [level["weights"] for level in tuned] == [level["weights"] for level in plain]
    for level in tuned:
        told = level["finetune"]
        assert (told["trained"], told["why"]) == (False, why)
        assert detail in told["detail"]


def test_levels_that_agree_better_for_their_training_are_kept_and_say_so(house: House) -> None:
    without, plan = (house.planned(budget=BUDGET, finetune=asked) for asked in (False, True))
    assert not [level for level in levels(without) if "finetune" in level]
    (one,) = plan["result"]["chosen"]
    releases = {name: f"/api/v1/models/{name}/releases/1" for name in (one["donor"], one["recipient"])}
    donor, recipient = (digests(house, made(house.admin.get(url))["weights_blob"]) for url in releases.values())
    for plain, level in zip(levels(without), levels(plan), strict=True):
        told, tensors = level["finetune"], digests(house, level["weights_blob"])
        assert told["trained"]
        assert told["agreement_after"] > told["agreement_before"]
        assert told["changed"] == ["2.bias", "2.weight"]
        assert tensors["donor/0.weight"] == donor["0.weight"]
        assert tensors["0.bias"] == recipient["0.bias"]
        assert all(tensors[name] != recipient[name] for name in told["changed"])
        assert (level["way"], level["saved_bytes"]) == (plain["way"], plain["saved_bytes"])
        thin = 2048 - level["saved_bytes"]  # a residual is new as well
        assert told["new_bytes"] == 4 * (4 * 32 + 4) + thin
    first = [levels(each)[0] for each in (without, plan)]
    assert first[1]["disagreed"] < first[0]["disagreed"], "inputs that neither trained nor chose anything say so too"

    shown = made(house.admin.get(f"{PLANS}/{plan['id']}/preview"))
    assert all(level["finetuned"] for level in shown["recipients"][0]["levels"])
    newest = house.applied(plan, start=False)["releases"][-1]
    release = made(house.admin.get(f"/api/v1/models/{newest['model']}/releases/{newest['release']}"))
    assert release["weights"] == first[1]["weights"]
    assert release["metrics"]["sharing"]["finetune"] == first[1]["finetune"]

    asked = house.admin.post(f"{PLANS}/{plan['id']}/refit")
    done = finished(house.worker, house.admin, UUID(asked.json()["job"]["id"]))
    again = made(house.admin.get(f"{PLANS}/{done['result']['plan']}"))
    assert again["asked"]["finetune"] is True
    assert [level["weights"] for level in levels(again)] == [level["weights"] for level in levels(plan)]


def test_nothing_is_trained_on_inputs_that_choose_or_certify(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Array] = []
    real = finetuned_levels.finetuned

    def watched(way: Any, student: Any, inputs: Array, **how: Any) -> Any:
        seen.append(inputs)
        return real(way, student, inputs, **how)

    monkeypatch.setattr(finetuned_levels, "finetuned", watched)
    house.planned(budget=BUDGET, finetune=True, levels=1, seed=6)
    (trained_on,) = seen
    parts = parted(tiny_models.samples(900, seed=4)["inputs"], 6)
    assert np.array_equal(trained_on, parts.fit)


def test_a_model_without_a_recipe_is_said_so(
    app: FastAPI, settings: Settings, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    house = House(app, runner(app, settings, blobs), admin, blobs, tmp_path, apart=APART)
    require_untrained(house, "no-recipe", "was registered as ONNX; register it with a recipe")


def test_a_recipe_that_may_not_run_is_said_so(house: House, app: FastAPI, settings: Settings, blobs: Blobs) -> None:
    house.worker = runner(app, settings.model_copy(update={"recipe_packages": ()}), blobs)
    require_untrained(house, "recipe-fails", "SPRAT_RECIPE_PACKAGES names none")


def test_a_level_that_training_does_not_better_stays_as_it_was(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "LEARNING_RATE", 0.0)
    require_untrained(house, "no-better", "of the inputs that choose agree")


def test_a_level_that_agrees_on_all_inputs_is_not_trained(
    app: FastAPI, settings: Settings, admin: Api, blobs: Blobs, tmp_path: Path
) -> None:
    house = House(app, runner(app, settings, blobs), admin, blobs, tmp_path, apart=1e-6, recipe=True)
    require_untrained(house, "agrees-already", "on all inputs that choose")


def test_who_is_left_out_says_what_fine_tuning_was_good_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_certifies = certify_answers([0] * 9, [1] * 9)
    monkeypatch.setattr(tasks_sharing, "certified", lambda *_, **__: nothing_certifies)
    plan = house.planned(budget=BUDGET, finetune=True, levels=2)
    (left,) = plan["result"]["left_out"]
    assert [told["trained"] for told in left["finetune"]] == [True, True]
    assert "finetune" not in house.planned(budget=BUDGET)["result"]["left_out"][0]


def test_what_is_only_measured_has_nothing_to_train(house: House) -> None:
    status, code, text = house.refused(analyze=True, finetune=True)
    assert (status, code) == (422, "request.invalid")
    assert "leave out one of them" in text
