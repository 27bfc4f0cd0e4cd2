"""The benchmark's gates over many rollouts are the server's gate, bit for bit."""

import numpy as np
from gating.devices import SITES, Devices
from gating.engine import NEVER, Gates, run

from sprat_server.rollouts.evidence import Reported
from sprat_server.rollouts.gate_policy import GatePolicy
from sprat_server.rollouts.gates import Gate

POLICY = GatePolicy()
COHORT = {f"site={i}": 20 for i in range(SITES)}
DEVICES = Devices(shift=-0.012, failing=0.05, slower=1.1)


def test_every_e_value_and_every_halt_is_the_gates_own() -> None:
    rollouts, reports = 8, 90
    rng = np.random.default_rng(3)
    many, gate = Gates(POLICY, rollouts, sites=20), Gate(POLICY)
    states = [gate.start(COHORT) for _ in range(rollouts)]
    for reported in range(1, reports + 1):
        draw = DEVICES.draw(rng, rollouts)
        many.report(draw)
        halted, reach = many.halted(), many.reach(reported)
        for i in range(rollouts):
            losses = {metric: float(loss[i]) for metric, loss in draw.losses.items()}
            segments = (f"site={draw.site[i]}",)
            report = Reported("", failed=bool(draw.failed[i]), losses=losses)
            states[i] = gate.report(gate.expose(states[i], segments), segments, report)
            assert gate.e_value(states[i]).hex() == float(many.e_value()[i]).hex()
            assert gate.reach(states[i]) == reach[i]
            assert bool(states[i].halted_by) or not halted[i]
    assert any(state.halted_by for state in states)
    assert not all(state.halted_by for state in states)


def test_who_is_exposed_is_the_wave_that_was_open() -> None:
    outcome = run(Devices(failing=1.0), POLICY, rollouts=5, horizon=100, seed=1, waves=(10, 20, 100))
    assert (outcome.halted_after == POLICY.first_failures).all()
    assert (outcome.exposed == 10).all()
    fine = run(Devices(), POLICY, rollouts=20, horizon=100, seed=1, waves=(10, 20, 40, 100))
    assert set(fine.exposed[~fine.held & (fine.halted_after == NEVER)]) == {100}
