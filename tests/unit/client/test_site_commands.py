"""`sprat task` and `sprat site`: files read with the lines of what is wrong, what is sent, and what is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from answering_server import answering
from typer.testing import CliRunner

from sprat_client.cli.app import app
from sprat_client.cli.site_files import read_modules
from sprat_client.cli.task_files import read_tasks
from sprat_shared.errors import InvalidInput, SpratError

FILE = """\
find:
  inputs: {image: "float32[n, 8]", words: "int64[n, 4]"}
  steps:
    see:
      model: vision
      inputs: {image: image}
    judge:
      model: head
      inputs:
        a: see.out
        b: words
  outputs:
    score: judge.out
  fallback:
    steps:
      alone: {model: small, inputs: {x: image}}
    outputs: {score: alone.out}
"""
SITE: dict[str, Any] = {
    "name": "line-3",
    "serving": None,
    "under_way": None,
    "devices": [],
    "hold_s": 3600.0,
    "switch_s": 600.0,
    "auto_repair": False,
    "pays_within_s": 86400.0,
    "uplink_mbit": None,
}
IDLE = {"fetching": None, "turn_at": None}
PLAN: dict[str, Any] = {
    "site": "line-3",
    "number": 4,
    "state": "switching",
    "reason": None,
    "tasks": {"find": {"routes": {"desk": {"see": ["box", "desk"]}}}},
    "modules": [{"model": "vision", "release": 2, "id": "sha256:0", "hosts": ["box", "desk"], "memory_bytes": 1}],
    "placement": {"proven": "within", "gap": 0.05, "tasks": {"find": 0.2}},
    "tests": [],
    "cause": "asked",
    "parent": None,
    "improvement": None,
    "steps": [],
    "wished_by": None,
    "members": [{"name": "box", "address": "10.0.0.2:8478", "state": "ready", "phase": "serve"} | IDLE],
    "warnings": ["desk has not said that it serves"],
    "deadline_at": "2026-11-30T12:00:00Z",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "find.yaml"
    made.write_text(FILE, encoding="utf-8")
    return made


def run(monkeypatch: pytest.MonkeyPatch, answer: Any, *words: str) -> tuple[Any, list[tuple[str, str, Any]]]:
    asked: list[tuple[str, str, Any]] = []

    def answered(method: str, path: str, body: object) -> object:
        asked.append((method, path.removeprefix("/api/v1").partition("?")[0], body))
        return answer(method, path)

    with answering(monkeypatch, answered):
        return CliRunner().invoke(app, list(words)), asked


def job(error: dict[str, str] | None = None, result: Any = None) -> dict[str, Any]:
    done = {"id": "0198c0de-0000-7000-8000-000000000000", "kind": "check-task", "result": result, "error": error}
    return done | {"state": "failed" if error else "succeeded", "progress": {"step": "", "fraction": 1, "message": ""}}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("edge image -> see.image: float32[n, 8] comes, and vision takes float32[n, 9]", 6),
        ("edge see.nose -> judge.a: see gives see.out", 10),
        ("edge judge.nose -> score: judge gives judge.out", 13),
        ("step judge: input b of head is not connected; it takes a float32[m, 3]", 11),
        ("step see: no module vision", 4),
        ("fallback: edge alone.out -> score: float32[n, 3], not float32[n, 1]", 17),
        ("body.outputs.score: too long", 13),
        ("nothing of the file", 1),
    ],
)
def test_an_error_is_said_with_the_line_of_its_edge(file: Path, text: str, line: int) -> None:
    assert read_tasks(file).located("find", SpratError(f"task find: {text}")).startswith(f"{file}:{line}: ")


def test_a_task_is_sent_as_the_api_takes_it_and_told_with_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    def answer(_method: str, path: str) -> object:
        if path.endswith("/tasks"):
            return {"job": job()}
        return {"outputs": {"score": "judge.out"}} if "/tasks/" in path else job()

    done, asked = run(monkeypatch, answer, "task", "create", str(file), "--replace")
    assert done.stdout == "task find: image, words -> score\n"
    body = asked[0][2]
    assert (body["name"], body["replace"], list(body["steps"])) == ("find", True, ["see", "judge"])


def test_what_a_worker_refuses_is_said_with_its_line(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    error = {"code": "task.invalid", "message": "task find: edge see.out -> judge.a: float32[n] comes"}
    answer = lambda _method, path: {"job": job(error)} if path.endswith("/tasks") else job(error)  # noqa: E731
    done, _ = run(monkeypatch, answer, "task", "create", str(file))
    assert done.exit_code != 0
    assert f"{file}:10: edge see.out -> judge.a: float32[n] comes" in str(done.exception or done.stderr)


SPLIT = ("task", "split", "find", "--recipe", "shop.nets:build", "--example", "image=1,3,32,32")


def test_a_module_to_be_taken_apart_is_sent_whole_and_told_by_its_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = tmp_path / "find.safetensors"
    weights.write_bytes(b"{}")  # the answering server reads JSON
    new = {"release": 1, "reused": False, "state": "pending-signatures"}
    used = {"release": 3, "reused": True, "state": "published"}
    done = job(result={"models": {"vision": used, "head": new}, "difference": 2e-7, "unused": ["spare"]})

    def answer(_method: str, path: str) -> object:
        return {"job": done} if path.endswith("/split") else {"digest": "sha256:0"} if "blobs" in path else done

    words = [*SPLIT, "--example", "words=1,8:I64", "--part", "vision=image_encoder", "--rest", "head"]
    told, asked = run(monkeypatch, answer, *words, "--weights", str(weights), "--config", '{"width": 3}')
    assert told.stdout == (
        "task find: 2.0e-07 of the largest value away from the module\n"
        "  head@1 is registered; pending-signatures, see: sprat release sign head@1\n"
        "  vision@3 was there, and is used\n"
        "  in no model, as nothing depends on it: spare\n"
    ), told.stderr
    (body,) = [body for _, path, body in asked if path == "/tasks/split"]
    assert body == {
        "name": "find",
        "recipe": {"factory": "shop.nets:build", "config": {"width": 3}},
        "weights": body["weights"],
        "example": {
            "inputs": [
                {"name": "image", "shape": [1, 3, 32, 32], "dtype": "F32"},
                {"name": "words", "shape": [1, 8], "dtype": "I64"},
            ]
        },
        "parts": {"vision": "image_encoder"},
        "rest": "head",
        "deadline_s": 1.0,
        "replace": False,
    }


@pytest.mark.parametrize("parts", [["vision"], ["=eyes"], ["a=eyes", "a=ears"]])
def test_parts_that_are_no_pairs_or_twice_one_model_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: list[str]
) -> None:
    words = [word for part in parts for word in ("--part", part)]
    told, asked = run(monkeypatch, lambda *_: {}, *SPLIT, "--weights", str(tmp_path), *words)
    assert told.exit_code != 0
    assert "say MODEL=SUBMODULE, each model once" in str(told.exception or told.stderr)
    assert asked == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n", ":1: tasks are a mapping of names"),
        ("find: 3\n", ":1: find: expected a mapping, got 3"),
        ("find:\n  inputs: {x: y}\n  steps: []\n", ":3: find.steps: a task needs steps, by name"),
        ("find: {inputs: {x: y}}\n", ":1: find: a task needs outputs, by name"),
        ("a: {}\n---\nb: {}\n", "2 documents; write the tasks of one"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput) as bad:
        read_tasks(file)
    assert says in str(bad.value)
    assert bad.value.code == "task.bad-file"


def test_devices_of_a_site_are_said_with_what_is_known_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    site = SITE | {"under_way": 2}
    words = ["site", "create", "line-3", "--device", "camera:memory=400MB,up=20,delay=2,utilisation=0.5"]
    done, asked = run(monkeypatch, lambda *_: site, *words, "--device", "box", "--hold-s", "60", "--auto-repair")
    assert asked[0] == (
        "POST",
        "/sites",
        {
            "name": "line-3",
            "devices": [
                {"name": "camera", "memory_bytes": 400_000_000, "up_mbit": 20, "delay_ms": 2, "utilisation": 0.5},
                {"name": "box"},
            ],
            "auto_repair": True,
            "hold_s": 60,
        },
    )
    assert done.stdout.startswith("site line-3: no plan serves, plan 2 is under way")
    for wrong in ("camera:memory", "camera:colour=red", "camera:memory=1 stone", "camera:up=fast"):
        refused, _ = run(monkeypatch, lambda *_: site, "site", "create", "line-3", "--device", wrong)
        assert isinstance(refused.exception, InvalidInput) or refused.exit_code != 0, wrong


def test_a_plan_is_asked_for_by_hand_or_placed_by_a_file_or_by_measures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def answer(method: str, path: str) -> object:
        if method == "POST":
            return {"job": job(result={"plan": 4})}
        return PLAN if "/plans/" in path else job(result={"plan": 4})

    words = ["site", "plan", "line-3", "--task", "find", "--release", "vision=2"]
    done, asked = run(monkeypatch, answer, *words, "--hosts", "vision=box,desk", "--at", "find=camera,desk")
    body = asked[0][2]
    assert (body["hosts"], body["releases"], body["at"]) == (
        {"vision": ["box", "desk"]},
        {"vision": 2},
        {"find": ["camera", "desk"]},
    )
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "plan line-3/4 of find is switching, until 2026-11-30T12:00:00Z"
    assert lines[1] == "find 200.0 ms; within 5.0% of the best"
    assert "vision@2 box, desk" in lines
    assert "find@desk see: box, then desk" in lines
    assert "box 10.0.0.2:8478 ready serve -" in lines
    assert lines[-1] == "note: desk has not said that it serves"

    file = tmp_path / "site.yaml"
    file.write_text("modules: {vision: {memory: 350MB, file: 90MB, seconds: {box: 0.05}}}\n", encoding="utf-8")
    _, asked = run(monkeypatch, answer, *words, "--file", str(file), "--size", "n=8", "--rate", "find=2")
    body = asked[0][2]
    assert body["modules"] == {"vision": {"memory_bytes": 350_000_000, "seconds": {"box": 0.05}}} == read_modules(file)
    assert (body["sizes"], body["rates"]) == ({"n": 8}, {"find": 2.0})
    _, asked = run(monkeypatch, answer, *words, "--at", "find=box", "--on", "box,desk", "--on", "camera")
    body = asked[0][2]
    assert (body["on"], "hosts" in body, "modules" in body) == (["box", "desk", "camera"], False, False)
    for wrong in (
        ["--hosts", "vision=box", "--file", str(file)],
        ["--hosts", "vision=box", "--on", "box"],
        ["--hosts", "vision"],
    ):
        refused, _ = run(monkeypatch, answer, *words, *wrong)
        assert refused.exit_code != 0, wrong


def figure(value: float, origin: str, detail: str = "", **more: Any) -> dict[str, Any]:
    return {"value": value, "origin": origin, "detail": detail, "count": None, "p10": None, "p90": None} | more


LINK = {
    "up_mbit": figure(1000, "said"),
    "down_mbit": figure(48.83, "measured"),
    "delay_ms": figure(0, "assumed"),
}


def test_measures_say_of_each_figure_where_it_is_from_and_what_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    known = figure(0.05, "class", "2 of pi-4", count=2, p10=0.04, p90=0.0712)
    module = {"model": "vision", "release": 2, "profile": "pi-4"}
    way = {"device": "camera", "to": "box", "said_at": "2026-11-30T12:00:00Z", "received": None}
    found = {
        "site": "line-3",
        "modules": [
            module | {"device": "camera", "seconds": known, "memory_bytes": figure(350e6, "measured", "as loaded")},
            module | {"device": "desk", "profile": None, "seconds": None, "memory_bytes": None},
        ],
        "links": [{"device": "camera", **LINK}],
        "ways": [way | {"round_trip": {"median": 0.0125}, "sent": {"median": 4e-7}}],
    }
    done, asked = run(monkeypatch, lambda *_: found, "site", "measures", "line-3")
    assert asked == [("GET", "/sites/line-3/measures", None)]
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "vision@2 camera pi-4 0.05 (0.04 to 0.0712) class: 2 of pi-4 350.00 MB measured: as loaded" in lines
    assert "vision@2 desk - unknown - unknown -" in lines
    assert "camera 1000 Mbit/s said 48.8 Mbit/s measured 0 ms assumed" in lines
    assert "camera box 12.5 ms 20 Mbit/s -" in lines
    nothing = found | {"modules": [], "ways": []}
    done, _ = run(monkeypatch, lambda *_: nothing, "site", "measures", "line-3")
    assert done.stdout.startswith("no module was measured yet")


def test_status_is_of_what_is_under_way_else_of_what_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    for serving, moving, number in ((3, 4, 4), (3, None, 3)):
        site = {"name": "line-3", "serving": serving, "under_way": moving}
        done, asked = run(
            monkeypatch,
            lambda _, path, site=site: PLAN if "/plans/" in path else site,
            "site",
            "status",
            "line-3",
            "--json",
        )
        assert asked[-1][1] == f"/sites/line-3/plans/{number}"
        assert json.loads(done.stdout) == PLAN
    none, _ = run(monkeypatch, lambda *_: {"serving": None, "under_way": None}, "site", "status", "line-3")
    assert none.exit_code != 0
    for words in (["preview", "line-3"], ["apply", "line-3/x"], ["abort", "/4", "--reason", "x"]):
        refused, asked = run(monkeypatch, lambda *_: PLAN, "site", *words)
        assert (refused.exit_code != 0, asked) == (True, []), words


def test_a_preview_says_what_is_fetched_held_and_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    member = {"name": "box", "memory_bytes": 4_000_000_000, "holds_bytes": 1_000, "while_replacing_bytes": 2_000}
    member["fetches"] = [{"model": "vision", "release": 2, "bytes": 100, "starts_s": 3.0, "ends_s": 7.5}]
    shown = {"site": "line-3", "number": 4, "members": [member], "obstacles": ["plan 3 is holding"]}
    shown |= {"fetched_s": 7.5, "fetched_bound_s": 7.5, "steps": [], "figures": None}
    done, _ = run(monkeypatch, lambda *_: shown, "site", "preview", "line-3/4")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[1:] == [
        "box vision@2 100 B 1.00 kB 2.00 kB 4.00 GB",
        "from to device fetches",
        "3.0 s 7.5 s box vision@2",
        "all is fetched after 7.5 s; no order is faster",
        "in the way: plan 3 is holding",
    ]
    done, _ = run(monkeypatch, lambda *_: shown | {"fetched_bound_s": 6.0}, "site", "preview", "line-3/4")
    assert "after 7.5 s; no order takes less than 6.0 s" in done.stdout

    seconds = {"box": figure(0.05, "measured", "in service"), "desk": figure(0.2, "estimated", "from box")}
    vision = {"seconds": seconds, "memory_bytes": figure(350e6, "weights")}
    shown["figures"] = {"modules": {"vision": vision}, "links": {"box": LINK}}
    done, _ = run(monkeypatch, lambda *_: shown, "site", "preview", "line-3/4")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "vision box 0.05 measured: in service 350.00 MB weights" in lines
    assert "vision desk 0.2 estimated: from box" in lines
    assert "box 1000 Mbit/s said 48.8 Mbit/s measured 0 ms assumed" in lines
    assert lines[-1] == "in the way: plan 3 is holding"


def test_status_of_a_repair_says_what_the_full_plan_behind_it_would_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"plan": 5, "pays": False, "why": "it does not pay", "saved_s": 2.5, "pays_within_s": 86400}
    found |= {"moved_bytes": 90_000_000, "cost_s": 7200.0}
    plan = PLAN | {"cause": "repair", "parent": 3, "improvement": found}
    done, _ = run(monkeypatch, lambda *_: plan, "site", "status", "line-3/4")
    assert "it repairs plan 3" in done.stdout
    said = "plan 5 behind it would save 2.5 s of waiting in 86,400 s; moving 90.00 MB costs 7,200 s: it does not pay"
    assert said in done.stdout
    none = plan | {"improvement": {"plan": None, "pays": False, "why": "no plan is better"}}
    done, _ = run(monkeypatch, lambda *_: none, "site", "status", "line-3/4")
    assert "nothing behind it: no plan is better" in done.stdout


def test_status_says_who_fetches_and_who_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    member = PLAN["members"][0] | {"state": "asked", "phase": "hold"}
    waits = member | {"name": "desk", "fetching": "waits", "turn_at": "2026-11-30T11:00:00Z"}
    members = [member | {"fetching": "fetching"}, waits, member | {"name": "hall", "fetching": "done"}]
    done, _ = run(monkeypatch, lambda *_: PLAN | {"members": members}, "site", "status", "line-3/4")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "box 10.0.0.2:8478 asked hold since its turn came" in lines
    assert "desk 10.0.0.2:8478 asked hold waits its turn, until 2026-11-30T11:00:00Z at most" in lines
    assert "hall 10.0.0.2:8478 asked hold has all" in lines


def test_the_link_of_a_site_and_what_a_repair_may_gain_in_are_said_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    box = {"name": "box", "address": "10.0.0.2:8478", "revoked": False, "memory_bytes": None, "utilisation": 0.5}
    box |= {"up_mbit": None, "down_mbit": 20.0, "delay_ms": None}
    site = SITE | {"devices": [box], "uplink_mbit": 2.5, "auto_repair": True, "pays_within_s": 3600.0}
    words = ["site", "edit", "line-3", "--device", "box", "--uplink", "2.5", "--pays-within-s", "3600"]
    done, asked = run(monkeypatch, lambda *_: site, *words)
    said = {"devices": [{"name": "box"}], "auto_repair": False, "pays_within_s": 3600, "uplink_mbit": 2.5}
    assert asked[0] == ("PUT", "/sites/line-3", said)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[2:] == [
        "box 10.0.0.2:8478 - as measured 20 Mbit/s as measured 0.5",
        "hold-s 3600; switch-s 600; pays-within-s 3600; auto-repair; uplink 2.5 Mbit/s",
    ]
