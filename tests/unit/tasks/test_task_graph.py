"""A task's graph is refused with the edge, and both types, where something does not fit."""

from collections.abc import Mapping
from typing import Any

import pytest

from sprat_shared.errors import InvalidInput
from sprat_shared.tasks.graph import TaskGraph
from sprat_shared.tasks.types import Signature, TensorType, free_length


def kind(text: str) -> TensorType:
    return TensorType.parse(text)


MODULES = {
    "vision": Signature({"image": kind("float32[batch, 3, 32, 32]")}, {"features": kind("float32[batch, 64]")}),
    "text": Signature(
        {"ids": kind("int64[n, tokens]"), "mask": kind("int64[n, tokens]")},
        {"embedding": kind("float32[n, 16]"), "hidden": kind("float32[n, tokens, 16]")},
    ),
    "head": Signature(
        {"image": kind("float32[n, 64]"), "text": kind("float32[n, 16]")}, {"score": kind("float32[n, 2]")}
    ),
}


def find() -> dict[str, Any]:
    return {
        "inputs": {"picture": "float32[n, 3, 32, 32]", "words": "int64[n, 8]", "mask": "int64[n, 8]"},
        "steps": {
            "judge": {"model": "head", "inputs": {"image": "see.features", "text": "read.embedding"}},
            "see": {"model": "vision", "inputs": {"image": "picture"}},
            "read": {"model": "text", "inputs": {"ids": "words", "mask": "mask"}},
        },
        "outputs": {"score": "judge.score"},
    }


def test_the_types_of_all_edges_follow_from_the_inputs() -> None:
    types = TaskGraph.of(find()).types(MODULES)
    assert str(types["see.features"]) == "float32[n, 64]"
    assert str(types["read.hidden"]) == "float32[n, 8, 16]"
    assert str(types["judge.score"]) == "float32[n, 2]"
    assert types["read.hidden"].nbytes() == 8 * 16 * 4
    assert types["read.hidden"].nbytes({"n": 3}) == 3 * 8 * 16 * 4


def test_steps_come_behind_what_they_take() -> None:
    order = [step.name for step in TaskGraph.of(find()).order]
    assert order.index("judge") == 2
    assert TaskGraph.of(find()).models == {"vision", "text", "head"}


def test_a_graph_is_what_it_was_after_json() -> None:
    assert TaskGraph.of(TaskGraph.of(find()).as_json()) == TaskGraph.of(find())


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("inputs", "picture"), "float32[n, 1, 32, 32]", "edge picture -> see.image: float32[n, 1, 32, 32] comes, and"),
        (("inputs", "picture"), "float64[n, 3, 32, 32]", "vision takes float32[batch, 3, 32, 32]"),
        (("inputs", "mask"), "int64[n, 9]", "text takes int64[n, tokens], where tokens = 8"),
        (
            ("steps", "judge", "inputs", "text"),
            "read.hidden",
            "edge read.hidden -> judge.text: float32[n, 8, 16] comes",
        ),
        (("steps", "judge", "inputs", "text"), "read.pooled", "read gives read.embedding, read.hidden"),
        (("steps", "read", "inputs"), {"ids": "words"}, "input mask of text is not connected"),
        (("steps", "see", "inputs"), {"picture": "picture"}, "input image of vision is not connected"),
        (("steps", "see", "model"), "sound", "step see: no module sound"),
        (("outputs", "score"), "judge.loss", "edge judge.loss -> score: judge gives judge.score"),
    ],
)
def test_what_does_not_fit_a_module_is_said_with_the_edge(path: tuple[str, ...], value: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as bad:
        TaskGraph.of(_changed(find(), path, value)).types(MODULES)
    assert said in str(bad.value)
    assert bad.value.code == "task.invalid"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("inputs",), {}, "inputs of a task: 1 to 32, not 0"),
        (("inputs",), None, "a task needs inputs"),
        (("inputs", "picture"), 7, "input picture: 7 is no text"),
        (("inputs", "picture"), "float32", "'float32' is no type"),
        (("inputs", "picture"), "complex64[n]", "dtype 'complex64' is not one of"),
        (("inputs", "picture"), "float32[n, -3]", "'-3' is neither a length nor the name of one"),
        (("inputs", "see"), "float32[n]", "see: two steps, or a step and an input"),
        (("inputs", "a b"), "float32[n]", "'a b' cannot name"),
        (("steps", "see", "model"), "Vision", "'Vision' cannot name a model"),
        (("steps", "see", "inputs", "image"), "photo", "edge photo -> see.image: there is no photo"),
        (("steps", "see", "inputs", "image"), "judge.score", "is a circle; a task must end"),
        (("steps", "see", "inputs"), {}, "step see: inputs of a task: 1 to 32, not 0"),
        (("steps", "see"), {"model": "vision"}, "step see: say {model: ..., inputs: {...}}"),
        (("steps", "spare"), {"model": "vision", "inputs": {"image": "picture"}}, "step spare: nothing that comes out"),
        (("outputs", "score"), "picture", "an output comes from a step"),
        (("outputs", "score"), "look.score", "edge look.score -> score: there is no look.score"),
    ],
)
def test_what_is_no_graph_is_refused_by_name(path: tuple[str, ...], value: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as bad:
        TaskGraph.of(_changed(find(), path, value))
    assert said in str(bad.value)


def _changed(value: Mapping[str, Any], path: tuple[str, ...], new: Any) -> dict[str, Any]:
    first, *rest = path
    return {**value, first: _changed(value[first], tuple(rest), new) if rest else new}


@pytest.mark.parametrize("name", ["batch", None, "floor(h/2) + 1", "0", "", "x" * 200])
def test_a_free_length_is_named_so_that_a_type_can_say_it(name: str | None) -> None:
    said = TensorType("float32", (free_length(name, "image", 1), 3))
    assert TensorType.parse(str(said)) == said
