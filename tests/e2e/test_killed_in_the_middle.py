"""A replica of the API and the worker are killed in the middle of a rollout: nobody is lost, nothing is done twice."""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
import tiny_models
from demo.shell import Shell
from fleet import MODEL, Replica, house, register, release

from sprat_client.api import SpratClient
from sprat_client.simulate.rehearsal import Plan, Rehearsed, rehearse

DEVICES = 60
FIRST_WAVE = 20
OTHER = "made-meanwhile"
PATIENCE_S = 90.0
COMMITTED = (
    "SELECT count(*) >= %s FROM rollout_device JOIN rollout ON rollout.id = rollout_id"
    " WHERE number = 2 AND rollout_device.state = 'committed'"
)
ASSIGNED = "SELECT device_id FROM assignment WHERE number = 2"
REPORTED = (
    "SELECT report.device_id FROM report JOIN assignment ON assignment.device_id = report.device_id"
    " AND assignment.counter = report.assignment WHERE assignment.number = 2"
)
SEEDS = range(int(os.environ.get("SPRAT_CRASH_TIMES", "1")))  # `make crash` has it higher


class Rehearsal(threading.Thread):
    """A rollout to played devices, in a thread; their operator asks the replica that lives on, they ask any."""

    def __init__(self, operator_url: str, devices_url: str, token: str, seed: int) -> None:
        super().__init__(daemon=True)
        self._urls, self._token = (operator_url, devices_url), token
        self._plan = Plan(
            model=MODEL,
            base=1,
            release=2,
            devices=DEVICES,
            seed=seed,
            interval_s=0.6,
            waves=(str(FIRST_WAVE), "40", "100%"),
        )
        self.done: Rehearsed | None = None
        self.bad: BaseException | None = None

    def run(self) -> None:
        operator_url, devices_url = self._urls
        try:
            with SpratClient(operator_url, self._token) as client:
                self.done = rehearse(client, devices_url, self._plan, keep_devices=True)
        except BaseException as bad:  # noqa: BLE001 - the test tells it
            self.bad = bad

    def ended(self) -> Rehearsed:
        """Return how it ended; the rehearsal itself has checked where every device is, and what it acted on."""
        self.join(PATIENCE_S)
        assert self.bad is None, self.bad
        assert self.done is not None, "the rollout did not end"
        return self.done


def wait_for(look: Callable[[], Any], what: str) -> Any:
    """Return what `look` finds, as soon as it finds anything."""
    end = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < end, f"waited {PATIENCE_S:g} s for {what}"
        time.sleep(0.02)
    return found


def url_of(replica: Replica) -> str:
    return f"http://127.0.0.1:{replica.port}"


@pytest.mark.crash
@pytest.mark.e2e
@pytest.mark.parametrize("seed", SEEDS)
def test_a_replica_killed_between_two_waves_and_the_worker_in_the_middle_of_a_release_lose_nothing(
    tmp_path: Path, seed: int
) -> None:
    draw = Random(f"kills {seed}")
    settings = {"SPRAT_WORKER_HEARTBEAT_S": "0.3", "SPRAT_WORKER_LOST_AFTER_S": "1.5"}
    with house(tmp_path, **settings) as (replicas, worker, balancer, token):
        draw.shuffle(replicas)
        victim, survivor = replicas
        database_url = worker.env["SPRAT_DATABASE_URL"]
        shell = Shell(url_of(survivor), token)
        for model in (MODEL, OTHER):
            register(shell, tmp_path, model)
        assert release(shell, tmp_path, 1) == 2
        with psycopg.connect(database_url) as holding, psycopg.connect(database_url, autocommit=True) as looking:
            # The release is computed and stored, and its last transaction waits for the model: there the worker dies.
            holding.execute("SELECT id FROM model WHERE name = %s FOR NO KEY UPDATE", [OTHER])
            file = tiny_models.write_weights(tmp_path / "other.safetensors", tiny_models.truth())
            command = shell.begin("release", "create", OTHER, "--weights", str(file), "--json")
            publishing = "SELECT id FROM job WHERE progress_step = 'publishing' AND state = 'running'"
            (job,) = wait_for(lambda: looking.execute(publishing).fetchone(), "the release")
            rehearsal = Rehearsal(url_of(survivor), balancer.url, token, seed)
            rehearsal.start()
            until = draw.randrange(1, FIRST_WAVE // 2)
            wait_for(lambda: looking.execute(COMMITTED, [until]).fetchone()[0], f"{until} devices with the release")
            victim.process.kill()
            opened = looking.execute("SELECT max(ordinal) FROM rollout_wave WHERE opened_at IS NOT NULL").fetchone()
            worker.kill()
            holding.rollback()
            worker.start()
            done = rehearsal.ended()
            said, error = command.communicate(timeout=PATIENCE_S)

            assert opened in {(1,), (2,)}, "the replica was killed when the last wave had opened"
            assert (done.state, done.exposed) == ("succeeded", DEVICES)
            assert done.committed + done.declined == DEVICES
            for once in (ASSIGNED, REPORTED):
                assert sorted(Counter(looking.execute(once).fetchall()).values()) == [1] * DEVICES
            ended = "SELECT state, attempt, setbacks FROM job WHERE id = %s"
            assert looking.execute(ended, [job]).fetchone() == ("succeeded", 2, 1)
            made = "SELECT number FROM release JOIN model ON model.id = model_id WHERE model.name = %s ORDER BY number"
            assert looking.execute(made, [OTHER]).fetchall() == [(1,), (2,)]
            heard = "SELECT count(*) FROM event WHERE kind = 'job.succeeded' AND subject = %s"
            assert looking.execute(heard, [f"job:{job}"]).fetchone() == (1,)
            assert command.returncode == 0, error
            assert json.loads(said.splitlines()[-1])["result"]["release"] == 2
