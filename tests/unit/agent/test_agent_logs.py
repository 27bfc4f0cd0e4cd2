"""What an agent logs: a JSON object a line, to the stderr of now."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from sprat_client.agent.logs import log_json_to_stderr


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_record_is_one_line_of_json_with_its_fields_and_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    log_json_to_stderr()
    try:
        int("much")
    except ValueError:
        logging.getLogger("sprat_client.test").warning("refused", extra={"model": "eyes"}, exc_info=True)
    logging.getLogger("httpx").info("a chatty library")
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["level"], said["message"], said["model"]) == ("warning", "refused", "eyes")
    assert said["error"].endswith("ValueError: invalid literal for int() with base 10: 'much'")
    assert said["time"].endswith("Z")


def test_a_stderr_that_was_replaced_and_closed_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, new = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stderr", gone)
    log_json_to_stderr()
    gone.close()
    monkeypatch.setattr("sys.stderr", new)
    logging.getLogger("sprat_client.test").info("started")
    assert json.loads(new.getvalue())["message"] == "started"
