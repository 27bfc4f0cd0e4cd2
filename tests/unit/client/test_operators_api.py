"""The typed client against a transport that answers like the server: errors, pages, uploads, waiting."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from sprat_client.api import SpratClient
from sprat_client.api.jobs import JobFailed
from sprat_shared import errors

Answer = Callable[[httpx.Request], httpx.Response]


def client_of(answer: Answer) -> SpratClient:
    return SpratClient("http://server.invalid", "t0ken", transport=httpx.MockTransport(answer))


def problem(status: int, code: str, detail: str) -> Answer:
    return lambda _request: httpx.Response(
        status, json={"type": "about:blank", "title": "x", "status": status, "code": code, "detail": detail}
    )


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "model.unknown", errors.NotFound),
        (409, "model.exists", errors.Conflict),
        (422, "input.invalid", errors.InvalidInput),
        (401, "access.unauthenticated", errors.Unauthenticated),
        (403, "access.denied", errors.AccessDenied),
        (503, "try-later", errors.TryLater),
        (409, "update.base-mismatch", errors.BaseMismatch),
        (500, "server.bug", errors.SpratError),
    ],
)
def test_a_problem_becomes_the_error_of_its_category_with_code_and_detail(
    status: int, code: str, kind: type[errors.SpratError]
) -> None:
    with client_of(problem(status, code, "the reason")) as client, pytest.raises(kind, match="the reason") as caught:
        client.models.list()
    assert type(caught.value) is kind
    assert caught.value.code == code


def test_an_error_page_of_something_else_still_names_the_status() -> None:
    with client_of(lambda _request: httpx.Response(502, text="<html>")) as client:  # noqa: SIM117
        with pytest.raises(errors.TryLater, match="502"):
            client.models.list()


def test_an_answer_that_is_not_json_asks_whether_it_is_a_sprat_server() -> None:
    with client_of(lambda _request: httpx.Response(200, text="hello")) as client:  # noqa: SIM117
        with pytest.raises(errors.SpratError, match="is it a sprat-server"):
            client.models.list()


def test_nobody_at_the_address_says_to_check_server_and_option() -> None:
    def refuse(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with client_of(refuse) as client, pytest.raises(errors.TryLater, match="is sprat-server running"):
        client.models.list()


def test_a_change_whose_answer_was_lost_is_sent_again_under_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprat_client.api.transport._AGAIN_AFTER_S", (0.01, 0.02, 0.03))
    keys: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 1:
            raise httpx.ReadError("cut")
        if len(keys) == 2:
            return problem(409, "request.still-running", "wait")(request)
        return httpx.Response(201, json={"id": "r"})

    with client_of(answer) as client:
        client.rollouts.create("m", 2)
        assert len(keys) == 3
        client.rollouts.create("m", 2)
    assert len(set(keys[:3])) == 1
    assert keys[3] != keys[0]


def test_a_question_whose_answer_was_lost_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprat_client.api.transport._AGAIN_AFTER_S", (0.01, 0.02, 0.03))
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if len(asked) == 1:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        return httpx.Response(200, json={"id": "r"})

    with client_of(answer) as client:
        assert client.rollouts.get("r") == {"id": "r"}
    assert len(asked) == 2
    assert "Idempotency-Key" not in asked[0].headers


def test_what_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprat_client.api.transport._AGAIN_AFTER_S", (0.01, 0.02, 0.03))
    asked = []

    def cut(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        raise httpx.ReadError("cut")

    with client_of(cut) as client, pytest.raises(errors.TryLater, match="broke"):
        client.rollouts.get("r")
    assert len(asked) == 4


def test_a_change_that_found_nobody_is_not_waited_for() -> None:
    asked = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        raise httpx.ConnectError("refused")

    with client_of(refuse) as client, pytest.raises(errors.TryLater, match="is sprat-server running"):
        client.rollouts.create("m", 2)
    assert len(asked) == 1


def test_every_request_carries_the_token() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer t0ken"
        return httpx.Response(200, json={"items": [], "next": None})

    with client_of(answer) as client:
        assert client.models.list() == []


def test_lists_follow_cursors_to_the_end_and_stop_at_a_limit() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        start, size = int(request.url.params.get("cursor", "0")), int(request.url.params["limit"])
        end = min(start + size, 250)
        more = str(end) if end < 250 else None
        return httpx.Response(200, json={"items": [{"id": str(i)} for i in range(start, end)], "next": more})

    with client_of(answer) as client:
        assert [job["id"] for job in client.jobs.list()] == [str(i) for i in range(250)]
        assert len(asked) == 3
        assert len(client.jobs.list(limit=101)) == 101
        assert asked[-1] == {"limit": "1", "cursor": "100"}


def test_a_file_is_uploaded_in_pieces_with_its_length_and_progress(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "weights").write_bytes(data)
    steps: list[tuple[int, int]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["Content-Length"] == str(len(data))
        digest = "sha256:" + hashlib.sha256(request.read()).hexdigest()
        return httpx.Response(201, json={"digest": digest, "length": len(data)})

    with client_of(answer) as client:
        blob = client.upload_blob(tmp_path / "weights", lambda done, total: steps.append((done, total)))
    assert blob == {"digest": "sha256:" + hashlib.sha256(data).hexdigest(), "length": len(data)}
    assert steps[-1] == (len(data), len(data))
    assert len(steps) == 3


def test_a_missing_file_is_named() -> None:
    with client_of(problem(500, "x", "x")) as client, pytest.raises(errors.InvalidInput, match=r"gone\.npz"):
        client.upload_blob(Path("/nowhere/gone.npz"))


def test_a_download_with_other_bytes_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with client_of(lambda _request: httpx.Response(200, content=b"other")) as client:  # noqa: SIM117
        with pytest.raises(errors.DigestMismatch):
            client.download_blob("sha256:" + "0" * 64, tmp_path / "blob")
    assert list(tmp_path.iterdir()) == []


def job_json(state: str, **more: object) -> dict[str, object]:
    progress = {"step": "train", "fraction": 0.5, "message": ""}
    return {"id": "j", "kind": "retrain", "state": state, "progress": progress, "result": None, "error": None, **more}


def test_waiting_for_a_job_shows_each_change_and_survives_a_restart_of_the_server() -> None:
    answers = [
        httpx.Response(200, json=job_json("queued")),
        httpx.Response(503, json={"code": "try-later", "detail": "starting"}),
        httpx.Response(200, json=job_json("queued")),
        httpx.Response(200, json=job_json("running")),
        httpx.Response(200, json=job_json("succeeded", result={"release": 2})),
    ]
    seen: list[str] = []
    with client_of(lambda _request: answers.pop(0)) as client:
        job = client.jobs.wait("j", lambda now: seen.append(now["state"]))
    assert seen == ["queued", "running", "succeeded"]
    assert job["result"] == {"release": 2}


def test_a_failed_job_raises_the_workers_words() -> None:
    error = {"code": "model.outputs-differ", "message": "fc.weight differs"}
    with client_of(lambda _request: httpx.Response(200, json=job_json("failed", error=error))) as client:  # noqa: SIM117
        with pytest.raises(JobFailed, match=r"fc\.weight differs") as caught:
            client.jobs.wait("j")
    assert caught.value.code == "model.outputs-differ"


def test_a_dataset_is_found_by_name_digest_or_start_of_it() -> None:
    datasets = [
        {"name": "tilted", "digest": "sha256:" + "ab" * 32},
        {"name": "upright", "digest": "sha256:" + "ac" * 32},
    ]

    def answer(_request: httpx.Request) -> httpx.Response:
        body = {"items": datasets, "next": None}
        return httpx.Response(200, content=json.dumps(body), headers={"Content-Type": "application/json"})

    with client_of(answer) as client:
        assert client.datasets.resolve("tilted") == datasets[0]
        assert client.datasets.resolve("acac") == datasets[1]
        assert client.datasets.resolve("sha256:abab") == datasets[0]
        with pytest.raises(errors.InvalidInput, match="write more of it"):
            client.datasets.resolve("a")
        with pytest.raises(errors.NotFound, match="dataset list"):
            client.datasets.resolve("rotated")


@pytest.mark.parametrize("url", ["server:8470", "ftp://server", "http://", ""])
def test_a_server_that_is_not_a_url_is_refused_with_its_right_form(url: str) -> None:
    with pytest.raises(errors.InvalidInput, match="http://host:port"):
        SpratClient(url, "t")
