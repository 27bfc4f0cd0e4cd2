"""Plans to share layers, as operators ask for and see them."""

import json
from pathlib import Path
from typing import Any

import pytest
from answering_server import answering
from typer.testing import CliRunner

from sprat_client.cli.app import app
from sprat_client.cli.scores import draw, draw_front
from sprat_shared.errors import InvalidInput

ID = "01a22ae8-4778-71c8-9c42-0219063f6002"
TUNED = {"trained": True, "agreement_before": 0.9, "agreement_after": 0.975}
UNTUNED = {"trained": False, "agreement_before": 0.4, "agreement_after": None}
UNTUNED |= {"why": "no-recipe", "detail": "meter was registered as ONNX"}
LEVEL = {"form": "tie", "saved_bytes": 2048, "bound": 0.0118, "compared": 360, "disagreed": 0}
LEVELS = [{**LEVEL, "level": 1, "finetune": TUNED}, {**LEVEL, "level": 2}]
PLAN: dict[str, Any] = {
    "id": ID,
    "state": "applied",
    "stale_reason": None,
    "asked": {"models": {"face": 1, "gate": 3}},
    "result": {
        "saved_bytes": 2048,
        "total_bytes": 5376,
        "fits": True,
        "chosen": [{"recipient": "gate", "base": 3, "donor": "face", "donor_release": 1, "levels": LEVELS}],
        "left_out": [{"recipient": "meter", "why": "nothing certifies within 2.00%", "finetune": [UNTUNED]}],
    },
    "releases": [{"model": "gate", "release": 4, "level": 1}],
    "rollouts": [{"id": "r1", "model": "gate", "release": 4, "state": "running"}],
    "standing": [{"model": "gate", "levels": [{"level": 1, "release": 4, "devices": 7}], "nothing": 2}],
    "created_at": "2026-11-30T05:00:00Z",
}
PREVIEW = {
    "plan": ID,
    "recipients": [
        {
            "model": "gate",
            "base": 3,
            "donor": "face",
            "donor_release": 1,
            "levels": [{"level": 1, **LEVEL, "finetuned": True, "update_bytes": 90, "full_bytes": 900}],
            "where": "model.gate.active = 3",
            "devices": 7,
            "bytes_to_devices": 630,
        }
    ],
    "obstacles": ["gate@4 is newer"],
}
MATRIX = {"models": ["face", "gate"], "agreement": [[None, 0.995], [0.5, None]], "cka": [[None, 0.98], [None, None]]}


def said(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[str, list[tuple[str, str, Any]]]:
    """Return what a command prints, and what it asked."""
    asked: list[tuple[str, str, Any]] = []

    def answer(method: str, path: str, body: object) -> object:
        asked.append((method, path.partition("/api/v1")[2] or path, body))
        job = {"id": ID, "kind": "plan-sharing", "state": "queued"}
        if path.split("?", maxsplit=1)[0].endswith("/plans"):
            return {"job": job} if method == "POST" else {"items": [PLAN], "next": None}
        if path.endswith("/refit"):
            return {"job": job}
        if "/datasets" in path:
            return {"items": [{"digest": "sha256:" + "1" * 64, "name": "line"}], "next": None}
        return PREVIEW if path.endswith("/preview") else PLAN

    with answering(monkeypatch, answer):
        result = CliRunner().invoke(app, ["sharing", *words], catch_exceptions=False)
    return result.stdout, asked


def test_a_plan_is_told_with_what_is_proven_and_who_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    text, _ = said(monkeypatch, "status", ID[:8])
    assert "gate@3 on face@1: tie" in text
    assert "at most 1.18% of answers change (0 of 360 did)" in text
    assert "meter is left out: nothing certifies" in text
    assert "  level 1 is fine-tuned: 90.00% of answers agreed before, 97.50% after" in text
    assert "level 2" not in text
    assert "one of its levels is not fine-tuned (no-recipe): meter was registered as ONNX; 40.00% of answers" in text
    assert "rollout r1 of gate@4 is running" in text
    assert "devices of gate: 7 at level 1, 2 share nothing" in text
    table, _ = said(monkeypatch, "status")
    assert "face@1, gate@3" in table


def test_a_preview_says_bytes_devices_and_what_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    text, _ = said(monkeypatch, "preview", ID)
    assert "level 1: tie, fine-tuned, saves" in text
    assert "7 devices, 630 B in all; where model.gate.active = 3" in text
    assert "in the way: gate@4 is newer" in text


def test_a_question_is_sent_as_it_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["plan", "face", "gate", "--dataset", "line", "--budget", "0.1", "--budget", "gate=0.02", "--no-wait"]
    _, asked = said(monkeypatch, *words, "--memory", "2kB")
    (body,) = [body for method, _, body in asked if method == "POST"]
    wanted = {
        "models": ["face", "gate"],
        "budget": 0.1,
        "budgets": {"gate": 0.02},
        "memory_bytes": 2000,
        "finetune": False,
    }
    assert {key: _read(body)[key] for key in wanted} == wanted
    _, asked = said(monkeypatch, "plan", "face", "gate", "--dataset", "line", "--finetune", "--no-wait")
    assert [_read(body)["finetune"] for method, _, body in asked if method == "POST"] == [True]
    with pytest.raises(InvalidInput, match="it fine-tunes where that plan did"):
        said(monkeypatch, "plan", "--refit", ID, "--finetune")
    _, asked = said(monkeypatch, "plan", "--refit", ID, "--no-wait")
    assert asked[-1][1].endswith(f"/{ID}/refit")


def _read(body: Any) -> dict[str, Any]:
    read: dict[str, Any] = body if isinstance(body, dict) else json.loads(body)
    return read


def test_the_matrix_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(MATRIX, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_what_each_bound_would_save_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = {
        "total_bytes": 1000,
        "saved_bytes": 400,
        "front": [{"bound": 0.01, "saved_bytes": 200}, {"bound": 0.03, "saved_bytes": 500}],
        "chosen": [{"levels": [{"bound": 0.02}]}],
    }
    draw_front(result, {"face": 0.05, "gate": 0.02}, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    draw_front({**result, "front": [], "chosen": []}, {}, tmp_path / "empty.png")
    with pytest.raises(InvalidInput, match="--png"):
        draw_front(result, {}, tmp_path / "none" / "front.png")


def test_a_drawing_cannot_be_had_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="leave out --no-wait"):
        said(monkeypatch, "plan", "--refit", ID, "--no-wait", "--png", "x.png")
