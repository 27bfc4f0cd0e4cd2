"""What another plan saves and costs: the one that gains most is a placement, and it pays only above its cost."""

from dataclasses import replace
from itertools import count

import pytest
from small_sites import all_plans, random_site

from sprat_server.placement.gain import gain, priced
from sprat_server.placement.plan import Plan, Wishes, cost_of
from sprat_server.placement.program import solve
from sprat_server.placement.search import improve
from sprat_server.placement.solve import place

LINKS = {"a": 0.001, "b": 0.02, "c": 0.1}


def clock() -> float:
    return next(TICKS) * 0.001


TICKS = count()


@pytest.mark.parametrize(("within_s", "pay"), [(1.0, 0), (50.0, 2), (5000.0, 2)])
def test_the_plan_that_gains_most_is_the_best_of_all_there_are_and_pays_exactly_if_one_does(
    within_s: float, pay: int
) -> None:
    paying = 0
    for seed in range(12):
        site = random_site(seed, rate=0.2)
        before = improve(site, Wishes(), goes_on=lambda: False)  # a quick plan, as after a repair
        if before is None or not cost_of(site, Wishes(), before).fits:
            continue
        wishes = Wishes(held=dict(before.hosts), second_per_byte=0.01, link_s=LINKS)
        gains = [
            gain(site, wishes, before, plan, within_s)
            for plan in all_plans(site, wishes)
            if cost_of(site, wishes, plan).fits
        ]
        most = max(one.saved_s - one.cost_s for one in gains)
        found = place(priced(site, within_s), wishes, seconds=20.0, clock=clock, known=before)
        assert found.answer.plan is not None
        chosen = gain(site, wishes, before, found.answer.plan, within_s)
        assert chosen.saved_s - chosen.cost_s == pytest.approx(most, abs=1e-4 * within_s), seed
        assert chosen.pays == any(one.pays for one in gains), seed
        paying += chosen.pays
    assert paying >= pay, "the sites say something"
    assert pay or not paying


def test_what_is_saved_is_each_task_s_latency_by_its_weight_and_rate_and_what_is_there_costs_nothing() -> None:
    site = random_site(3, rate=0.2)
    everywhere = Wishes(second_per_byte=0.5, link_s=LINKS)
    plans = [plan for plan in all_plans(site, everywhere) if cost_of(site, everywhere, plan).fits]
    before, after = plans[0], plans[-1]
    wishes = replace(everywhere, held=dict(before.hosts))
    found = gain(site, wishes, before, after, 10.0)
    old, new = cost_of(site, wishes, before).latency, cost_of(site, wishes, after).latency
    assert found.saved_s == pytest.approx(
        sum(10 * 0.2 * task.weight * (old[task.name] - new[task.name]) for task in site.tasks)
    )
    moved = [
        (site.module[name].file_bytes, host) for name in site.module for host in after.hosts[name] - before.hosts[name]
    ]
    assert found.moved_bytes == sum(nbytes for nbytes, _ in moved) > 0
    assert found.cost_s == pytest.approx(sum(nbytes * (0.5 + LINKS[host]) for nbytes, host in moved))
    assert gain(site, wishes, before, before, 10.0).cost_s == 0
    assert not gain(site, wishes, before, before, 10.0).pays


def test_a_known_plan_is_never_left_for_a_worse_one() -> None:
    site = random_site(5)
    best = solve(site, Wishes(), seconds=20.0).plan
    assert best is not None
    kept = place(site, Wishes(), seconds=0.0, clock=clock, known=best)
    assert kept.answer.total == pytest.approx(cost_of(site, Wishes(), best).total)
    over = Plan(hosts={name: frozenset("a") for name in site.module}, routes=best.routes)
    if not cost_of(site, Wishes(), over).fits:
        assert place(site, Wishes(), seconds=5.0, clock=clock, known=over).cost is not None
