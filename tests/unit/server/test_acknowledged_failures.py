"""A person may forgive failures; the false-alarm rate stays what it says."""

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from sprat_server.rollouts.evidence import Acknowledged, Event, Evidence, Exposed, Reported
from sprat_server.rollouts.explain import explain
from sprat_server.rollouts.gate_policy import FAILURES, GatePolicy
from sprat_server.rollouts.gate_state import ALL
from sprat_server.rollouts.gates import Decision, Gate
from sprat_shared.evidence.eprocess import rate_game

POLICY = GatePolicy()


def heard(words: str) -> list[Event]:
    """Devices that are exposed and say how it ended: f failed, w much worse, . good; ! is an acknowledgement."""
    events: list[Event] = []
    for at, word in enumerate(words):
        if word == "!":
            events.append(Acknowledged())
            continue
        loss = 0.3 if word == "w" else 0.0
        said = Reported(str(at), failed=word == "f", losses={} if word == "f" else {"accuracy": loss})
        events += [Exposed(str(at)), said]
    return events


def decision(words: str, policy: GatePolicy = POLICY) -> Decision:
    gate = Gate(policy)
    return gate.decide(gate.fold(Evidence({}, heard(words))), None).decision


def test_acknowledged_failures_halt_no_more_and_new_ones_do() -> None:
    assert decision("ff") is Decision.HALT
    assert decision("ff!") is not Decision.HALT
    assert decision("ff!" + "." * 20) is Decision.OPEN
    assert decision("ff!" + "f") is not Decision.HALT, "the hard stop on the first failures is spent"
    assert decision("ff!" + "f" * 12) is Decision.HALT


def test_what_was_measured_cannot_be_forgiven() -> None:
    assert decision("w" * 40) is Decision.HALT
    assert decision("w" * 40 + "!") is Decision.HALT
    gate = Gate(POLICY)
    state = gate.fold(Evidence({}, heard("ff" + "w" * 30 + "!")))
    assert state.halted_by is not None
    assert "accuracy" in state.halted_by


def test_an_explanation_counts_from_the_halt_that_stands() -> None:
    said = explain(Evidence({}, heard("ff!" + "." * 12)), POLICY)
    assert (said.halted_after, said.failed, said.reported) == (None, 2, 14)
    assert explain(Evidence({}, heard("ff!" + "f" * 12)), POLICY).halted_after not in {None, 2}


def test_acknowledging_is_evidence_like_any_other_and_is_read_back() -> None:
    evidence = Evidence({}, tuple(heard("..f!.f")))
    assert Evidence.of(evidence.as_json()) == evidence


@given(st.text("f.!", max_size=40))
def test_acknowledging_never_adds_evidence_of_harm(words: str) -> None:
    gate = Gate(POLICY)
    state = gate.fold(Evidence({}, heard(words)))
    before, after = state.scopes[ALL], gate.acknowledge(state).scopes[ALL]
    assert after.e_values[FAILURES] <= max(1.0, before.e_values[FAILURES]) * (1 + 1e-12)
    assert after.e_values[FAILURES] <= 1 + 1e-12
    for old, new in zip(before.capitals[FAILURES], after.capitals[FAILURES], strict=True):
        assert new[0] * 2.0 ** new[1] <= old[0] * 2.0 ** old[1] * (1 + 1e-12)
    assert replace(after, capitals=before.capitals, e_values=before.e_values) == before


def test_whoever_acknowledges_after_every_failure_still_halts_harmless_rollouts_in_one_of_a_hundred_at_most() -> None:
    """The worst that a person can do: forgive each failure at once. 2 % fail, which is what is allowed."""
    game, alarms, runs, random = rate_game(0.02), 0, 2000, Random(5)
    for _ in range(runs):
        capital, burnt = game.start(), 0
        for _ in range(300):
            failed = random.random() < 0.02
            capital = game.play(capital, float(failed))
            if game.e_value(capital) >= 100:
                alarms += 1
                break
            if failed and burnt < 3:
                capital, burnt = game.burn(capital), burnt + 1
    assert alarms <= 0.01 * runs
