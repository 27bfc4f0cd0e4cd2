"""What an agent has done in a process of its own gives way to what serves."""

import os
from pathlib import Path

import pytest

from sprat_client.agent.child import ChildFailed, run_child

CHILD = """
import os, sys
on_import = os.getpriority(os.PRIO_PROCESS, 0)
from sprat_client.agent.child import serve_job
if __name__ == "__main__":
    sys.exit(serve_job(lambda store, job: {"nice": on_import, "store": str(store), "told": job["tell"]}))
"""


def test_a_child_is_nice_before_its_module_imports_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "asked_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    told = run_child("asked_child", tmp_path, {"tell": "this"}, timeout_s=60.0, failed=ChildFailed)
    nice = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    assert told == {"nice": nice, "store": str(tmp_path), "told": "this"}


def test_a_child_whose_module_is_not_there_gives_no_result(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="asked_nothing's process ended with status 1"):
        run_child("asked_nothing", tmp_path, {}, timeout_s=60.0, failed=ChildFailed)
