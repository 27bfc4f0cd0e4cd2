"""Jobs: queued with the transaction that asks, carried out, cancelled, and taken up again when a worker dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from http_calls import Api
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import ACROSS, DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.jobs import service as jobs
from sprat_server.jobs.models import Job
from sprat_server.jobs.runner import Runner
from sprat_server.jobs.tasks import TASKS, JobContext, JobLost
from sprat_server.observe.actors import SYSTEM
from sprat_server.settings import Settings
from sprat_shared.errors import InvalidInput, TryLater

Task = Callable[[JobContext, Mapping[str, Any]], Mapping[str, Any]]


@pytest.fixture
def runner(database: Database, blobs: Blobs, settings: Settings) -> Runner:
    """What a worker has, without the queue's loop."""
    return Runner(database=database, blobs=blobs, settings=settings)


@pytest.fixture
def task_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[Task], None]:
    """Registers a function for jobs of kind `test` while the test runs."""
    return lambda function: monkeypatch.setitem(TASKS, "test", function)


def queued(database: Database, kind: str = "test", **args: Any) -> Job:
    """Queue a job and return it."""
    with database.transaction(DEFAULT_PROJECT) as session:
        return jobs.enqueue(session, kind=kind, args=args, by=SYSTEM)


def now(database: Database, job: Job) -> Job:
    """Return the job as it is now."""
    with database.transaction(DEFAULT_PROJECT) as session:
        return jobs.get(session, job.id)


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Return when the condition holds; fail after the timeout."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for: {what}"
        time.sleep(0.05)


def test_a_job_exists_for_workers_only_if_the_transaction_that_asks_for_it_commits(database: Database) -> None:
    class Failed(Exception):
        pass

    def ask_and_fail() -> None:
        with database.transaction(DEFAULT_PROJECT) as session:
            jobs.enqueue(session, kind="test", args={}, by=SYSTEM)
            raise Failed

    with pytest.raises(Failed):
        ask_and_fail()
    job = queued(database)
    with database.transaction(DEFAULT_PROJECT) as session:
        assert session.execute(text("SELECT id FROM job"), execution_options=ACROSS).scalars().all() == [job.id]
        assert session.execute(text("SELECT id FROM procrastinate_jobs")).scalars().all() == [job.queue_id]


def test_a_job_runs_tells_its_progress_and_keeps_its_result(
    database: Database, runner: Runner, task_is: Callable[[Task], None]
) -> None:
    seen: list[Job] = []

    def work(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
        ctx.progress("teacher", 0.25, "epoch 1 of 4")
        seen.append(now(database, job))
        return {"twice": args["number"] * 2}

    task_is(work)
    job = queued(database, number=21)
    runner.run(job.id, job.queue_id)
    (during,) = seen
    assert (during.state, during.progress_step, during.progress_fraction) == ("running", "teacher", 0.25)
    after = now(database, job)
    assert (after.state, after.result, after.error, after.progress_fraction) == ("succeeded", {"twice": 42}, None, 1.0)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InvalidInput("labels reach 12, the model has 10 classes", code="dataset.labels"), "dataset.labels", "12"),
        (KeyError("weights"), "server.bug", "KeyError"),
    ],
)
def test_a_task_that_fails_ends_its_job_with_code_and_message(  # noqa: PLR0917 - fixtures and a row of the table
    database: Database, runner: Runner, task_is: Callable[[Task], None], error: Exception, code: str, words: str
) -> None:
    def work(_ctx: JobContext, _args: Mapping[str, Any]) -> dict[str, Any]:
        raise error

    task_is(work)
    job = queued(database)
    runner.run(job.id, job.queue_id)
    after = now(database, job)
    assert after.error is not None
    assert (after.state, after.error["code"]) == ("failed", code)
    assert words in after.error["message"]


def test_a_job_of_a_kind_that_no_task_is_registered_for_fails_and_says_so(database: Database, runner: Runner) -> None:
    job = queued(database, kind="unheard-of")
    runner.run(job.id, job.queue_id)
    error = now(database, job).error
    assert error is not None
    assert (error["code"], "unheard-of" in error["message"]) == ("job.kind", True)


def test_a_result_that_is_no_json_fails_the_job(
    database: Database, runner: Runner, task_is: Callable[[Task], None]
) -> None:
    task_is(lambda _ctx, _args: {"accuracy": float("nan")})
    job = queued(database)
    runner.run(job.id, job.queue_id)
    assert now(database, job).state == "failed"


def test_a_queued_job_is_cancelled_at_once_and_never_runs(
    database: Database, runner: Runner, operator: Api, task_is: Callable[[Task], None]
) -> None:
    task_is(lambda _ctx, _args: pytest.fail("a cancelled job ran"))
    job = queued(database)
    answer = operator.post(f"/api/v1/jobs/{job.id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    runner.run(job.id, job.queue_id)
    with database.transaction(DEFAULT_PROJECT) as session:
        assert session.scalar(text("SELECT status::text FROM procrastinate_jobs")) == "cancelled"
    assert operator.post(f"/api/v1/jobs/{job.id}/cancel").status_code == 200
    newest = operator.get("/api/v1/audit").json()["items"][0]
    assert (newest["action"], newest["subject"]) == ("job.cancel", f"job:{job.id}")


def test_a_running_job_stops_at_its_next_check_when_it_is_cancelled(
    database: Database, runner: Runner, operator: Api, task_is: Callable[[Task], None]
) -> None:
    def work(ctx: JobContext, _args: Mapping[str, Any]) -> dict[str, Any]:
        ctx.check_cancelled()
        assert operator.post(f"/api/v1/jobs/{job.id}/cancel").json()["cancel_requested"]
        ctx.check_cancelled()
        pytest.fail("it went on")

    task_is(work)
    job = queued(database)
    runner.run(job.id, job.queue_id)
    assert now(database, job).state == "cancelled"


def test_a_job_that_has_ended_cannot_be_cancelled(
    database: Database, runner: Runner, operator: Api, task_is: Callable[[Task], None]
) -> None:
    task_is(lambda _ctx, _args: {})
    job = queued(database)
    runner.run(job.id, job.queue_id)
    answer = operator.post(f"/api/v1/jobs/{job.id}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "job.ended")


def test_last_writes_and_the_end_of_the_job_can_be_one_transaction(
    database: Database, runner: Runner, task_is: Callable[[Task], None]
) -> None:
    def work(ctx: JobContext, _args: Mapping[str, Any]) -> dict[str, Any]:
        with ctx.session() as session:
            ctx.complete(session, {"release": 2})
        return {"release": "not this one"}

    task_is(work)
    job = queued(database)
    runner.run(job.id, job.queue_id)
    assert now(database, job).result == {"release": 2}


def test_a_slow_worker_whose_job_was_given_away_cannot_commit_any_more(
    database: Database, runner: Runner, task_is: Callable[[Task], None]
) -> None:
    tried: list[str] = []

    def work(ctx: JobContext, _args: Mapping[str, Any]) -> dict[str, Any]:
        if ctx.attempt == 2:
            return {"by": 2}
        with database.transaction(DEFAULT_PROJECT) as session:  # as if it had been silent for long
            session.execute(text("UPDATE procrastinate_jobs SET status = 'doing', worker_id = NULL"))
        assert runner.take_up_abandoned() == [job.id]
        again = now(database, job)
        runner.run(again.id, again.queue_id)
        try:
            with ctx.session() as session:
                session.execute(text("UPDATE job SET kind = 'overwritten'"), execution_options=ACROSS)
        except JobLost:
            tried.append("session")
        with pytest.raises(JobLost):
            ctx.progress("late", 0.9)
        return {"by": 1}

    task_is(work)
    job = queued(database)
    runner.run(job.id, job.queue_id)
    after = now(database, job)
    assert tried == ["session"]
    assert (after.kind, after.state, after.result, after.attempt) == ("test", "succeeded", {"by": 2}, 2)


def test_a_task_that_must_try_later_is_tried_again_a_bounded_number_of_times(
    database: Database, runner: Runner, settings: Settings, task_is: Callable[[Task], None]
) -> None:
    begun = []

    def work(ctx: JobContext, _args: Mapping[str, Any]) -> dict[str, Any]:
        begun.append(ctx.attempt)
        raise TryLater("the blob store is away")

    task_is(work)
    job = queued(database)
    while (job := now(database, job)).state == "queued":
        runner.run(job.id, job.queue_id)
    assert begun == list(range(1, settings.job_max_setbacks + 1))
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("failed", "job.given-up")
    assert "blob store is away" in job.error["message"]


def test_a_worker_that_is_told_to_stop_gives_its_job_back_without_counting_it_as_a_setback(
    database: Database, runner: Runner, task_is: Callable[[Task], None]
) -> None:
    def work(ctx: JobContext, _args: Mapping[str, Any]) -> dict[str, Any]:
        runner.stopping.set()
        ctx.progress("step", 0.1)
        pytest.fail("it went on")

    task_is(work)
    job = queued(database)
    runner.run(job.id, job.queue_id)
    after = now(database, job)
    assert (after.state, after.setbacks) == ("queued", 0)
    assert after.queue_id != job.queue_id


def test_two_workers_that_look_for_abandoned_jobs_at_once_take_each_up_once(
    database: Database, blobs: Blobs, settings: Settings
) -> None:
    queued_jobs = [queued(database) for _ in range(10)]
    with database.transaction(DEFAULT_PROJECT) as session:
        session.execute(text("UPDATE procrastinate_jobs SET status = 'doing'"))
    runners = [Runner(database=database, blobs=blobs, settings=settings) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = [job_id for taken in pool.map(Runner.take_up_abandoned, runners) for job_id in taken]
    assert sorted(found) == sorted(job.id for job in queued_jobs)


@pytest.mark.parametrize(
    ("values", "constraint"),
    [
        ({"state": "lost"}, "state_is_known"),
        ({"state": "succeeded", "result": {}}, "ended_jobs_have_an_end"),
        ({"state": "running"}, "running_jobs_were_started"),
        ({"result": {"a": 1}}, "only_success_has_a_result"),
        ({"error": {"code": "x", "message": "y"}}, "only_failure_has_an_error"),
        ({"progress_fraction": 1.5}, "progress_is_a_fraction"),
    ],
)
def test_the_database_refuses_an_impossible_job(database: Database, values: dict[str, Any], constraint: str) -> None:
    queued(database)
    with pytest.raises(IntegrityError, match=constraint), database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(Job).values(values))


class Worker:
    """A worker process."""

    def __init__(self, settings: Settings, log: Path) -> None:
        environment = os.environ | {
            "SPRAT_DATABASE_URL": settings.database_url or "",
            "SPRAT_DATA_DIR": str(settings.data_dir),
            "SPRAT_WORKER_HEARTBEAT_S": "0.2",
            "SPRAT_WORKER_LOST_AFTER_S": "1.5",
            "SPRAT_WORKER_STOP_GRACE_S": "2",
        }
        script = Path(__file__).with_name("worker_with_test_tasks.py")
        with log.open("ab") as file:
            self.process = subprocess.Popen([sys.executable, script], env=environment, stderr=file)

    def kill(self) -> None:
        """Kill it as a power cut or the kernel would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def worker(settings: Settings, tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    """Starts worker processes; they are killed at the end."""
    started: list[Worker] = []

    def start() -> Worker:
        started.append(Worker(settings, tmp_path / "workers.log"))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def test_a_job_whose_worker_was_killed_is_taken_up_by_the_next_worker(
    database: Database, worker: Callable[[], Worker], tmp_path: Path
) -> None:
    job = queued(database, kind="test-linger", folder=str(tmp_path))
    first = worker()
    wait_for((tmp_path / "attempt-1").exists, "the first attempt")
    first.kill()
    worker()
    wait_for((tmp_path / "attempt-2").exists, "the second attempt")
    (tmp_path / "enough").touch()
    wait_for(lambda: now(database, job).state == "succeeded", "the end of the job")
    after = now(database, job)
    assert (after.attempt, after.setbacks, after.result) == (2, 1, {"attempt": 2})


def test_a_job_that_kills_every_worker_is_failed_after_the_allowed_setbacks(
    database: Database, worker: Callable[[], Worker], tmp_path: Path, settings: Settings
) -> None:
    job = queued(database, kind="test-stubborn", folder=str(tmp_path))
    for attempt in range(1, settings.job_max_setbacks + 1):
        victim = worker()
        wait_for((tmp_path / f"attempt-{attempt}").exists, f"attempt {attempt}")
        victim.kill()
    worker()
    wait_for(lambda: now(database, job).state == "failed", "the end of the job")
    error = now(database, job).error
    assert error is not None
    assert error["code"] == "job.given-up"


@pytest.mark.parametrize("kind", ["test-linger", "test-stubborn"])
def test_a_worker_told_to_stop_ends_within_its_grace_and_the_next_does_the_job(
    database: Database, worker: Callable[[], Worker], tmp_path: Path, kind: str
) -> None:
    job = queued(database, kind=kind, folder=str(tmp_path))
    first = worker()
    wait_for((tmp_path / "attempt-1").exists, "the first attempt")
    first.process.terminate()
    assert first.process.wait(timeout=20) == 0
    assert now(database, job).state == "queued"
    worker()
    wait_for((tmp_path / "attempt-2").exists, "the second attempt")
    (tmp_path / "enough").touch()
    wait_for(lambda: now(database, job).state == "succeeded", "the end of the job")
    assert now(database, job).setbacks == 0
