"""Runs in an environment of its own, with the real PEFT: train adapters of each rank asked for, save what they give.

    python peft_script.py JOB

JOB is a file of torch.save: see `peft_lora.py`, which writes it. For each rank a line comes out when its state is
written: the bytes of the adapters in fp16, through zstd if that is fewer.
"""

import math
import sys
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def plain(module: nn.Module) -> nn.Module:
    """Return the module with plain 1 x 1 convolutions where it has classes of its own for them; weights are shared.

    PEFT makes adapters of the class that it finds, with the plain class's arguments.
    """
    for name, layer in list(module.named_modules()):
        if (
            isinstance(layer, nn.Conv2d)
            and type(layer) is not nn.Conv2d
            and layer.kernel_size == layer.stride == (1, 1)
        ):
            same = nn.Conv2d(layer.in_channels, layer.out_channels, 1, groups=layer.groups, bias=layer.bias is not None)
            same.weight, same.bias = layer.weight, layer.bias
            module.set_submodule(name, same)
    return module


def targets(module: nn.Module) -> list[str]:
    """Return the names of the layers that PEFT adapts.

    It has nothing for grouped convolutions, recurrent layers and convolutions of other classes than the plain ones.
    """
    names: list[str] = []
    inside: set[str] = set()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            inside.add(f"{name}.")
            names.append(name)
        elif isinstance(layer, nn.Linear | nn.Embedding) or (
            type(layer) in {nn.Conv1d, nn.Conv2d} and layer.groups == 1
        ):
            names += [] if name.startswith(tuple(inside)) else [name]
    return names


def train(model: nn.Module, job: dict[str, Any]) -> None:
    """Train what PEFT left trainable, as the other peers are trained (`fitting.py`)."""
    inputs, labels = job["inputs"], job["labels"]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=job["rate"])
    steps = job["epochs"] * math.ceil(len(labels) / job["batch"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, job["rate"], total_steps=steps)
    order = torch.Generator().manual_seed(job["seed"])
    for _ in range(job["epochs"]):
        for batch in torch.randperm(len(labels), generator=order).split(job["batch"]):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    """Work off the job."""
    job = torch.load(sys.argv[1], weights_only=False)
    sys.path.extend(job["path"])  # what the module's own code imports; this environment's packages come first
    import peft  # noqa: PLC0415 - after the path is whole
    import zstandard  # noqa: PLC0415

    torch.set_num_threads(1)
    for rank in job["ranks"]:
        torch.manual_seed(job["seed"])
        module = plain(torch.load(job["module"], weights_only=False)).eval()
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets(module), bias="all", lora_dropout=0.0)
        model = peft.get_peft_model(module, config).eval()
        train(model, job)
        adapters = peft.get_peft_model_state_dict(model)
        halves = {name: tensor.detach().half() for name, tensor in adapters.items()}
        peft.set_peft_model_state_dict(model, {name: tensor.float() for name, tensor in halves.items()})
        raw = b"".join(tensor.numpy().tobytes() for tensor in halves.values())
        torch.save(model.merge_and_unload().state_dict(), f"{job['out']}.{rank}.pt")
        print(rank, min(len(raw), len(zstandard.compress(raw, 19))), flush=True)


if __name__ == "__main__":
    main()
