"""What an agent logs: a JSON object a line."""

import json
import logging

import pytest

from sprat_client.agent.logs import log_json_to_stderr


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
