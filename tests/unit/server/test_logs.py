"""Logs go to what stderr is when something happens, not to what it was when logging was set up."""

import io
import json
import logging
import sys

import pytest

from sprat_server.observe import logs


@pytest.fixture
def _logging_as_it_was():
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_logging_as_it_was")
def test_a_stderr_that_was_closed_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    before, now = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", before)
    logs.configure(log_format="json", log_level="info")
    before.close()
    monkeypatch.setattr(sys, "stderr", now)
    logging.getLogger("sprat").info("it goes on")
    assert json.loads(now.getvalue())["event"] == "it goes on"


@pytest.mark.usefixtures("_logging_as_it_was")
def test_no_request_fails_because_its_log_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = io.StringIO()
    monkeypatch.setattr(sys, "stderr", gone)
    logs.configure(log_format="json", log_level="info")
    gone.close()
    logging.getLogger("sprat").info("nobody hears it")
