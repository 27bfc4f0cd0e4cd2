"""Fine-tuning of a level: what of it is nobody else's learns to answer as the recipient does by itself.

That is the map of a stitch, the affine parameters of norms, and the head (the linear layer that is called last). A
donor's tensor is never touched, nor is a running statistic. The teacher is the recipient that shares nothing, so no
label is needed. Gradients come from the recipient's torch module, which goes on from the mapped activations of the
donor; what is trained is composed anew, and held against the module.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from sprat_server.sharing.activations import Runner
from sprat_server.sharing.derived import Derived
from sprat_server.sharing.maps import Form, prepared
from sprat_server.sharing.places import close, last_linear, places, put
from sprat_server.sharing.releases import Release
from sprat_server.sharing.splice import Splice
from sprat_server.sharing.ties import Tie
from sprat_shared.wire.tensors import Array

STEPS: Final = 300
"""Of one level, whatever it is: seconds of a small network. What is trained is small and begins near its end."""

LEARNING_RATE: Final = 1e-2
"""Peak of the one-cycle schedule (Adam): a tenth of it does not get as far in these steps, and nothing diverges yet."""

BATCH: Final = 64
"""Inputs a step."""

TEMPERATURE: Final = 2.0
"""Of the distillation: near the answers themselves, which agreement counts, and yet of all classes."""

_PROBED: Final = 16  # inputs on which module and graph are compared
_TOLD: Final = 20  # steps between two words on how far it is
_NORMS: Final = (
    nn.modules.batchnorm._BatchNorm,  # noqa: SLF001 - the common base
    nn.modules.instancenorm._InstanceNorm,  # noqa: SLF001 - likewise
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)

Way = Tie | Splice
Progress = Callable[[float, str], None]
"""Told the fraction done, and a sentence. It raises to stop the work (cancel)."""


class Why(StrEnum):
    """Why a level stays as it was composed."""

    AGREES = "agrees-already"
    NO_RECIPE = "no-recipe"
    RECIPE_FAILS = "recipe-fails"
    NO_PLACE = "no-place"
    NOTHING = "nothing-to-train"
    DIVERGED = "diverged"
    INEXACT = "inexact"
    NO_BETTER = "no-better"


class Untrained(Exception):
    """A level cannot be trained; it stays as it was composed.

    Attributes:
        why: for programs.
        detail: for people.
    """

    def __init__(self, why: Why, detail: str) -> None:
        super().__init__(f"{why}: {detail}")
        self.why, self.detail = why, detail


@dataclass(frozen=True, slots=True, eq=False)
class Student:
    """A recipient that can learn.

    Attributes:
        module: as its recipe gives it, in the weights of the recipient's release, float32; training changes it.
        classifies: its outputs are logits (batch, classes); else it is taught by the squared distance of its outputs.
    """

    module: nn.Module
    classifies: bool


def finetuned(way: Way, student: Student, inputs: Array, *, seed: int, progress: Progress) -> Way:
    """Return a way to share with what is the recipient's own in it trained; the same for the same seed.

    Args:
        way: tie or splice, as it was fitted.
        student: the recipient; its module is used up.
        inputs: (n, ...) that fitted maps; none that chooses or certifies.
        seed: of the order of inputs.
        progress: told how far it is.

    Raises:
        Untrained: it cannot be trained, or what came out does not compute what was trained.
    """
    module = student.module.eval()
    some, untrained = inputs[:_PROBED], way.derived()
    lesson = _lesson(way, module, some, _answers(untrained, some))
    own = _own_parameters(module, torch.from_numpy(some), lesson.allowed)
    for parameter in module.parameters():
        parameter.requires_grad = False
    learning = [*own.values(), *lesson.extra]
    if not learning:
        raise Untrained(Why.NOTHING, f"{way.recipient.name} has neither norms nor a linear head of its own there")
    targets = torch.from_numpy(Runner(way.recipient.filled()).answers(inputs))
    _train(lesson, learning, inputs, targets, student.classifies, seed, progress)
    changed = way.recipient.with_changed({name: parameter.detach().numpy() for name, parameter in own.items()})
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.from_numpy(changed.read(name).copy()))  # as its dtype holds it
    trained = lesson.trained(changed)
    with torch.no_grad(), _of_recipe():
        computed = lesson.run(some)
    if not close(torch.from_numpy(_answers(trained.derived(), some)), computed):
        raise Untrained(Why.INEXACT, "the composed graph does not answer as the module that was trained")
    return trained


class _Lesson(Protocol):
    """A level as torch computes it.

    Attributes:
        allowed: initialisers that are the recipient's own in it.
        extra: what learns beside the module's parameters.
    """

    allowed: frozenset[str]
    extra: list[Tensor]

    def run(self, inputs: Array) -> Tensor:
        """Return its answers (n, ...)."""

    def trained(self, recipient: Release) -> Way:
        """Return the way with what it has learnt, on a recipient with what it has learnt."""


def _lesson(way: Way, module: nn.Module, some: Array, answers: Array) -> _Lesson:
    return _Tied(way, module, some, answers) if isinstance(way, Tie) else _Spliced(way, module, some, answers)


class _Tied:
    """A tie: the module with the donor's matrices in it."""

    def __init__(self, tie: Tie, module: nn.Module, some: Array, answers: Array) -> None:
        self._tie, self._module = tie, module
        self.allowed = frozenset(tie.recipient.bound) - tie.tied
        self.extra: list[Tensor] = []
        state = module.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, array in tie.replaced().items():
                state[name].copy_(torch.from_numpy(array))
            with _of_recipe():
                computed = self.run(some)
        if not close(torch.from_numpy(answers), computed):
            raise Untrained(Why.INEXACT, "the recipe's module with the donor's tensors does not answer as the graph")

    def run(self, inputs: Array) -> Tensor:
        return _first(self._module(torch.from_numpy(inputs)))

    def trained(self, recipient: Release) -> Way:
        return replace(self._tie, recipient=recipient)


class _Spliced:
    """A splice: the module goes on from the donor's activations through the map, which learns."""

    def __init__(self, splice: Splice, module: nn.Module, some: Array, answers: Array) -> None:
        self._splice, self._module = splice, module
        self._take, self._put = splice.donor_cut.tensor, splice.recipient_cut.tensor
        self._donor = Runner(splice.donor.filled(), [self._take])
        self.allowed = splice.recipient_cut.after
        self._weight, self._bias = (
            torch.from_numpy(array.copy()).requires_grad_() for array in (splice.affine.weight, splice.affine.bias)
        )
        self.extra = [self._weight, self._bias]
        self._place = self._found(some, torch.from_numpy(answers))

    def _found(self, some: Array, answers: Tensor) -> int:
        """Return where the module goes on as the graph does: all that follows the cut comes from there."""
        cut = Runner(self._splice.recipient.filled(), [self._put]).run(some)[self._put]
        with torch.no_grad(), _of_recipe():
            for place in places(self._module, torch.from_numpy(some), torch.from_numpy(cut)):
                self._place = place
                if close(answers, self.run(some)):
                    return place
        raise Untrained(Why.NO_PLACE, f"the recipe's module computes nowhere what the graph does at {self._put}")

    def run(self, inputs: Array) -> Tensor:
        with put(self._place, self._mapped(inputs)):
            return _first(self._module(torch.from_numpy(inputs)))

    def _mapped(self, inputs: Array) -> Tensor:
        """Return what the map makes of the donor's activations, as `AffineMap.apply` does: (n, *recipient)."""
        affine = self._splice.affine
        rows = prepared(self._donor.run(inputs)[self._take], affine.recipient, affine.grid)
        mapped = functional.linear(torch.from_numpy(rows), self._weight, self._bias)
        return mapped.movedim(-1, 1) if affine.form is Form.CHANNELS else mapped

    def trained(self, recipient: Release) -> Way:
        weight, bias = (tensor.detach().numpy().copy() for tensor in self.extra)
        return replace(self._splice, affine=replace(self._splice.affine, weight=weight, bias=bias), recipient=recipient)


def _own_parameters(module: nn.Module, some: Tensor, allowed: frozenset[str]) -> Mapping[str, nn.Parameter]:
    """Return the parameters of norms and of the head by name, that are allowed, not frozen, and of one layer only."""
    uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    head, own = last_linear(module, some), dict[str, nn.Parameter]()
    for layer_name, layer in module.named_modules():
        if layer_name != head and not isinstance(layer, _NORMS):
            continue
        for key, parameter in layer.named_parameters(recurse=False):
            name = f"{layer_name}.{key}" if layer_name else key
            if name in allowed and parameter.requires_grad and uses[id(parameter)] == 1:
                own[name] = parameter
    return own


def _train(  # noqa: PLR0917 - what learns what from whom
    lesson: _Lesson,
    learning: list[Tensor],
    inputs: Array,
    targets: Tensor,
    classifies: bool,  # noqa: FBT001 - as the student says
    seed: int,
    progress: Progress,
) -> None:
    for tensor in learning:
        tensor.requires_grad_()
    optimizer = torch.optim.Adam(learning, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for step, batch in zip(range(STEPS), _batches(len(inputs), seed), strict=False):
        if step % _TOLD == 0:
            progress(step / STEPS, f"step {step} of {STEPS}")
        optimizer.zero_grad()
        with _of_recipe():
            loss = _loss(lesson.run(inputs[batch.numpy()]), targets[batch], classifies=classifies)
            if not torch.isfinite(loss):
                raise Untrained(Why.DIVERGED, f"the loss is {loss.item()} after {step} steps")
            loss.backward()
        optimizer.step()
        schedule.step()
    if not all(bool(tensor.isfinite().all()) for tensor in learning):
        raise Untrained(Why.DIVERGED, "what was trained holds NaN or Inf")


def _batches(samples: int, seed: int) -> Iterator[Tensor]:
    order = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(samples, generator=order).split(BATCH)


def _loss(outputs: Tensor, targets: Tensor, *, classifies: bool) -> Tensor:
    if not classifies:
        return functional.mse_loss(outputs, targets)
    told, wished = (functional.log_softmax(logits / TEMPERATURE, 1) for logits in (outputs, targets))
    return TEMPERATURE**2 * functional.kl_div(told, wished, log_target=True, reduction="batchmean")


def _answers(derived: Derived, inputs: Array) -> Array:
    return Runner(Release("derived", derived.graph, derived.tensors).filled()).answers(inputs)


def _first(outputs: Any) -> Tensor:
    """Return a module's first output: what the graph gives first."""
    while not isinstance(outputs, Tensor):
        outputs = next(iter(outputs.values() if isinstance(outputs, Mapping) else outputs))
    return outputs


@contextmanager
def _of_recipe() -> Iterator[None]:
    """Turn whatever the user's code raises into a reason: it is an error of the recipe, not of the worker."""
    try:
        yield
    except Untrained:
        raise
    except Exception as e:
        raise Untrained(Why.RECIPE_FAILS, f"the recipe's module fails: {type(e).__name__}: {str(e)[:300]}") from e
