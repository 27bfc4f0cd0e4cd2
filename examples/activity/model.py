"""The recipe: a small network along time, about 17,000 values, that tells six activities from 1.28 s of signals."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

CHANNELS = 6  # accelerometer and gyroscope, three axes each
LENGTH = 64  # samples of a window, 50 a second
ACTIVITIES = ("walking", "upstairs", "downstairs", "sitting", "standing", "lying")


class Activity(nn.Module):
    """Two strided convolutions along time and two linear layers.

    Args:
        width: channels of the convolutions.
        classes: number of outputs.
    """

    def __init__(self, *, width: int = 24, classes: int = len(ACTIVITIES)) -> None:
        super().__init__()
        self.hear = nn.Sequential(
            nn.Conv1d(CHANNELS, width, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Conv1d(width, width, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.tell = nn.Sequential(nn.Linear(width * LENGTH // 4, 32), nn.ReLU(), nn.Linear(32, classes))

    def forward(self, windows: Tensor) -> Tensor:
        """Return logits (batch, classes) of windows (batch, 6, 64) in g and rad/s."""
        logits: Tensor = self.tell(self.hear(windows))
        return logits


def build(config: Mapping[str, Any]) -> nn.Module:
    """Return the network; `config` may set width and classes. This is what `--recipe activity.model:build` names."""
    return Activity(**config)
