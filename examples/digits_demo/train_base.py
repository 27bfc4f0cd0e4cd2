"""Train the demo's first weights on clean digits: `python -m digits_demo.train_base OUT.safetensors`."""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from digits_demo.data import TRAIN, clean
from digits_demo.model import build


def train(*, epochs: int = 10, seed: int = 0) -> nn.Module:
    """Return the network trained on the train split of the clean digits; a few seconds on one core."""
    torch.manual_seed(seed)
    module = build({})
    digits = clean().part(TRAIN)
    inputs, labels = torch.from_numpy(digits.inputs), torch.from_numpy(digits.labels)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.01)
    steps = epochs * -(-len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(module(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def main() -> None:
    """Write the trained weights to the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    save_file(train(epochs=args.epochs, seed=args.seed).state_dict(), args.out)


if __name__ == "__main__":
    main()
