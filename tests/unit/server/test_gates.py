"""The gate: halts on proof of harm, opens on proof of none, holds otherwise; one word of each device, in order."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from gate_evidence import COHORT, SITES, drawn, evidences, of_devices
from hypothesis import given, settings
from hypothesis import strategies as st

from sprat_server.rollouts.evidence import Evidence, Exposed, Reported, log_ratio
from sprat_server.rollouts.gate_policy import GatePolicy
from sprat_server.rollouts.gate_state import ALL, GateState
from sprat_server.rollouts.gates import Decision, Gate, judge
from sprat_shared.errors import InvalidInput

POLICY = GatePolicy()
D = Decision


def test_a_release_that_loses_five_points_halts_within_a_dozen_devices() -> None:
    verdict = judge(of_devices(drawn(1, 16, 0.05)), POLICY)
    assert verdict.decision is D.HALT
    assert "accuracy of all" in verdict.reasons[0]


def test_a_release_that_changes_nothing_opens_waves_of_twice_the_size_up_to_the_fleet() -> None:
    for reports, reach in ((10, 20), (20, 40), (160, 320), (5120, 10_000)):
        verdict = judge(of_devices(drawn(2, reports, 0.0), next_reach=reach), POLICY)
        assert (verdict.decision, verdict.reach) == (D.OPEN, reach)


def test_the_release_goes_as_far_as_the_proof_carries_and_waits_there() -> None:
    few = judge(of_devices(drawn(2, 20, 0.004), next_reach=10_000), POLICY)
    assert few.decision is D.OPEN
    proven = float(few.reasons[1].rpartition(" ")[2])
    assert few.reach == int(POLICY.metrics["accuracy"].budget / proven) < 10_000
    there = judge(of_devices(drawn(2, 20, 0.004) + drawn(3, few.reach - 20, 0.008), next_reach=10_000), POLICY)
    assert there.decision is D.HOLD
    assert there.reach == few.reach
    assert "accuracy is proven to fall by less than" in there.reasons[0]


def test_without_a_budget_nothing_but_the_tolerance_opens() -> None:
    strict = GatePolicy.of({"metrics": {"accuracy": {"budget": 0}}})
    assert judge(of_devices(drawn(2, 10, 0.0), next_reach=20), strict).decision is D.HOLD
    assert judge(of_devices(drawn(2, 300, 0.0), next_reach=600), strict).decision is D.OPEN


def test_without_labels_anywhere_nothing_opens() -> None:
    silent = of_devices([0.0] * 50)
    events = tuple(replace(one, losses={}) if isinstance(one, Reported) else one for one in silent.events)
    verdict = judge(replace(silent, events=events), POLICY)
    assert verdict.decision is D.HOLD
    assert verdict.reasons == ("0 devices measured accuracy, at least 9 must",)
    lenient = GatePolicy.of({"metrics": {"accuracy": {"required": False}}})
    assert judge(replace(silent, events=events), lenient).decision is D.OPEN


def test_the_last_wave_needs_reports_but_no_proof() -> None:
    assert judge(of_devices(drawn(3, 12, 0.006), next_reach=None), POLICY).decision is D.OPEN


def test_nothing_opens_before_nine_of_ten_exposed_devices_reported() -> None:
    whole = of_devices(drawn(4, 20, 0.0), next_reach=40)
    assert judge(whole, POLICY).decision is D.OPEN
    assert judge(replace(whole, events=whole.events[:-2]), POLICY).decision is D.OPEN
    cut = judge(replace(whole, events=whole.events[:-3]), POLICY)
    assert cut.decision is D.HOLD
    assert cut.reasons == ("17 of 20 exposed devices reported, 90% must",)


def test_no_evidence_at_all_holds() -> None:
    assert judge(Evidence({}, (), 10), POLICY).decision is D.HOLD


def test_the_first_two_failures_halt_and_a_success_before_them_does_not() -> None:
    assert judge(of_devices([0.0, 0.0], failed=[True, True]), POLICY).decision is D.HALT
    assert judge(of_devices([0.0, 0.0, 0.0], failed=[False, True, True]), POLICY).decision is D.OPEN
    assert judge(of_devices([0.0, 0.0, 0.0], failed=[False, True, True]), POLICY).reach == 4
    assert judge(of_devices([0.0], failed=[True]), POLICY).decision is D.OPEN
    without = replace(POLICY, first_failures=0)
    assert judge(of_devices([0.0, 0.0], failed=[True, True]), without).decision is not D.HALT


def test_devices_that_fall_silent_halt_as_devices_that_fail() -> None:
    fine = of_devices(drawn(5, 40, 0.0))
    lost = [
        Reported(one.device, failed=True, lost=True) if isinstance(one, Reported) and i % 3 == 0 else one
        for i, one in enumerate(fine.events)
    ]
    verdict = judge(replace(fine, events=tuple(lost)), POLICY)
    assert verdict.decision is D.HALT
    assert "from failures of" in verdict.reasons[0]


def test_a_halt_stands_whatever_is_reported_later() -> None:
    bad = drawn(6, 16, 0.05)
    assert judge(of_devices(bad + [-0.1] * 200), POLICY).decision is D.HALT


def test_one_bad_site_halts_and_is_named() -> None:
    losses = [0.06 if i % 3 == 1 else 0.0 for i in range(90)]
    verdict = judge(of_devices([a + b for a, b in zip(losses, drawn(7, 90, 0.0), strict=True)]), POLICY)
    assert verdict.decision is D.HALT
    assert "site=b" in verdict.reasons[0]


def test_a_site_that_alone_stays_silent_holds_the_next_wave() -> None:
    exposures = [Exposed(f"d{i}", (SITES[i % 3],)) for i in range(300)]
    answers = [
        Reported(f"d{i}", failed=False, losses={"accuracy": loss}) for i, loss in enumerate(drawn(8, 300, 0)) if i % 3
    ]
    lenient = replace(POLICY, min_reported=0.5)
    verdict = judge(Evidence(COHORT, (*exposures, *answers), 600), lenient)
    assert verdict.decision is D.HOLD
    assert "silence is not random by site" in verdict.reasons[0]
    assert "site=a answered for 0%" in verdict.reasons[0]
    assert (
        judge(Evidence(COHORT, (*exposures, *answers[::2]), 600), replace(lenient, min_reported=0.1)).decision is D.HOLD
    )


def test_with_some_evidence_of_harm_only_a_quarter_more_devices_get_the_release() -> None:
    lost = [0.04] * 9 + [-0.012, 0.005] * 10
    gate = Gate(POLICY)
    steps = []
    for count in range(1, 30):
        state = gate.fold(of_devices(lost[:count]))
        if POLICY.halts_at > gate.e_value(state) >= 5:
            steps.append((count, gate.decide(state, 40).reach))
    assert steps
    assert all(reach == count + max(1, count // 4) for count, reach in steps)


def test_at_most_one_in_a_hundred_rollouts_halts_at_the_edge_of_what_is_tolerated() -> None:
    policy = GatePolicy.of({"alpha": 0.05})
    gate = Gate(policy)
    halted = 0
    for seed in range(150):
        state, failures = gate.start(COHORT), drawn(1000 + seed, 120, 0.0)
        losses = drawn(seed, 120, policy.metrics["accuracy"].tolerance)
        for i, loss in enumerate(losses):
            segments = (SITES[i % 3],)
            failed = failures[i] > 0.014 * 2.05  # 2 %
            report = Reported(str(i), failed=failed, losses={"accuracy": loss})
            state = gate.report(gate.expose(state, segments), segments, report)
        halted += state.halted_by is not None
    assert halted <= 150 * 0.05 + 3 * math.sqrt(150 * 0.05 * 0.95)


@given(evidences(), st.data())
def test_a_worse_report_never_lowers_the_evidence_of_harm(evidence: Evidence, data: st.DataObject) -> None:
    reports = [i for i, event in enumerate(evidence.events) if isinstance(event, Reported)]
    if not reports:
        return
    events: list[Any] = list(evidence.events)
    at = data.draw(st.sampled_from(reports))
    one = events[at]
    more = {metric: data.draw(st.floats(loss, max(loss, 1.0))) for metric, loss in one.losses.items()}
    events[at] = replace(one, failed=True, losses=more)
    gate = Gate(POLICY)
    before, after = gate.fold(evidence), gate.fold(replace(evidence, events=tuple(events)))
    assert gate.e_value(after) >= gate.e_value(before)
    if before.halted_by is not None:
        assert after.halted_by is not None


@given(evidences())
@settings(max_examples=40)
def test_a_state_stored_after_every_event_gives_the_same_bits_as_the_whole_evidence(evidence: Evidence) -> None:
    gate = Gate(POLICY)
    state, segments = gate.start(evidence.cohort), {}
    for event in evidence.events:
        if isinstance(event, Exposed):
            segments[event.device] = event.segments
            state = gate.expose(state, event.segments)
        else:
            state = gate.report(state, segments[event.device], event)
        scopes = {name: json.loads(json.dumps(scope.as_json())) for name, scope in reversed(state.scopes.items())}
        state = GateState.of(json.loads(json.dumps(state.as_json())), scopes)
    again = gate.fold(Evidence.of(json.loads(json.dumps(evidence.as_json()))))
    assert {**state.scopes} == {**again.scopes}
    assert (state.ratios, state.openings, state.halted_by) == (again.ratios, again.openings, again.halted_by)
    assert gate.e_value(state).hex() == gate.e_value(again).hex()
    assert gate.decide(state, evidence.next_reach) == judge(evidence, POLICY)


@given(evidences())
def test_evidence_is_never_negative_nor_without_bounds_and_starts_at_one(evidence: Evidence) -> None:
    gate = Gate(POLICY)
    assert gate.e_value(gate.start(COHORT)) == pytest.approx(1.0)
    assert 0 <= gate.e_value(gate.fold(evidence)) < math.inf


def test_the_shares_of_the_false_alarm_rate_make_one_whatever_the_cohort() -> None:
    for cohort in ({}, {"site=a": 9}, COHORT, {**COHORT, "profile=x": 100, "profile=y": 200}, {**COHORT, "site=d": 1}):
        assert sum(POLICY.scopes(cohort).values()) == pytest.approx(1.0)
    assert "site=d" not in POLICY.scopes({**COHORT, "site=d": 1})
    assert POLICY.scopes({"profile=only": 50}) == {ALL: 1.0}


def test_where_silence_is_random_the_bet_on_who_answers_next_is_fair() -> None:
    gate = Gate(POLICY)
    state = gate.start(COHORT)
    for site, devices in zip(SITES, (4, 2, 1), strict=True):
        for _ in range(devices):
            state = gate.expose(state, (site,))

    def mean(now: GateState, rounds: int) -> float:
        if not rounds:
            return math.ldexp(*now.ratios["site"])
        left = {site: now.scopes[site].exposed - now.scopes[site].reported for site in SITES}
        return sum(
            count / sum(left.values()) * mean(gate.report(now, (site,), Reported("", failed=False)), rounds - 1)
            for site, count in left.items()
            if count
        )

    for rounds in range(1, 5):
        assert mean(state, rounds) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(
    ("events", "what"),
    [
        ((Reported("a", failed=False),), "before it was exposed"),
        ((Exposed("a"), Exposed("a")), "exposed twice"),
        ((Exposed("a"), Reported("a", failed=False), Reported("a", failed=True)), "reported twice"),
        ((Exposed("a", ("site=z",)),), "which the cohort lacks"),
    ],
)
def test_evidence_out_of_order_is_refused(events: tuple[Exposed | Reported, ...], what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        Evidence(COHORT, events)


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1.5, -2.0])
def test_a_loss_that_cannot_be_is_refused(loss: float) -> None:
    with pytest.raises(InvalidInput, match="cannot be"):
        Reported("a", failed=False, losses={"accuracy": loss})


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"alpha": 0}, "alpha must be"),
        ({"alpha": True}, "type float"),
        ({"min_reports": 1.5}, "type int"),
        ({"min_reports": -1}, "cannot be -1"),
        ({"speed": 1}, "'speed' is not known"),
        ({"metrics": []}, "by name"),
        ({"metrics": {"accuracy": {"tolerance": 0.05}}}, "0 < tolerance < clip"),
        ({"metrics": {"accuracy": {"weight": 0.9}}}, "at most 1"),
        ({"metrics": {"memory": {"weight": 0.0}}}, "needs tolerance, clip and weight"),
        ({"first_failures": 1}, "false-alarm rate"),
        ({"allowed_failures": 0.2}, "false-alarm rate"),
        ([], "expected an object"),
    ],
)
def test_a_policy_that_cannot_hold_says_why(said: Any, what: str) -> None:
    with pytest.raises(InvalidInput, match=what) as refused:
        GatePolicy.of(said)
    assert refused.value.code == "gates.bad-policy"


def test_a_policy_is_what_it_says_and_what_it_does_not_say_is_the_default() -> None:
    policy = GatePolicy.of({"alpha": 0.02, "metrics": {"accuracy": {"tolerance": 0.01}, "latency_p95": None}})
    assert (policy.alpha, policy.metrics["accuracy"].tolerance, policy.metrics["accuracy"].clip) == (0.02, 0.01, 0.04)
    assert list(policy.metrics) == ["accuracy", "latency_p50"]
    assert GatePolicy.of(json.loads(json.dumps(POLICY.as_json()))) == POLICY


@pytest.mark.parametrize(
    "said",
    [
        {"cohort": {"site=a": 0}, "events": []},
        {"cohort": {}, "events": [{"exposed": 1}]},
        {"cohort": {}, "events": {}},
        {"cohort": {}, "events": [{"exposed": "a"}, {"reported": "a", "failed": 1, "losses": {}}]},
        {"cohort": {}, "events": [{"exposed": "a"}, {"reported": "a", "failed": True, "losses": {"x": "1"}}]},
        {"cohort": {}, "events": [], "next_reach": 0},
    ],
)
def test_stored_evidence_that_is_damaged_is_refused(said: Any) -> None:
    with pytest.raises(InvalidInput):
        Evidence.of(said)


def test_a_log_ratio_needs_two_times_and_is_rounded() -> None:
    assert log_ratio(2.0, 1.0) == 0.693147
    assert [log_ratio(*pair) for pair in itertools.product((None, 0.0, math.inf), (1.0, None))] == [None] * 6


def test_a_budget_that_makes_no_whole_device_more_holds() -> None:
    tight = GatePolicy.of({"metrics": {"accuracy": {"budget": 0.3}}})  # 7.5 devices while nothing is proven
    six, seven = (judge(of_devices([0.035, -0.035, 0.035, -0.035, 0.035, -0.035, 0.035][:n]), tight) for n in (6, 7))
    assert (six.decision, six.reach) == (D.OPEN, 7)
    assert (seven.decision, seven.reach) == (D.HOLD, 7)
    assert "enough for 7 devices" in seven.reasons[0]
