"""Recipes of modules that are taken apart into tasks: two encoders and what joins them, and some that cannot be."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

EXAMPLE = {
    "inputs": [
        {"name": "image", "shape": [1, 3, 8, 8], "dtype": "F32"},
        {"name": "words", "shape": [1, 5], "dtype": "I64"},
    ]
}


class ImageEncoder(nn.Module):
    """Images (3, 8, 8) to features (6,)."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.tell = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(64, 6)

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[1] != 3:  # a leaf is not traced symbolically
            raise ValueError("three channels")
        features: Tensor = self.tell(torch.relu(self.see(pixels)).flatten(1))
        return features


class TextEncoder(nn.Module):
    """Token ids (5,) to an embedding (6,), and what each token gives, (5, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(9, 6), nn.Linear(6, 6)

    def forward(self, ids: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> dict[str, Tensor]:
        tokens = torch.tanh(self.mix(self.embed(ids))) * scale
        if mask is not None:
            tokens = tokens * mask[:, :, None]
        return {"embedding": tokens.mean(1), "tokens": tokens}


class Find(nn.Module):
    """Which of two encoders' inputs go together: fusion with weights of its own, and sizes read off the image."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder, self.text = ImageEncoder(), nn.ModuleDict({"encoder": TextEncoder()})
        self.fusion = nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 1))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.spare = nn.Linear(2, 2)

    def forward(self, image: Tensor, words: Tensor) -> dict[str, Tensor]:
        many, channels = image.shape[0], image.shape[1]
        seen = functional.normalize(self.image_encoder(image), dim=-1)
        read = self.text["encoder"](words, scale=0.5)
        fused = self.fusion(torch.cat([seen, read["embedding"]], 1)) * self.scale
        return {"score": fused.view(many, -1) / channels, "tokens": read["tokens"]}


class Caption(nn.Module):
    """Another task on the same image encoder: what is left is one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes, self.head = ImageEncoder(), nn.Linear(6, 9)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.eyes(image))
        return logits


class Chain(nn.Module):
    """Nothing but two parts, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes, self.head = ImageEncoder(), nn.Linear(6, 9)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.eyes(image)
        return self.head(features), features


class Alone(nn.Module):
    """One part, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = ImageEncoder()

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.eyes(image)
        return features


def alone(_config: Mapping[str, Any]) -> nn.Module:
    return Alone()


def find(_config: Mapping[str, Any]) -> nn.Module:
    return Find()


def caption(_config: Mapping[str, Any]) -> nn.Module:
    return Caption()
