"""sprat's lossless mode, beside the peers that are exact too."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sizes.cases import Problem
from sizes.method import Method, Sent
from sizes.store import Store
from sprat_server.training.states import to_source
from sprat_shared import encode, wire
from sprat_shared.encode import encode_delta


def _lossless(problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
    counters = {name: t for name, t in problem.base.items() if not t.is_floating_point()}  # no peer sends these
    wished = to_source({**problem.teacher, **counters})
    for setting in settings:
        encoded = encode_delta(problem.source, wished, lossless=True, standalone=False)
        yield Sent(setting, len(encoded.data), problem.teacher)


METHODS: Final = (
    Method(
        key="lossless",
        title="sprat lossless",
        ours=True,
        settings=("lossless",),
        sweep=_lossless,
        code=(
            Path(__file__),
            *sorted(file for package in (encode, wire) for file in Path(str(package.__file__)).parent.glob("*.py")),
        ),
    ),
)
