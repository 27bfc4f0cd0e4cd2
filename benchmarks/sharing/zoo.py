"""The models: trained once for each seed, exported as the server exports releases, kept in the cache.

A model is what a device would hold: a graph without weights and a table of tensors.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from sizes.ledger import source_digest
from torch import nn

from sharing import data as data_code
from sharing import networks
from sharing.data import Domain, Labels, domain
from sprat_server.training.export import Example, export
from sprat_server.training.states import to_source
from sprat_shared.wire.tensors import ArrayTensors, TensorSource

_GROUPS: Final = np.array([0, 1, 0, 2, 0, 3, 0, 3, 4, 3])  # tops, trousers, dresses, shoes, bags
_SHOES: Final = np.array([0, 0, 0, 0, 0, 1, 0, 2, 0, 3])  # none, sandal, sneaker, boot
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Task:
    """What is told apart: a domain, and which class each of its finest labels is; None: the label itself."""

    domain: str
    classes: int
    of: Labels | None = None

    def labels(self, finest: Labels) -> Labels:
        """Return the task's labels."""
        return finest if self.of is None else self.of[finest]


TASKS: Final[Mapping[str, Task]] = {
    "clothes": Task("clothes", 10),
    "groups": Task("clothes", 5, _GROUPS),
    "shoes": Task("clothes", 4, _SHOES),
    "digits": Task("digits", 10),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """How one model of a zoo is made: `base` names the model whose weights it starts from."""

    family: str
    task: str
    base: str | None = None

    @property
    def name(self) -> str:
        """Return the model's name in its zoo."""
        return f"{self.family}.{self.task}" + (".sibling" if self.base else "")


MIXED: Final = tuple(Kind(family, task) for family in networks.FAMILIES for task in ("clothes", "groups", "digits"))
SIBLINGS: Final = (
    Kind("vgg", "clothes"),
    *(Kind("vgg", task, base="vgg.clothes") for task in ("groups", "shoes", "digits")),
)


@dataclass(frozen=True, slots=True)
class Member:
    """A model of a zoo.

    Attributes:
        kind: how it was made.
        task: what it tells apart.
        graph: ONNX bytes without weights.
        tensors: its weights.
    """

    kind: Kind
    task: Task
    graph: bytes
    tensors: TensorSource


class Zoo:
    """All models of one seed; each is trained when it is first asked for.

    Args:
        seed: of splits, first weights and order of samples.
        cache: folder.
    """

    def __init__(self, seed: int, cache: Path) -> None:
        self.seed, self._folder = seed, cache / f"{seed}-{self.code()}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def task(self, kind: Kind) -> Task:
        """Return what a model tells apart."""
        return TASKS[kind.task]

    def code(self) -> str:
        """Return the digest of what makes the models."""
        return source_digest(*(Path(str(file)) for file in (__file__, data_code.__file__, networks.__file__)))

    def domain(self, task: Task) -> Domain:
        """Return the splits that a task's models see."""
        return domain(task.domain, self.seed)

    def member(self, kind: Kind) -> Member:
        """Return a model, trained if it is not in the cache."""
        graph, weights = (self._folder / f"{kind.name}.{ending}" for ending in ("onnx", "npz"))
        if not weights.exists():
            self._make(kind, graph, weights)
        with np.load(weights) as arrays:
            tensors = ArrayTensors({name: ("F32", arrays[name]) for name in arrays.files})
        return Member(kind, self.task(kind), graph.read_bytes(), tensors)

    def _make(self, kind: Kind, graph: Path, weights: Path) -> None:
        task = self.task(kind)
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{self.seed} {kind.name}".encode()).digest()[:4], "big"))
        module = networks.FAMILIES[kind.family](task.classes)
        if kind.base:
            base = next(other for other in SIBLINGS if other.name == kind.base)
            source = self.member(base).tensors
            held = {spec.name: source.read(i) for i, spec in enumerate(source.table)}
            own = module.state_dict()
            fits = {n: torch.from_numpy(a.copy()) for n, a in held.items() if own[n].shape == a.shape}
            module.load_state_dict({**own, **fits})
        seen = self.domain(task)
        epochs = (3 if kind.base else 8) * (1 if task.domain == "clothes" else 2)
        train(module, seen.inputs["train"], task.labels(seen.labels["train"]), epochs, 3e-4 if kind.base else 2e-3)
        right = accuracy(module, seen.inputs["test"], task.labels(seen.labels["test"]))
        print(f"seed {self.seed}: {kind.name} is right in {100 * right:.1f} % on test", file=sys.stderr, flush=True)
        keep(module, seen.inputs["test"].shape[1:], graph, weights)


def keep(module: nn.Module, shape: tuple[int, ...], graph: Path, weights: Path) -> None:
    """Export a module as the server does, and write its graph and its float tensors."""
    state = {name: t.detach() for name, t in module.state_dict().items() if t.is_floating_point()}
    exported = export(module, to_source(state), Example.single(shape, "float32"))
    graph.write_bytes(exported.graph.data)
    beside = weights.with_name(f"{weights.stem}.{os.getpid()}.npz")
    np.savez(beside, **{name: tensor.numpy() for name, tensor in state.items()})
    beside.replace(weights)


def train(module: nn.Module, inputs: data_code.Images, labels: Labels, epochs: int, rate: float) -> None:
    """Train on labelled inputs: AdamW, a rate that falls with the cosine, pictures moved by up to a pixel."""
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(module.parameters(), rate, weight_decay=1e-3)
    steps = epochs * -(-len(x) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    module.train()
    for at in _batches(len(x), epochs):
        moved = torch.roll(x[at], tuple(np.random.default_rng(int(at[0])).integers(-1, 2, 2)), (2, 3))
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(moved), y[at]).backward()
        optimiser.step()
        schedule.step()
    module.eval()


def accuracy(module: nn.Module, inputs: data_code.Images, labels: Labels) -> float:
    """Return the share of inputs whose label a module names."""
    module.eval()
    with torch.no_grad():
        tops = [module(part).argmax(1) for part in torch.from_numpy(inputs).split(256)]
    return float((torch.cat(tops).numpy() == labels).mean())


def _batches(count: int, epochs: int) -> Iterator[torch.Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(count).split(_BATCH)
