"""Evidence for tests of gates: made up by hypothesis, or drawn from a seed."""

from collections.abc import Sequence
from random import Random

from hypothesis import strategies as st

from sprat_server.rollouts.evidence import Evidence, Exposed, Reported

SITES = ("site=a", "site=b", "site=c")
COHORT = dict.fromkeys(SITES, 100)

losses = st.fixed_dictionaries(
    {},
    optional={
        "accuracy": st.floats(-1, 1, allow_nan=False),
        "latency_p50": st.floats(-3, 3, allow_nan=False),
        "latency_p95": st.floats(-3, 3, allow_nan=False),
    },
)


@st.composite
def evidences(draw: st.DrawFn, max_devices: int = 25) -> Evidence:
    """Any evidence in a possible order: exposures and reports mixed, some devices silent."""
    count = draw(st.integers(0, max_devices))
    events: list[Exposed | Reported] = []
    awaited: list[str] = []
    exposed = 0
    while exposed < count or (awaited and draw(st.booleans())):
        if exposed < count and (not awaited or draw(st.booleans())):
            events.append(Exposed(f"d{exposed}", (draw(st.sampled_from(SITES)),)))
            awaited.append(f"d{exposed}")
            exposed += 1
        else:
            device = awaited.pop(draw(st.integers(0, len(awaited) - 1)))
            lost = draw(st.integers(0, 9)) == 0
            events.append(
                Reported(device, failed=lost or draw(st.booleans()), losses={} if lost else draw(losses), lost=lost)
            )
    return Evidence(COHORT, tuple(events), draw(st.none() | st.integers(1, 1000)))


def of_devices(
    accuracy_losses: Sequence[float], *, failed: Sequence[bool] | None = None, next_reach: int | None = 40
) -> Evidence:
    """Evidence of one device after the other, over the sites in turn, all exposed first."""
    names = [f"d{i}" for i in range(len(accuracy_losses))]
    exposures = [Exposed(name, (SITES[i % 3],)) for i, name in enumerate(names)]
    reports = [
        Reported(name, failed=failed is not None and failed[i], losses={"accuracy": accuracy_losses[i]})
        for i, name in enumerate(names)
    ]
    return Evidence(COHORT, (*exposures, *reports), next_reach)


def drawn(seed: int, count: int, loss: float, noise: float = 0.014) -> list[float]:
    """Losses of devices around a mean."""
    random = Random(seed)
    return [min(max(random.gauss(loss, noise), -1.0), 1.0) for _ in range(count)]
