"""A verdict is explained by its numbers, and by what would change it."""

from dataclasses import replace

from gate_evidence import drawn, evidences, of_devices
from hypothesis import given, settings

from sprat_server.rollouts.evidence import Evidence
from sprat_server.rollouts.explain import explain
from sprat_server.rollouts.gate_policy import GatePolicy
from sprat_server.rollouts.gates import Decision, judge

POLICY = GatePolicy()


def test_more_devices_of_the_kind_seen_do_what_was_said() -> None:
    losses = [0.0, 0.012, -0.012] * 5
    strict = GatePolicy.of({"metrics": {"accuracy": {"budget": 0}}})
    explained = explain(of_devices(losses, next_reach=2000), strict)
    assert explained.verdict.decision is Decision.HOLD
    more, _, rest = explained.would_change[0].partition(" ")
    assert rest == "further devices that report as these did: open"
    again = losses + (losses * 9)[: int(more)]
    assert judge(of_devices(again, next_reach=2000), strict).decision is Decision.OPEN
    assert judge(of_devices(again[:-1], next_reach=2000), strict).decision is Decision.HOLD


def test_failures_in_a_row_do_what_was_said() -> None:
    losses = drawn(1, 30, 0.0)
    said = next(one for one in explain(of_devices(losses), POLICY).would_change if "all fail" in one)
    more = int(said.split()[0])

    def decision(count: int) -> Decision:
        evidence = of_devices(losses + [0.0] * count, failed=[False] * 30 + [True] * count)
        return judge(evidence, GatePolicy.of({"metrics": {"accuracy": None}})).decision

    everything = GatePolicy.of({"metrics": {"accuracy": None}})
    named = next(one for one in explain(of_devices(losses), everything).would_change if "all fail" in one)
    assert decision(int(named.split()[0])) is Decision.HALT
    assert decision(int(named.split()[0]) - 1) is not Decision.HALT
    assert more == int(named.split()[0])


def test_the_strongest_game_comes_first_with_the_e_value_that_would_halt_it_alone() -> None:
    explained = explain(of_devices(drawn(2, 12, 0.03)), POLICY)
    first = explained.gates[0]
    assert (first.scope, first.metric, first.devices) == ("all", "accuracy", 12)
    assert first.halts_at == POLICY.halts_at / (0.5 * 0.4)
    assert first.mean is not None
    assert 0.02 < first.mean < 0.04


def test_the_bound_falls_from_nothing_to_the_tolerance_as_devices_report() -> None:
    bounds = [explain(of_devices([0.012, -0.012] * n), POLICY).proofs[0].bound for n in (1, 5, 15, 200)]
    tried = [explain(of_devices([0.012, -0.012] * n), POLICY).proofs[0].proven for n in (1, 5, 15, 200)]
    assert bounds[0] is None
    known = [bound for bound in bounds if bound is not None]
    assert len(known) == 3
    assert POLICY.metrics["accuracy"].clip > known[0] > known[1] > known[2] == POLICY.metrics["accuracy"].tolerance
    assert all(bound <= proven for bound, proven in zip(known, tried[1:], strict=True))


def test_a_halt_says_that_it_stands() -> None:
    explained = explain(of_devices(drawn(4, 30, 0.05)), POLICY)
    assert explained.would_change == ("nothing: a halt stands; another policy can be tried on the same evidence",)


def test_another_policy_says_something_else_of_the_same_evidence() -> None:
    evidence = of_devices(drawn(5, 60, 0.02))
    lenient = GatePolicy.of({"metrics": {"accuracy": {"tolerance": 0.03, "clip": 0.1}}})
    assert explain(evidence, POLICY).verdict.decision is Decision.HALT
    assert explain(evidence, lenient).verdict.decision is not Decision.HALT


@given(evidences(max_devices=10))
@settings(max_examples=20, deadline=None)
def test_explaining_never_changes_the_verdict(evidence: Evidence) -> None:
    assert explain(evidence, POLICY).verdict == judge(evidence, POLICY)
    assert explain(replace(evidence, next_reach=None), POLICY).exposed == explain(evidence, POLICY).exposed
