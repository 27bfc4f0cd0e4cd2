"""A torch module taken apart: what its parts are called, that they compute the same together, and what is refused."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from split_recipes import EXAMPLE, Chain, Find, ImageEncoder, TextEncoder
from torch import Tensor, nn

from sprat_server.training.export import Example
from sprat_server.training.split import Split, split
from sprat_shared.errors import SpratError

TWO = Example.of(EXAMPLE)
IMAGE = Example({"image": TWO.ports["image"]})
PARTS = {"vision": "image_encoder", "text": "text.encoder"}
EYES = {"vision": "eyes"}


def composed(taken: Split, example: Example, batch: int) -> dict[str, Tensor]:
    """Run the pieces in the order of the task."""
    values: dict[str, Tensor] = dict(zip(example.ports, example.tensors(batch), strict=True))
    with torch.no_grad():
        for step in taken.graph.order:
            piece = taken.pieces[step.model]
            assert list(step.inputs) == list(piece.example.ports)
            answer = piece.module(*(values[source] for source in step.inputs.values()))
            assert tuple(answer) == piece.outputs
            values |= {f"{step.name}.{name}": tensor for name, tensor in answer.items()}
    return {name: values[source] for name, source in taken.graph.outputs.items()}


def assert_same(taken: Split, module: nn.Module, example: Example) -> None:
    for batch in (1, 4):
        with torch.no_grad():
            wanted: Any = module.eval()(*example.tensors(batch))
        wanted = wanted.values() if isinstance(wanted, Mapping) else wanted if isinstance(wanted, tuple) else [wanted]
        for one, other in zip(composed(taken, example, batch).values(), wanted, strict=True):
            torch.testing.assert_close(one, other)


def steps(taken: Split) -> dict[str, dict[str, str]]:
    return {step.model: dict(step.inputs) for step in taken.graph.steps}


def test_two_encoders_and_what_joins_them_become_three_models_that_compute_the_same() -> None:
    module = Find()
    taken = split(module, TWO, PARTS, "find-head")
    assert json.loads(json.dumps(taken.graph.as_json())) == {
        "inputs": {"image": "float32[n, 3, 8, 8]", "words": "int64[n, 5]"},
        "steps": {
            "vision": {"model": "vision", "inputs": {"pixels": "image"}},
            "text": {"model": "text", "inputs": {"ids": "words"}},
            "find-head": {
                "model": "find-head",
                "inputs": {"vision": "vision.output", "embedding": "text.embedding"},
            },
        },
        "outputs": {"score": "find-head.score", "tokens": "text.tokens"},
    }  # the head reads how many images there are off what it takes, and takes no images for that
    assert [spec.name for spec in taken.pieces["text"].weights.table] == ["embed.weight", "mix.bias", "mix.weight"]
    assert [spec.name for spec in taken.pieces["find-head"].weights.table] == [
        *("fusion.0.bias", "fusion.0.weight", "fusion.2.bias", "fusion.2.weight", "scale")
    ]
    assert taken.unused == ("spare.weight", "spare.bias")
    assert_same(taken, module, TWO)


def test_where_parts_only_follow_each_other_nothing_is_left() -> None:
    module = Chain()
    taken = split(module, IMAGE, EYES | {"head": "head"}, "rest")
    assert steps(taken) == {"vision": {"pixels": "image"}, "head": {"input": "vision.output"}}
    assert taken.graph.outputs == {"output_0": "head.output", "output_1": "vision.output"}
    assert_same(taken, module, IMAGE)


def test_what_is_left_may_also_come_before_the_parts() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.eyes = nn.Parameter(torch.tensor(0.5)), ImageEncoder()

        def forward(self, image: Tensor) -> Tensor:
            seen: Tensor = self.eyes(pixels=image * self.gain)
            return seen

    module = Scaled()
    taken = split(module, IMAGE, EYES, "scaling")
    assert steps(taken) == {"vision": {"pixels": "scaling.pixels"}, "scaling": {"image": "image"}}
    assert_same(taken, module, IMAGE)


class Wired(nn.Module):
    """An image encoder, a text encoder, and wiring between them that a test gives."""

    def __init__(self, wiring: Any) -> None:
        super().__init__()
        self.eyes, self.ears, self.head, self.join = ImageEncoder(), TextEncoder(), nn.Linear(6, 2), Join()
        self.wiring = wiring

    def forward(self, image: Tensor, words: Tensor) -> Any:
        return self.wiring(self, image, words)


class Join(nn.Module):
    """Takes a list, which no port is."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(12, 2)

    def forward(self, tensors: list[Tensor]) -> Tensor:
        joined: Tensor = self.mix(torch.cat(tensors, 1))
        return joined


class Sum(nn.Module):
    """Takes all that a text encoder gives, as it gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, read: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sum": read["embedding"] * self.weight + read["tokens"].sum(1)}


def test_a_part_s_outputs_may_be_used_as_a_whole_and_what_is_left_may_give_several() -> None:
    def wiring(own: Any, image: Tensor, words: Tensor) -> Any:
        return own.sum(own.ears(words)) if image is not None else None

    module = Wired(wiring)
    module.sum = Sum()
    taken = split(module, TWO, {"text": "ears"}, "sum")
    assert steps(taken)["sum"] == {"embedding": "text.embedding", "tokens": "text.tokens"}
    assert taken.graph.outputs == {"sum": "sum.sum"}
    assert_same(taken, module, TWO)


class Pair(NamedTuple):
    """What `Two` gives."""

    features: Tensor
    norm: Tensor


class Two(nn.Module):
    """Gives a tuple with names."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Linear(5, 6)

    def forward(self, values: Tensor) -> Pair:
        seen = self.see(values.float())
        return Pair(seen, seen.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("taken_by", [lambda pair: pair.features / pair.norm, lambda pair: pair[0] / pair[-1]])
def test_outputs_with_names_are_found_by_them_and_by_their_place(taken_by: Any) -> None:
    module = Wired(lambda own, _image, words: own.head(taken_by(own.two(words))))
    module.two = Two()
    taken = split(module, TWO, {"two": "two"}, "head")
    assert steps(taken)["head"] == {"features": "two.features", "norm": "two.norm"}
    assert_same(taken, module, TWO)


def test_arguments_keep_their_names_and_order_however_they_are_given() -> None:
    def wiring(own: Any, image: Tensor, words: Tensor) -> Any:
        return own.ears(mask=image[:, 0, 0, :5] * own.head.bias.sum(), ids=words)["embedding"]

    module = Wired(wiring)
    taken = split(module, TWO, {"text": "ears"}, "masks")
    assert steps(taken)["text"] == {"ids": "words", "mask": "masks.mask"}
    assert_same(taken, module, TWO)


def test_bfloat16_parts_exchange_what_devices_compute_float32() -> None:
    module = Chain().bfloat16()
    taken = split(module, IMAGE, EYES, "head")
    assert taken.pieces["head"].example.ports["vision"].dtype == "float32"
    assert {spec.dtype for spec in taken.pieces["head"].weights.table} == {"BF16"}


def twice(own: Any, image: Tensor, _words: Tensor) -> Any:
    return own.head(own.eyes(image) + own.eyes(image))


def by_value(own: Any, image: Tensor, _words: Tensor) -> Any:
    seen = own.eyes(image)
    if seen.mean() > 0:
        seen = -seen
    return own.head(seen)


def circle(own: Any, image: Tensor, words: Tensor) -> Any:
    return own.head(own.eyes(image * 2) + own.ears(words)["embedding"])


REFUSED: dict[str, tuple[Any, dict[str, str], str | None, str, str]] = {
    "no such part": (twice, {"a": "eye"}, "rest", "split.unknown-part", "no submodule 'eye'; near are eyes"),
    "a part within a part": (twice, {"a": "eyes", "b": "eyes.see"}, "rest", "split.unknown-part", "within eyes"),
    "called twice": (twice, EYES, "rest", "split.not-called-once", "eyes is called 2 times"),
    "never called": (twice, {"text": "ears"}, "rest", "split.not-called-once", "ears is called never"),
    "of no use": (
        lambda own, image, words: (own.ears(words), own.head(own.eyes(image)))[1],
        {"text": "ears"}, "rest", "split.not-called-once", "nothing that the module gives depends on ears",
    ),
    "a list": (
        lambda own, image, words: own.join([own.eyes(image), own.ears(words)["embedding"]]),
        {"join": "join"}, "rest", "split.not-tensors", "join takes a list as tensors",
    ),
    "a number": (
        lambda own, image, words: own.ears(words, scale=image.shape[0])["embedding"],
        {"text": "ears"}, "rest", "split.not-tensors", "scale of ears is int",
    ),
    "what it does not take": (
        lambda own, _image, words: own.head(own.eyes(words)),
        EYES, "rest", "recipe.fails-on-example", "the module fails on made-up inputs (image of shape",
    ),
    "no batch in it": (
        lambda own, image, words: own.head(own.eyes(image).mean(0)) + own.ears(words)["tokens"][:, 0, :2],
        {"head": "head"}, "rest", "split.not-tensors", "input of head is of shape [6] where the batch is 2",
    ),
    "by value": (by_value, EYES, "rest", "split.not-traceable", "test_training_split.py:"),
    "weights of both": (
        lambda own, image, _words: own.head(own.eyes(image) + own.eyes.tell.bias),
        EYES, "rest", "split.shared-weights", "eyes.tell.bias of rest and eyes.tell.bias of vision are one tensor",
    ),
    "a circle": (circle, EYES, "rest", "split.circular", "is a circle: besides the parts the module computes mul"),
    "no name for the rest": (
        lambda own, image, words: own.head(own.eyes(image) + own.ears(words)["embedding"]),
        EYES, None, "split.bad-rest", "ears, getitem, add, head: say how the model that does it is called (--rest)",
    ),
    "no weights left": (
        lambda own, image, words: own.eyes(image) + own.ears(words)["embedding"],
        EYES | {"text": "ears"}, "rest", "split.without-weights", "rest holds no values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_apart_is_refused_by_name(case: str) -> None:
    wiring, parts, rest, code, says = REFUSED[case]
    with pytest.raises(SpratError) as refused:
        split(Wired(wiring), TWO, parts, rest)
    assert (refused.value.code, says in str(refused.value)) == (code, True), refused.value


def test_parts_that_are_tied_to_each_other_are_refused_with_both_names() -> None:
    module = Chain()
    module.head.weight = nn.Parameter(torch.zeros(9, 6))
    module.eyes.spare = module.head.weight
    with pytest.raises(SpratError, match=r"head.weight of head and eyes.spare of vision are one tensor") as refused:
        split(module, IMAGE, EYES | {"head": "head"}, None)
    assert refused.value.code == "split.shared-weights"
