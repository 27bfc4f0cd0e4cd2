"""Sites made in a test: certificates over devices' keys, a plan, tiny modules that say their release."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import onnx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from onnx import TensorProto, helper, numpy_helper

from sprat_server.publish.plan_authority import certify
from sprat_shared.ids import digest_text
from sprat_shared.protocol.site_plan import Member, PlannedModule, PlannedTask, SitePlan
from sprat_shared.tasks.graph import TaskGraph

Array = np.ndarray[Any, Any]
WIDTH = 6
FIND = {  # two modules beside each other, one behind both
    "inputs": {"image": f"float32[n, {WIDTH}]", "words": f"float32[n, {WIDTH}]"},
    "steps": {
        "see": {"model": "vision", "inputs": {"x": "image"}},
        "read": {"model": "text", "inputs": {"x": "words"}},
        "judge": {"model": "head", "inputs": {"left": "see.y", "right": "read.y"}},
    },
    "outputs": {"score": "judge.y", "seen": "see.release", "head": "judge.release"},
}
GUESS = {  # of the same inputs and outputs, by one small module that takes both
    "inputs": FIND["inputs"],
    "steps": {"guess": {"model": "small", "inputs": {"left": "image", "right": "words"}}},
    "outputs": {"score": "guess.y", "seen": "guess.release", "head": "guess.release"},
}
INPUTS: Mapping[str, Sequence[str]] = {
    "vision": ["x"],
    "text": ["x"],
    "head": ["left", "right"],
    "small": ["left", "right"],
}


def _matrix(model: str, release: int) -> Array:
    draw = np.random.default_rng([release, *model.encode()])
    return draw.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5


def expected(model: str, release: int, inputs: Sequence[Array]) -> dict[str, Array]:
    """Return what a module answers: y = tanh(sum of inputs @ W), and its release for each row."""
    total = np.sum(inputs, axis=0)
    answer: Array = np.tanh(total @ _matrix(model, release))
    return {"y": answer, "release": np.full((len(total), 1), release, np.float32)}


def expected_find(releases: Mapping[str, int], image: Array, words: Array) -> dict[str, Array]:
    """Return what FIND answers, computed here."""
    seen, read = (expected(name, releases[name], [x]) for name, x in (("vision", image), ("text", words)))
    judged = expected("head", releases["head"], [seen["y"], read["y"]])
    return {"score": judged["y"], "seen": seen["release"], "head": judged["release"]}


def graph(model: str, release: int, *, slow: int = 0) -> bytes:
    """Return a module as ONNX.

    Args:
        model: its name.
        release: its number.
        slow: so many times the product of two large matrices is computed as well, which takes time.
    """
    ports = INPUTS[model]
    nodes = [helper.make_node("Sum", list(ports), ["total"])]
    constants = [
        numpy_helper.from_array(_matrix(model, release), "w"),
        numpy_helper.from_array(np.array([[release]], np.float32), "number"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.zeros((WIDTH, 1), np.float32), "nought"),
    ]
    nodes += [
        helper.make_node("MatMul", ["total", "w"], ["product"]),
        helper.make_node("Tanh", ["product"], ["y"]),
        helper.make_node("MatMul", ["total", "nought"], ["zeros"]),
        helper.make_node("Add", ["zeros", "number"], ["release" if not slow else "almost"]),
    ]
    if slow:
        large = np.random.default_rng(0).standard_normal((400, 400)).astype(np.float32) / 20
        constants += [
            numpy_helper.from_array(large, "large"),
            numpy_helper.from_array(np.zeros((1, 1), np.float32), "z"),
        ]
        nodes.append(helper.make_node("ReduceMean", ["total"], ["mean"], keepdims=1))
        nodes.append(helper.make_node("Mul", ["large", "mean"], ["m0"]))
        nodes += [helper.make_node("MatMul", [f"m{n}", "large"], [f"m{n + 1}"]) for n in range(slow)]
        nodes.append(helper.make_node("ReduceMean", [f"m{slow}"], ["mm"], keepdims=1))
        nodes.append(helper.make_node("Mul", ["mm", "z"], ["none"]))
        nodes.append(helper.make_node("Add", ["almost", "none"], ["release"]))
    made = helper.make_model(
        helper.make_graph(
            nodes,
            model,
            [helper.make_tensor_value_info(port, TensorProto.FLOAT, ["n", WIDTH]) for port in ports],
            [
                helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH]),
                helper.make_tensor_value_info("release", TensorProto.FLOAT, ["n", 1]),
            ],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.checker.check_model(made)
    encoded: bytes = made.SerializeToString()
    return encoded


@dataclass
class MadeMember:
    """A device that is made in a test: its key in a folder, and where it is reached."""

    name: str
    folder: Path
    address: str
    device: UUID = field(default_factory=uuid4)
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "device.key").write_bytes(
            self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )


def in_seconds(seconds: float) -> datetime:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)


def made_plan(
    members: Sequence[MadeMember],
    modules: Mapping[str, tuple[int, Sequence[MadeMember]]],
    *,
    number: int = 1,
    deadline_s: float = 5.0,
    fallback: bool = False,
    release_ids: Mapping[str, str] | None = None,
    expires_in_s: float = 3600.0,
    graph: Mapping[str, Any] = FIND,
) -> SitePlan:
    """Return a plan of one task, `find`.

    Args:
        members: of the site.
        modules: model -> its release and its hosts.
        number: of the plan.
        deadline_s: of the task.
        fallback: the task has one, GUESS.
        release_ids: by model; made up where they are left out.
        expires_in_s: from now.
        graph: of the task.
    """
    until, title = in_seconds(expires_in_s), f"line-3/{number}"
    keys = [(one.device, one.key.public_key().public_bytes_raw()) for one in members]
    certified = certify(title, f"{number}.line-3.plan.sprat", keys, until=until)
    made_up = {model: digest_text(bytes([len(model), release]) * 16) for model, (release, _) in modules.items()}
    return SitePlan(
        site="line-3",
        number=number,
        expires_at=until,
        authority=certified.authority,
        members=tuple(
            Member(
                device=one.device,
                name=one.name,
                address=one.address,
                certificate=certified.members[one.device],
            )
            for one in members
        ),
        modules={
            model: PlannedModule(
                model=model,
                release=release,
                release_id=(release_ids or made_up)[model],
                hosts=tuple(one.device for one in hosts),
            )
            for model, (release, hosts) in modules.items()
        },
        tasks={
            "find": PlannedTask(
                graph=TaskGraph.of(graph), deadline_s=deadline_s, fallback=TaskGraph.of(GUESS) if fallback else None
            )
        },
    )


def at(plan: SitePlan, device: UUID, address: str) -> SitePlan:
    """Return a plan in which a device is reached elsewhere, as behind a bad link."""
    members = tuple(replace(one, address=address) if one.device == device else one for one in plan.members)
    return replace(plan, members=members)
