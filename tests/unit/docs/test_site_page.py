"""The page on sites says the bounds that the code has, and its example is a call that there is."""

import ast
import re
from pathlib import Path

import pytest

from sprat_client.agent.endpoint import Endpoint
from sprat_client.agent.settings import SiteSettings
from sprat_client.agent.site import (
    breaker,
    failures,
    heartbeats,
    hedging,
    listener,
    measures_reporter,
    peer_server,
    site_meter,
)
from sprat_client.agent.site.task_answer import TaskAnswer
from sprat_shared.errors import SpratError
from sprat_shared.protocol.site_plan import MOST_MEMBERS, MOST_PLAN_BYTES

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "site.md").read_text(encoding="utf-8")
PAGE = " ".join(TEXT.split())
SETTINGS = SiteSettings()


@pytest.mark.parametrize(
    "said",
    [
        (
            f"{SETTINGS.most_body_bytes >> 20} MiB; all bodies together "
            f"{peer_server._BODIES * SETTINGS.most_body_bytes >> 20} MiB"
        ),
        f"| headers | {peer_server._MOST_HEADERS} |",
        (
            f"| connections | {SETTINGS.most_connections}; handshakes {listener._HANDSHAKES}, of one address "
            f"{listener._HANDSHAKES_OF_ONE}, each {listener._HANDSHAKE_S:.0f} s |"
        ),
        f"| requests that wait for a module | {SETTINGS.most_waiting}; then 503 `{failures.Busy.code}`",
        f"| rows in one go | {SETTINGS.most_rows} |",
        f"| requests of applications under way | {SETTINGS.most_requests} |",
        f"| a plan's file | {MOST_PLAN_BYTES >> 20} MiB |",
        (
            f"every {SETTINGS.heartbeat_s} s whether they are there (of more than {heartbeats._MEMBERS} members: "
            f"less often, {SETTINGS.heartbeat_s * MOST_MEMBERS / heartbeats._MEMBERS:.0f} s with {MOST_MEMBERS})"
        ),
        f"does not answer for {SETTINGS.heartbeat_timeout_s} s",
        f"waits at most {SETTINGS.reach_s:.0f} s for all of several devices",
    ],
)
def test_a_bound_on_the_page_is_that_of_the_code(said: str) -> None:
    assert said in PAGE


def test_words_for_numbers_on_the_page_are_those_of_the_code() -> None:
    assert (breaker._FAILURES, breaker._REST_S, SETTINGS.hedge_share) == (3, 1.0, 0.1)
    assert (hedging._KEPT, hedging._BURST) == (100, 10)
    assert "fails three requests in a row rests for a second" in PAGE
    assert "95 of its last 100 answers" in PAGE
    assert "for at most a tenth of the steps, and ten of them at once" in PAGE


def test_what_is_measured_is_bounded_as_the_page_says() -> None:
    assert f"once there are {site_meter._LEAST_RUNS}, of runs of one row in service" in PAGE
    assert f"from {site_meter._LEAST_BEATS} on |" in PAGE
    assert f"less round trip, queue and run; from {site_meter._LEAST_TRANSFERS} on |" in PAGE
    assert f"requests or answers of {site_meter._LARGE_BYTES >> 10} KiB or more with an eighth of that" in PAGE
    assert f"the newest {site_meter._KEPT} values count" in PAGE
    assert f"{SETTINGS.news_s:.0f} s after a figure is there" in PAGE
    assert f"each `--site-report-s` ({SETTINGS.report_s:.0f}) where one changed by more than a quarter" in PAGE
    assert "each twelfth of that where one is twice or half" in PAGE.replace("\n", " ")
    assert (measures_reporter._SOONER, measures_reporter._SHARPLY) == (12, 1.0)
    assert (site_meter._ONE_WAY, measures_reporter._MUCH) == (8, 0.25)


def test_every_code_on_the_page_is_an_error_s() -> None:
    known = {kind.code for kind in vars(failures).values() if isinstance(kind, type) and issubclass(kind, SpratError)}
    assert set(re.findall(r"`(site\.[a-z-]+)`", PAGE)) <= known


def test_the_example_calls_what_there_is_and_reads_what_comes() -> None:
    (example,) = re.findall(
        r"```python\n(.*?)```", (Path(__file__).resolve().parents[3] / "docs/site.md").read_text(), re.DOTALL
    )
    names = {node.attr for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Attribute)}
    assert names <= {*dir(Endpoint), *TaskAnswer.__dataclass_fields__, "agent"}
