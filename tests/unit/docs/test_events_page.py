"""The page of events says what events there are, and its check of a signature is one."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sprat_server.access import webhooks
from sprat_server.api import events
from sprat_server.observe import outbox

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "events.md").read_text()


def test_every_kind_of_event_is_in_the_table_with_its_meaning() -> None:
    assert dict(re.findall(r"^\| `([a-z.-]+)` \| (.+) \|$", PAGE, re.MULTILINE)) == dict(outbox.KINDS)


def test_the_figures_are_those_of_the_code() -> None:
    assert f"every {events.HEARTBEAT_S:.0f} seconds" in PAGE
    assert f"up to {webhooks.MOST_ATTEMPTS} times" in PAGE
    assert f"for {webhooks.FAILING_ALLOWED.days} days" in PAGE
    assert f"{outbox.KEPT.days} days" in PAGE
    assert f"at most {webhooks.pause_s(1, 1.0):.0f} seconds, then {webhooks.pause_s(2, 1.0):.0f}" in PAGE


def test_the_check_of_a_signature_believes_the_server_and_nobody_else() -> None:
    block = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    names: dict[str, Any] = {}
    exec(block[1], names)
    is_from_sprat: Callable[..., bool] = names["is_from_sprat"]
    old, new, body = b"o" * 32, b"n" * 32, b'{"type":"webhook.test"}'
    headers = dict(webhooks.signed_headers([new, old], "one", datetime.now(UTC), body))
    for secret in (old, new):
        assert is_from_sprat(headers, body, webhooks.secret_text(secret))
    assert not is_from_sprat(headers, body, webhooks.secret_text(b"x" * 32))
    assert not is_from_sprat(headers, body + b" ", webhooks.secret_text(new))
    assert not is_from_sprat(headers | {"webhook-id": "two"}, body, webhooks.secret_text(new))
    stale = dict(webhooks.signed_headers([new], "one", datetime.fromtimestamp(time.time() - 600, UTC), body))
    assert not is_from_sprat(stale, body, webhooks.secret_text(new))
