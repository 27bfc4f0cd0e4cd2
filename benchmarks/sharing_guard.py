"""How soon does a device notice that a release which shares layers drifts, how often by mistake, and what does it cost?

    python benchmarks/sharing_guard.py [--streams 2000] [--json FILE]

Streams of requests, each looked at after every one: the guard's own game (`sprat_shared.evidence.change`), the gates'
game for a rate started once (`eprocess.rate_game`), and what one would do by hand, a test of Clopper and Pearson at the
same 1 %, asked again after every request. All see the very same streams. The false-alarm rate of the guard is asserted.
That the arithmetic here gives the guard's own is tested (`tests/unit/benchmarks/test_sharing_guard.py`).

Then what one time of comparing takes: in a fresh process that serves a release, the release that shares nothing is
checked, loaded, asked 64 requests, and let go.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/simulator"))

import numpy as np
import numpy.typing as npt
import tiny_onnx
from device_server import DeviceServer  # type: ignore[import-not-found]  # of the tests, as the others
from one_device import MODEL, OneDevice
from scipy import stats

from sprat_client.agent.settings import GuardSettings
from sprat_shared.evidence.change import ChangeGame, Standing
from sprat_shared.evidence.eprocess import rate_game
from sprat_shared.trust.targets import Shares

Floats = npt.NDArray[np.float64]
ALPHA: Final = GuardSettings().alpha
BUDGETS: Final = (0.01, 0.02, 0.05)
RISES: Final = (1.5, 2.0, 3.0, 5.0)
NULL_REQUESTS: Final = 10_000  # watched where nothing is wrong
ENOUGH: Final = 2000  # streams from which the goal is asserted
_LONGEST: Final = {1.5: 200, 2.0: 60, 3.0: 30, 5.0: 20}  # requests watched at a rise, times 1 / budget
_FEW: Final = 301  # streams of a median
_SCENE: Final = 8  # samples of a request
NEVER: Final = np.inf


class Test(Protocol):
    """Watches many streams at once."""

    def play(self, losses: Floats) -> None:
        """Take one observation of each stream."""

    def alarms(self) -> npt.NDArray[np.bool_]:
        """Say which streams have to go back now."""


class Guard:
    """The guard's game in each of many streams."""

    def __init__(self, budget: float, streams: int) -> None:
        self._game = ChangeGame(budget)
        self._observations = 0
        self.wealth = np.zeros((len(self._game.start().wealth), streams))
        # What one observation does to a bet is linear in its loss: asked of the game at both ends.
        unit = (1.0,) * len(self.wealth)
        before = self._game.play(Standing(10**9, unit), 0.0), self._game.play(Standing(10**9, unit), 1.0)
        self._low, self._high = (np.array(one.wealth)[:, np.newaxis] for one in before)
        none = self._reserve(1)
        self._weights = np.array(
            [self._game.e_value(Standing(1, tuple(one))) - none for one in np.eye(len(self.wealth))]
        )

    def play(self, losses: Floats) -> None:
        """See `Test.play`."""
        joins = self._reserve(self._observations) - self._reserve(self._observations + 1)
        self._observations += 1
        with np.errstate(over="ignore"):
            self.wealth = (self.wealth + joins) * (self._low + (self._high - self._low) * losses)

    def alarms(self) -> npt.NDArray[np.bool_]:
        """See `Test.alarms`."""
        return np.asarray(self.e_values() >= 1 / ALPHA)

    def e_values(self) -> Floats:
        """Return the e-value of each stream."""
        total: Floats = self._reserve(self._observations) + self._weights @ self.wealth
        return total

    def _reserve(self, observations: int) -> float:
        return self._game.e_value(Standing(observations, (0.0,) * len(self.wealth)))


class OnceStarted:
    """The gates' game for a rate in each of many streams."""

    def __init__(self, budget: float, streams: int) -> None:
        bets = rate_game(budget).bets
        self._budget = budget
        self._stake, self._weight = (np.array([getattr(bet, name) for bet in bets]) for name in ("stake", "weight"))
        self._capital = np.ones((len(bets), streams))

    def play(self, losses: Floats) -> None:
        """See `Test.play`."""
        with np.errstate(over="ignore", under="ignore"):
            self._capital *= 1.0 + self._stake[:, np.newaxis] * (losses - self._budget)

    def alarms(self) -> npt.NDArray[np.bool_]:
        """See `Test.alarms`."""
        return np.asarray(self._weight @ self._capital >= 1 / ALPHA)


class Peeking:
    """The exact test of a fixed sample, asked after every request: the lower bound at 99 % exceeds the budget."""

    def __init__(self, budget: float, streams: int) -> None:
        self._budget, self._requests = budget, 0
        self._differing, self._least = np.zeros(streams), np.zeros(0)

    def play(self, losses: Floats) -> None:
        """See `Test.play`."""
        self._requests += 1
        self._differing += losses

    def alarms(self) -> npt.NDArray[np.bool_]:
        """See `Test.alarms`."""
        if self._requests > len(self._least):
            more = np.arange(len(self._least) + 1, len(self._least) + 4097)
            least = stats.binom.isf(ALPHA, more, self._budget) + 1  # so many have a chance of at most alpha
            self._least = np.concatenate([self._least, least])
        return np.asarray(self._differing >= self._least[self._requests - 1])


TESTS: Final[dict[str, Callable[[float, int], Test]]] = {
    "guard": Guard,
    "a rate's game, once started": OnceStarted,
    "Clopper-Pearson, peeking": Peeking,
}
Draw = Callable[[np.random.Generator, int], Floats]  # the losses of one request in each stream


def independent(rate: float) -> Draw:
    """Return requests of one sample each."""
    return lambda rng, streams: (rng.random(streams) < rate).astype(float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What the tests made of some streams.

    Attributes:
        alarms: requests at the alarm by test and stream, counted from the rise; `NEVER` where there was none.
        before: share of streams that alarmed before the rise, by test.
    """

    alarms: dict[str, Floats]
    before: dict[str, float]

    def share(self, test: str) -> float:
        """Return the share of streams with an alarm."""
        return float(np.isfinite(self.alarms[test]).mean())

    def median(self, test: str) -> float:
        """Return the median of requests to the alarm; `NEVER` where half of the streams have none."""
        return float(np.median(self.alarms[test]))


def watch(budget: float, draw: Draw, *, streams: int, requests: int, seed: int, quiet: int = 0) -> Watched:
    """Let all tests watch the same streams.

    Args:
        budget: that may differ.
        draw: what differs from the rise on.
        streams: how many.
        requests: of a stream from the rise on.
        seed: of the draws.
        quiet: requests before the rise, of which a fifth of the budget differs.
    """
    rng, calm = np.random.default_rng(seed), independent(budget / 5)
    tests = {name: make(budget, streams) for name, make in TESTS.items()}
    found = {name: np.full(streams, NEVER) for name in tests}
    early = {name: np.zeros(streams, bool) for name in tests}
    for request in range(1, quiet + requests + 1):
        losses = (calm if request <= quiet else draw)(rng, streams)
        for name, test in tests.items():
            test.play(losses)
            if request <= quiet:
                early[name] |= test.alarms()
            else:
                new = test.alarms() & ~np.isfinite(found[name])
                found[name][new] = request - quiet
        if request > quiet and all(np.isfinite(found[name]).all() for name in tests):
            break
    return Watched(alarms=found, before={name: float(one.mean()) for name, one in early.items()})


def false_alarms(streams: int, seed: int) -> dict[str, Any]:
    """Return the share of streams that alarm though exactly the budget differs, by budget and test."""
    rows = {}
    for budget in BUDGETS:
        seen = watch(budget, independent(budget), streams=streams, requests=NULL_REQUESTS, seed=seed)
        rows[f"{budget:.0%}"] = {name: seen.share(name) for name in TESTS}
        if streams >= ENOUGH:
            assert seen.share("guard") <= ALPHA, f"{budget:.0%}: {seen.share('guard'):.2%} false alarms"
    return rows


def scenes(streams: int, seed: int) -> dict[str, dict[str, float]]:
    """Return the same where the eight samples of a request are of one scene: by request, and by sample."""
    rows = {}
    for budget in BUDGETS:
        rng = np.random.default_rng(seed)
        requests, samples = Guard(budget, streams), Guard(budget, streams)
        ever = {"by request": np.zeros(streams, bool), "by sample": np.zeros(streams, bool)}
        for _ in range(NULL_REQUESTS // _SCENE):
            losses = independent(budget)(rng, streams)
            requests.play(losses)
            ever["by request"] |= requests.alarms()
            for _ in range(_SCENE):
                samples.play(losses)
                ever["by sample"] |= samples.alarms()
        rows[f"{budget:.0%}"] = {name: float(one.mean()) for name, one in ever.items()}
    return rows


def delays(seed: int) -> dict[str, Any]:
    """Return the median of requests to the alarm by budget, rise and test."""
    rows = {}
    for budget in BUDGETS:
        for rise in RISES:
            draw = independent(rise * budget)
            seen = watch(budget, draw, streams=_FEW, requests=round(_LONGEST[rise] / budget), seed=seed)
            rows[f"{budget:.0%}, {rise:g} times"] = {name: seen.median(name) for name in TESTS}
    return rows


def late(seed: int, budget: float = 0.02, rise: float = 3.0) -> dict[str, Any]:
    """Return the same at three times the budget, after so many requests of which a fifth of the budget differed."""
    rows = {}
    for quiet in (0, 1000, 10_000, 100_000):
        draw = independent(rise * budget)
        seen = watch(budget, draw, streams=101, requests=round(200 / budget), seed=seed, quiet=quiet)
        rows[f"{quiet:,}"] = {name: seen.median(name) for name in TESTS}
    return rows


ROUND: Final = """
import json, sys, time
from pathlib import Path
import numpy as np
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.releases import Shelf
from sprat_client.agent.store import TensorStore
from sprat_client.runtime.memory import private_bytes, resident_bytes, return_memory
from sprat_client.runtime.onnxruntime_host import OnnxRuntime
folder, model, requests = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
shelf = Shelf(model, folder / "models" / model, TensorStore(folder / "store", PosixDisk()), PosixDisk())
slots, runtime = shelf.slots(), OnnxRuntime()
serving = runtime.load(shelf.folder_of(slots.active.release_id))
inputs = {"inputs": np.ones((1, serving.inputs[0].shape[1]), np.float32)}
serving.run(inputs)
return_memory()
before = resident_bytes(), private_bytes()
began = time.perf_counter()
manifest = shelf.manifest(slots.previous.release_id)
shelf.check(manifest)
base = runtime.load(shelf.folder_of(manifest.release_id))
loaded = time.perf_counter()
for _ in range(requests):
    base.run(inputs)
asked = time.perf_counter()
during = resident_bytes(), private_bytes()
del base
return_memory()
after = resident_bytes(), private_bytes()
print(json.dumps({"load_s": loaded - began, "ask_s": asked - loaded, "end_s": time.perf_counter() - asked,
                  "serving_mb": before[0] / 1e6, "during_mb": (during[0] - before[0]) / 1e6,
                  "during_private_mb": (during[1] - before[1]) / 1e6, "after_mb": (after[0] - before[0]) / 1e6}))
"""


def cost(hidden: int) -> dict[str, float]:
    """Return the seconds and megabytes of one time of comparing, of a model with so many hidden units."""
    with tempfile.TemporaryDirectory() as folder:
        server = DeviceServer()
        base = server.add_release(MODEL, tiny_onnx.weights(1, hidden=hidden), graph=tiny_onnx.graph(hidden=hidden))
        shares = Shares(base=1, weights=base.digest, donor="face", budget_ppm=20_000)
        with server.running() as url:
            device = OneDevice(Path(folder), server, url)
            changed = {**base.weights, "steps": ("I64", np.array(2, np.int64))}
            server.add_release(MODEL, changed, base=1, graph=base.graph, lossless=True, shares=shares)
            device.take(2)
        command = [sys.executable, "-c", ROUND, str(device.folder), MODEL, str(GuardSettings().most_requests)]
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
    middle = {name: sorted(run[name] for run in runs)[1] for name in runs[0]}
    return {"weights_mb": sum(array.nbytes for _, array in base.weights.values()) / 1e6, **middle}


def table(title: str, rows: dict[str, dict[str, float]], say: Callable[[float], str]) -> None:
    """Print one table."""
    columns = list(next(iter(rows.values())))
    print(f"\n| {title} | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(say(row[column]) for column in columns) + " |")


def _count(requests: float) -> str:
    return "never" if requests == NEVER else f"{requests:,.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--streams", type=int, default=ENOUGH, help="where nothing is wrong; asserted from 2000")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--json", type=Path, help="write all figures here")
    args = options.parse_args(arguments)
    began = time.process_time()
    found: dict[str, Any] = {"false alarms": false_alarms(args.streams, args.seed)}
    table("budget, which exactly differs", found["false alarms"], lambda share: f"{share:.2%}")
    found["scenes"] = scenes(args.streams, args.seed)
    table("eight samples of one scene", found["scenes"], lambda share: f"{share:.2%}")
    found["delays"] = delays(args.seed)
    table("budget, and what differs", found["delays"], _count)
    found["late"] = late(args.seed)
    table("requests before the rise", found["late"], _count)
    found["cost"] = {f"{one['weights_mb']:.1f} MB of weights": one for one in map(cost, (15_000, 300_000))}
    table("one time of comparing", found["cost"], lambda value: f"{value:.3f}")
    print(f"\n{time.process_time() - began:.0f} s of CPU in this process")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
