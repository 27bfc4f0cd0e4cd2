"""Train the first weights, of phones on the belt: `python -m activity.train_base OUT.safetensors`."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from activity.data import BELT, dataset
from activity.model import build


def train(*, epochs: int = 6, seed: int = 0) -> nn.Module:
    """Return the network trained on the train split; some seconds on one core."""
    torch.manual_seed(seed)
    module, data = build({}), dataset(BELT)
    kept = data["split"] == 0
    inputs, labels = torch.from_numpy(data["inputs"][kept]), torch.from_numpy(data["labels"][kept])
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(module(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return module.eval()


if __name__ == "__main__":
    torch.set_num_threads(1)
    save_file(train().state_dict(), Path(sys.argv[1]))
