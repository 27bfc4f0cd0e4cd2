"""Every kind of layer can be updated by every strategy, and what is trained is what is decoded."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small_recipes import Tied
from torch import Tensor, nn

from sprat_server.compress import updates
from sprat_server.training.data import Samples
from sprat_server.training.factors import factor_parts
from sprat_server.training.grid import Part
from sprat_server.training.lesson import Lesson, teacher_outputs
from sprat_server.training.norms import shifted_norms
from sprat_server.training.recipes import Trainable, accuracy
from sprat_server.training.states import module_tensors, tied_names, to_source, to_torch
from sprat_server.training.student import GridStudent, StudentPlan
from sprat_server.training.subspace import subspace_parts
from sprat_shared.wire.records import LowRank, Subspace
from sprat_shared.wire.tensors import ArrayTensors


class Over(nn.Module):
    """A layer, the mean of what it gives over all but batch and channels, and a head."""

    def __init__(self, layer: nn.Module, wide: int, channels: int = 1) -> None:
        super().__init__()
        self.layer, self.head, self._channels = layer, nn.Linear(wide, 3), channels

    def forward(self, inputs: Tensor) -> Tensor:
        seen = self.layer(inputs)
        seen = seen[0] if isinstance(seen, tuple) else seen
        others = [axis for axis in range(1, seen.ndim) if axis != self._channels]
        logits: Tensor = self.head(torch.tanh(seen.mean(others) if others else seen))
        return logits


class Attention(nn.Module):
    """Self-attention over tokens, normed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(12, 8), nn.LayerNorm(8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.embed(tokens)
        heard: Tensor = self.norm(words + self.attend(words, words, words, need_weights=False)[0])
        return heard


def frozen() -> nn.Module:
    module = Over(nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 8)), 8)
    module.layer[0].requires_grad_(requires_grad=False)
    return module


IMAGES, SEQUENCES, VECTORS, TOKENS = (3, 8, 8), (7, 5), (10,), (6,)
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: Over(nn.Linear(10, 16), 16), VECTORS),
    "convolution": (lambda: Over(nn.Conv2d(3, 12, 3, padding=1), 12), IMAGES),
    "depthwise": (lambda: Over(nn.Sequential(nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, groups=24)), 24), IMAGES),
    "convolution-1d": (lambda: Over(nn.Conv1d(7, 12, 3), 12), SEQUENCES),
    "embedding": (lambda: Over(nn.Embedding(12, 8), 8, 2), TOKENS),
    "gru": (lambda: Over(nn.GRU(5, 9, batch_first=True), 9, 2), SEQUENCES),
    "lstm": (lambda: Over(nn.LSTM(5, 9, bidirectional=True, batch_first=True), 18, 2), SEQUENCES),
    "attention": (lambda: Over(Attention(), 8, 2), TOKENS),
    "transformer": (lambda: Over(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 8, 2), (4, 8)),
    "group-norm": (lambda: Over(nn.Sequential(nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12)), 12), IMAGES),
    "batch-norm": (lambda: Over(nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)), 12), IMAGES),
    "statistics-only": (lambda: Over(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), 4), IMAGES),
    "frozen": (frozen, VECTORS),
    "tied": (Tied, TOKENS),
}


def lesson_of(kind: str) -> Lesson:
    """A base, a teacher that is a low-rank step away from it in what may change, and samples."""
    build, shape = KINDS[kind]
    draw = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    module = build().eval()
    known = 6 if kind == "tied" else 12
    tokens = shape == TOKENS
    inputs = (
        torch.randint(0, known, (48, *shape), generator=draw) if tokens else torch.randn(48, *shape, generator=draw)
    )
    base = {name: tensor.clone() for name, tensor in module_tensors(module).items()}
    teacher = dict(base)
    free = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    for name in free - tied_names(module).keys():
        rows = base[name].reshape(len(base[name]), -1)
        step = torch.randn(len(rows), 1, generator=draw) @ torch.randn(1, rows.shape[1], generator=draw)
        teacher[name] = base[name] + 0.5 * step.view_as(base[name])
    trainable = Trainable(module, nn.functional.cross_entropy, accuracy, classifies=True)
    answers = teacher_outputs(trainable, teacher, Samples(inputs, torch.zeros(48, dtype=torch.int64)))
    train = Samples(inputs, answers.argmax(1))
    aliases = {name: kept for name, kept in tied_names(module).items() if kept in base}
    source: ArrayTensors = to_source(base, aliases)
    norms = shifted_norms(module, base, train)
    return Lesson(
        trainable=trainable, source=source, base=base, teacher=teacher, norms=norms, train=train, targets=answers
    )


WAYS: dict[str, Callable[[Lesson], list[Part]]] = {
    "factors": lambda lesson: factor_parts(lesson, 2),
    "dense": lambda lesson: factor_parts(lesson, None),
    "subspace": lambda lesson: subspace_parts(lesson, 24),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_what_is_decoded_by_every_strategy(kind: str, way: str) -> None:
    lesson = lesson_of(kind)
    plan = StudentPlan(price=1e-5, epochs=4, min_steps=0, batch=24, learning_rate=0.5, real=1 / 3)
    student = GridStudent(lesson, WAYS[way](lesson), plan)
    student.train(lambda _fraction, _message: None)
    records = student.records()
    decoded = to_torch(updates.from_records(lesson.source, records).weights)
    with torch.no_grad():
        trained = student.weights()
    assert decoded.keys() == trained.keys()
    for name, tensor in decoded.items():
        assert torch.equal(tensor, trained[name]), name
    changed = {lesson.source.table.specs[record.index].name for record in records}
    assert changed
    assert changed <= {*lesson.learned(), *lesson.norms}
    if kind in {"linear", "convolution", "gru", "lstm"}:
        wanted = {"factors": LowRank, "subspace": Subspace}.get(way)
        assert wanted is None or any(isinstance(record, wanted) for record in records)


@pytest.mark.parametrize("way", WAYS)
def test_a_double_has_no_grid_and_is_left_as_it_is(way: str) -> None:
    lesson = lesson_of("linear")
    double = {**lesson.base, "layer.weight": lesson.base["layer.weight"].double()}
    lesson = replace(lesson, source=to_source(double))
    student = GridStudent(lesson, WAYS[way](lesson), StudentPlan(price=1e-5, min_steps=0, batch=16, learning_rate=0.5))
    student.train(lambda _fraction, _message: None)
    decoded = to_torch(updates.from_records(lesson.source, student.records()).weights)
    assert torch.equal(decoded["layer.weight"], double["layer.weight"])
    assert not torch.equal(decoded["head.weight"], double["head.weight"])


def test_a_subspace_leaves_the_rows_of_an_embedding_that_do_not_occur_alone() -> None:
    lesson = lesson_of("embedding")
    base = {**lesson.base, "layer.weight": torch.cat([lesson.base["layer.weight"], torch.ones(20, 8)])}
    teacher = {**lesson.teacher, "layer.weight": torch.cat([lesson.teacher["layer.weight"], torch.ones(20, 8)])}
    lesson.trainable.module.layer = nn.Embedding(32, 8)
    wider = Lesson(
        trainable=lesson.trainable,
        source=to_source(base),
        base=base,
        teacher=teacher,
        norms={},
        train=lesson.train,
        targets=lesson.targets,
    )
    student = GridStudent(
        wider, subspace_parts(wider, 24), StudentPlan(price=1e-5, epochs=5, min_steps=0, learning_rate=0.5)
    )
    student.train(lambda _fraction, _message: None)
    kept = to_torch(updates.from_records(wider.source, student.records()).weights)["layer.weight"]
    assert torch.equal(kept[12:], base["layer.weight"][12:])
    assert not torch.equal(kept[:12], base["layer.weight"][:12])
