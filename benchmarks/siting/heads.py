"""Trains the heads of the site's tasks on features of the frozen encoders, once, and keeps what came out.

Everything is cached in a folder: features by encoder, weights of heads, accuracies on the test part.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from siting import data, networks

_EPOCHS, _BATCH, _RATE = 60, 64, 1e-3
_AT_ONCE: Final = 16

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Trained:
    """A task's head, and how good it is.

    Attributes:
        task: its name.
        factory: recipe of the head, of `siting.networks`.
        config: of the recipe.
        module: in its weights.
        accuracy: on the test part.
    """

    task: str
    factory: str
    config: Mapping[str, Any]
    module: nn.Module
    accuracy: float


def digest(given: Path) -> str:
    """Return eight hex digits that change with what heads are trained on and how."""
    files = (given, Path(__file__), Path(str(data.__file__)), Path(str(networks.__file__)))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def encoders() -> dict[str, nn.Module]:
    """Return the three encoders by model name."""
    return {"vision": networks.Vision().eval(), "words": networks.Words().eval(), "voice": networks.Voice().eval()}


def encoded(module: nn.Module, *inputs: npt.NDArray[Any]) -> Tensor:
    """Return the one output of an encoder for inputs (n, ...)."""
    found = []
    with torch.inference_mode():
        for begin in range(0, len(inputs[0]), _AT_ONCE):
            batch = (torch.from_numpy(part[begin : begin + _AT_ONCE]) for part in inputs)
            found.append(next(iter(module(*batch).values())))
    return torch.cat(found).clone()


def train_all(given: Mapping[str, Any], told: Callable[[str], None]) -> tuple[list[Trained], dict[str, Arrays]]:
    """Train all heads; return them, and the test inputs of each task by the names of its inputs.

    Args:
        given: `given.yaml`.
        told: is told what goes on.
    """
    torch.manual_seed(given["seed"])
    models, rng = encoders(), np.random.default_rng(given["seed"])
    told("pictures and their words")
    shown, kinds, names = data.named_pictures(given["side"], given["pictures"])
    named = data.tokens(names, given["words"])
    told(f"{len(kinds)} pictures encoded")
    seen, read = encoded(models["vision"], shown), encoded(models["words"], *named)
    parts = _parts(len(kinds), given["shares"], rng)
    labels = torch.from_numpy(kinds)
    classes = len(data.KINDS)
    done = [
        _classifier("kinds", "head", {"width": networks.SEEN, "classes": classes}, [seen], labels, parts),
        _classifier("sort", "sort", {"classes": classes}, [seen, read], labels, parts),
        _matching(seen, read, parts, rng),
    ]
    pictures: Arrays = {"picture": shown[parts[2]], "ids": named[0][parts[2]], "mask": named[1][parts[2]]}
    tests: dict[str, Arrays] = {"kinds": {"picture": pictures["picture"]}, "sort": pictures, "find": pictures}
    told("sentences")
    texts, fields = data.glosses(given["glosses"], given["seed"])
    written = data.tokens(texts, given["words"])
    said = encoded(models["words"], *written)
    parts = _parts(len(fields), given["shares"], rng)
    config = {"width": networks.READ, "classes": 45}
    done.append(_classifier("topic", "head", config, [said], torch.from_numpy(fields), parts))
    tests["topic"] = {"ids": written[0][parts[2]], "mask": written[1][parts[2]]}
    told("speech")
    mel, languages = data.mels(given["frames"])
    heard = encoded(models["voice"], mel)
    parts = _parts(len(languages), given["shares"], rng)
    config = {"width": networks.HEARD, "classes": len(data.LANGUAGES)}
    done.append(_classifier("language", "head", config, [heard], torch.from_numpy(languages), parts))
    tests["language"] = {"mel": mel[parts[2]]}
    return done, tests


def write(folder: Path, done: Sequence[Trained], tests: Mapping[str, Arrays]) -> None:
    """Write the weights of encoders and heads, the test inputs, and `trained.json`, the last of all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in encoders().items():
        save_file(
            {key: tensor.contiguous() for key, tensor in module.state_dict().items()}, folder / f"{name}.safetensors"
        )
    for head in done:
        save_file(head.module.state_dict(), folder / f"{head.task}-head.safetensors")
    for task, arrays in tests.items():
        np.savez(folder / f"{task}.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle
    told = {head.task: {"factory": head.factory, "config": head.config, "accuracy": head.accuracy} for head in done}
    (folder / "trained.json").write_text(json.dumps(told, indent=1) + "\n")


def _parts(count: int, shares: Sequence[float], rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    bounds = (np.cumsum(shares[:2]) * count).astype(int)
    return np.split(rng.permutation(count), bounds)


def _classifier(  # noqa: PLR0917 - what a task is
    task: str,
    factory: str,
    config: Mapping[str, Any],
    features: Sequence[Tensor],
    labels: Tensor,
    parts: Sequence[npt.NDArray[np.int64]],
) -> Trained:
    module: nn.Module = getattr(networks, factory)(config)
    chosen = [torch.from_numpy(part) for part in parts]

    def loss(rows: Tensor) -> Tensor:
        logits: Tensor = module(*(one[rows] for one in features))["logits"]
        return functional.cross_entropy(logits, labels[rows])

    def accuracy(rows: Tensor) -> float:
        with torch.no_grad():
            logits = module(*(one[rows] for one in features))["logits"]
        return float((logits.argmax(1) == labels[rows]).float().mean())

    _fit(module, loss, accuracy, chosen)
    return Trained(task, factory, config, module, accuracy(chosen[2]))


def _matching(seen: Tensor, read: Tensor, parts: Sequence[npt.NDArray[np.int64]], rng: np.random.Generator) -> Trained:
    """Train `find`: each picture with its own words, and with those of another picture of its part."""
    module = networks.Find()
    chosen = [torch.from_numpy(part) for part in parts]
    other = torch.arange(len(seen))
    for part in chosen:
        other[part] = part[torch.from_numpy(np.roll(rng.permutation(len(part)), 1))]

    def answers(rows: Tensor) -> tuple[Tensor, Tensor]:
        right = module(seen[rows], read[rows])["match"]
        wrong = module(seen[rows], read[other[rows]])["match"]
        return torch.cat([right, wrong]), torch.cat([torch.ones(len(rows)), torch.zeros(len(rows))])

    def loss(rows: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(*answers(rows))

    def accuracy(rows: Tensor) -> float:
        with torch.no_grad():
            match, true = answers(rows)
        return float(((match > 0) == (true > 0)).float().mean())

    _fit(module, loss, accuracy, chosen)
    return Trained("find", "find", {}, module, accuracy(chosen[2]))


def _fit(
    module: nn.Module, loss: Callable[[Tensor], Tensor], accuracy: Callable[[Tensor], float], parts: Sequence[Tensor]
) -> None:
    """Train with Adam, and keep the weights that did best on the validation part."""
    optimiser = torch.optim.Adam(module.parameters(), _RATE, weight_decay=1e-4)
    best, kept = -1.0, module.state_dict()
    for _ in range(_EPOCHS):
        module.train()
        for rows in parts[0][torch.randperm(len(parts[0]))].split(_BATCH):
            optimiser.zero_grad()
            loss(rows).backward()
            optimiser.step()
        module.eval()
        if (now := accuracy(parts[1])) > best:
            best, kept = now, {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(kept)
