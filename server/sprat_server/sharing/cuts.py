"""Where a graph can be cut: single tensors through which every path from input to output goes.

Such a tensor parts the nodes into those before and those after it in any topological order, so one pass finds all: the
places where nothing else that was computed from the input is still wanted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sprat_server.sharing.releases import Release, attribute, needed_for, reads


@dataclass(frozen=True, slots=True)
class Cut:
    """One place where a model can be cut.

    Attributes:
        tensor: its name in the graph.
        operator: ONNX operator that makes it.
        before: initialisers that only what is before the cut reads; what sharing can save.
        after: initialisers that are read after it, whether or not before it too.
        bytes_before: of the tensors behind `before`.
    """

    tensor: str
    operator: str
    before: frozenset[str]
    after: frozenset[str]
    bytes_before: int


def find_cuts(release: Release) -> tuple[Cut, ...]:
    """Return all cuts of a model, from its input on; input and outputs are none."""
    return tuple(_cuts(release))


def _cuts(release: Release) -> Iterator[Cut]:
    wanted = needed_for(release.model.graph.node, release.outputs, ())
    computed = {release.input}
    nodes = []
    for node in wanted:
        if values_read(node, release.input) & computed:
            computed |= set(node.output)
            nodes.append(node)
    last_use: dict[str, int] = {}
    for position, node in enumerate(nodes):
        last_use |= dict.fromkeys(values_read(node, release.input) & computed, position)
    last_use |= dict.fromkeys(release.outputs, len(nodes))
    still_open = {release.input}
    for position, node in enumerate(nodes):
        still_open |= {name for name in node.output if name in last_use}
        still_open = {name for name in still_open if last_use[name] > position}
        if len(still_open) == 1 and still_open <= set(node.output) and not still_open & set(release.outputs):
            yield _cut(release, next(iter(still_open)), node.op_type)


def _cut(release: Release, tensor: str, operator: str) -> Cut:
    nodes = release.model.graph.node
    first = {name for node in needed_for(nodes, [tensor], ()) for name in reads(node)} & set(release.bound)
    rest = {name for node in needed_for(nodes, release.outputs, [tensor]) for name in reads(node)} & set(release.bound)
    tied = {release.bound[name] for name in rest}
    before = frozenset(name for name in first if release.bound[name] not in tied)
    return Cut(tensor, operator, before, frozenset(rest), release.bytes_of(before))


def values_read(node: Any, model_input: str) -> set[str]:
    """Return the names whose values, and not only number of samples, a node reads.

    What torch's exporter asks of the input is how many samples it has; every tensor on the way has as many.
    """
    return set() if counts_samples(node, model_input) else reads(node)


def counts_samples(node: Any, model_input: str) -> bool:
    """Say whether a node only asks how many samples the model's input has."""
    span = (attribute(node, "start", 0), attribute(node, "end"))
    return node.op_type == "Shape" and list(node.input) == [model_input] and span == (0, 1)


Shape = tuple[int, ...]


def to_take_from(cuts: tuple[Cut, ...], shapes: Mapping[str, Shape]) -> tuple[Cut, ...]:
    """Return the cuts of a donor worth looking at: of those between the same parameters, the last of each shape.

    There a nonlinearity has been applied, and what follows may be anything. Maps of one position are left to the vector
    that comes of them.
    """
    kept = {(cut.before, shapes[cut.tensor]): cut for cut in cuts if not _one_position(shapes[cut.tensor])}
    return tuple(kept.values())


def to_put_at(cuts: tuple[Cut, ...], shapes: Mapping[str, Shape], total_bytes: int) -> tuple[Cut, ...]:
    """Return the cuts of a recipient worth looking at: of those between the same parameters, the first of each shape.

    What a map gives there goes through the recipient's own nonlinearity. Of two that follow each other at one shape and
    differ by less than a hundredth of the model, as before and after a norm, the later one is kept.
    """
    worth = [cut for cut in cuts if not _one_position(shapes[cut.tensor])]
    first = {(cut.before, shapes[cut.tensor]): cut for cut in reversed(worth)}
    ordered = sorted(first.values(), key=cuts.index)
    return tuple(
        cut
        for cut, following in zip(ordered, (*ordered[1:], None), strict=True)
        if following is None
        or shapes[following.tensor] != shapes[cut.tensor]
        or not 0 < following.bytes_before - cut.bytes_before < total_bytes / 100
    )


def _one_position(shape: Shape) -> bool:
    return len(shape) > 1 and shape[1:] == (1,) * (len(shape) - 1)
