"""When a plan is refused because a task does worse by it."""

import pytest

from sprat_server.sites.trials import Trial


def trial(only_old: int, only_new: int, samples: int = 400, tolerance: float = 0.01) -> Trial:
    return Trial(
        task="find",
        samples=samples,
        new_correct=300 + only_new,
        old_correct=300 + only_old,
        only_old=only_old,
        only_new=only_new,
        tolerance=tolerance,
    )


@pytest.mark.parametrize(
    ("only_old", "only_new", "samples", "why"),
    [
        (0, 0, 400, None),
        (30, 30, 400, None),  # as good
        (4, 0, 400, None),  # within the tolerance
        (14, 4, 400, "it is worse: 14 samples lost, 4 won of 400 (p = 0.015)"),
        (12, 6, 400, None),  # more than the tolerance, and chance
        (14, 4, 4000, None),  # significant, and less than the tolerance
        (40, 30, 60, "it is much worse: 40 samples lost, 30 won of 60"),
    ],
)
def test_only_the_samples_that_differ_can_refuse_a_plan(
    only_old: int, only_new: int, samples: int, why: str | None
) -> None:
    assert trial(only_old, only_new, samples).refused == why


def test_the_tail_is_exact() -> None:
    assert trial(3, 1).p_worse == pytest.approx(5 / 16)
    assert trial(0, 0).p_worse == 1.0
