"""(e): a small transformer tells of which of 45 fields a gloss of WordNet is; now it reads more than nouns.

Fellbaum (ed.), "WordNet: An Electronic Lexical Database", MIT Press 1998; the files are those of Debian's wordnet-base.
A field is a lexicographer file (lexnames(5WN)): 26 of nouns, 15 of verbs, three of adjectives, one of adverbs.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from sizes.cases.case import Case, CaseUnavailable, Domain, splits
from sprat_server.training.data import Samples
from sprat_server.training.teacher import TeacherPlan

FOLDER: Final = Path("/usr/share/wordnet")
FILES: Final = tuple(FOLDER / f"data.{part}" for part in ("noun", "verb", "adj", "adv"))
_FIELDS: Final = 45
_LENGTH: Final = 16  # words of a gloss that are read
_WORDS: Final = 6000  # 0 is no word, 1 is any other
_WIDTH, _HEADS, _LAYERS = 96, 4, 2
_BEFORE: Final = (10000, 1000, 0)
_NOW: Final = (4000, 1500, 2500)
_NOUNS: Final = 0.5  # of what is seen now

Gloss = tuple[list[str], int]
"""The words of a gloss, and its field."""


class Layer(nn.Module):
    """Self-attention and a feed-forward part, each after a norm and beside a short cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.asked = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.mixed = nn.Linear(_WIDTH, _WIDTH)
        self.wide = nn.Linear(_WIDTH, 2 * _WIDTH)
        self.narrow = nn.Linear(2 * _WIDTH, _WIDTH)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Return (batch, time, width); `padding` (batch, 1, 1, time) is true where there is a word."""
        batch, time, width = x.shape
        parts = self.asked(self.first(x)).view(batch, time, 3, _HEADS, width // _HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (batch, heads, time, width / heads)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=padding)
        x = x + self.mixed(seen.transpose(1, 2).reshape(batch, time, width))
        inner: Tensor = self.narrow(torch.relu(self.wide(self.second(x))))
        return x + inner


class Reader(nn.Module):
    """Embeddings of words and places, layers, the mean over the words, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, _WIDTH)
        self.places = nn.Embedding(_LENGTH, _WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(_LAYERS))
        self.last = nn.LayerNorm(_WIDTH)
        self.dropout = nn.Dropout(0.3)
        self.tell = nn.Linear(_WIDTH, _FIELDS)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (batch, fields) of tokens (batch, time), int64."""
        there = tokens != 0
        x = self.dropout(self.words(tokens) + self.places.weight)
        for layer in self.layers:
            x = layer(x, there[:, None, None, :])
        weight = there[..., None] / there.sum(1).clamp(min=1)[:, None, None]
        logits: Tensor = self.tell(self.dropout((self.last(x) * weight).sum(1)))
        return logits


def build(config: Mapping[str, Any]) -> nn.Module:
    """Return the network; `config` takes nothing."""
    if config:
        raise ValueError(f"this network takes no config, not {dict(config)!r}")
    return Reader()


def _read(path: Path) -> list[Gloss]:
    """Return the glosses of a data file (wndb(5WN)): `offset field type ... | gloss; "example"`, after a licence."""
    if not path.exists():
        raise CaseUnavailable(f"{path} is not there; install Debian's package wordnet-base")
    found = []
    for line in path.read_text(encoding="latin-1").splitlines():
        if not line.startswith(" "):
            before, _, gloss = line.partition(" | ")
            words = re.findall(r"[a-z]+", gloss.split(';  "')[0].split('; "')[0].lower())
            if words:
                found.append((words[:_LENGTH], int(before.split(" ", 2)[1])))
    return found


def _make(seed: int) -> tuple[Domain, Domain]:
    parts = [_read(path) for path in FILES]
    nouns, rest = parts[0], [gloss for part in parts[1:] for gloss in part]
    old = [round(_NOUNS * size) for size in _NOW]
    drawn = splits(len(nouns), seed, (sum(_BEFORE), sum(old), 0))
    before, nouns_now = ([nouns[at] for at in some] for some in drawn[:2])
    new = [size - share for size, share in zip(_NOW, old, strict=True)]
    rest_now = [rest[at] for at in splits(len(rest), seed, (sum(new), 0, 0))[0]]
    number = _numbers(before[: _BEFORE[0]])
    now = [a + b for a, b in zip(_cut(nouns_now, old), _cut(rest_now, new), strict=True)]
    return (
        Domain(*(_samples(part, number) for part in _cut(before, _BEFORE))),
        Domain(*(_samples(part, number) for part in now)),
    )


def _cut(glosses: Sequence[Gloss], sizes: Sequence[int]) -> list[list[Gloss]]:
    bounds = np.cumsum([0, *sizes])
    return [list(glosses[begin:end]) for begin, end in pairwise(bounds)]


def _numbers(glosses: Sequence[Gloss]) -> dict[str, int]:
    """Return the numbers of the most frequent words: the base's vocabulary, which an update cannot change."""
    counted = Counter(word for words, _ in glosses for word in words)
    ranked = sorted(counted, key=lambda word: (-counted[word], word))
    return {word: number for number, word in enumerate(ranked[: _WORDS - 2], 2)}


def _samples(glosses: Sequence[Gloss], number: Mapping[str, int]) -> Samples:
    tokens = np.zeros((len(glosses), _LENGTH), np.int64)
    for row, (words, _) in zip(tokens, glosses, strict=True):
        row[: len(words)] = [number.get(word, 1) for word in words]
    return Samples(torch.from_numpy(tokens), torch.tensor([field for _, field in glosses], dtype=torch.int64))


GLOSSES: Final = Case(
    name="glosses",
    title="The base knows glosses of nouns (26 fields); now half are of verbs, adjectives and adverbs (19 more).",
    make=_make,
    factory="sizes.cases.glosses:build",
    base=TeacherPlan(epochs=8),
    retrain=TeacherPlan(epochs=10, learning_rate=1e-3),
    epochs=12,
    batch=64,
    code=(Path(__file__),),
    data=FILES,
)
