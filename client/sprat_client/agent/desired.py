"""What this device should run: the agent's own word for what both repositories agree on. No server ever sends it."""

from dataclasses import dataclass, field
from typing import Any

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.fields import Fields
from sprat_shared.trust.policy import DevicePolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The release that this device should run of one model: the net wish, never a queue.

    Attributes:
        model: name of the model.
        release: number of the release.
        weights: its weights digest, as the image repository signs it.
        assignment: counter of assignments of this device; a larger one replaces all smaller ones.
        graph: target path of the graph.
        path: target paths of the updates that lead there from what the director believes the device holds, in
            order; empty where it should hold the release in a slot already.
        full: target path of the full update, for a device that holds something else.
        prefetch: the release is fetched and rebuilt, and waits; a newer assignment says that it may serve.
        policy: how to go about it.
    """

    model: str
    release: int
    weights: str
    assignment: int
    graph: str
    path: tuple[str, ...]
    full: str
    prefetch: bool = False
    policy: DevicePolicy = field(default_factory=DevicePolicy)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "model": self.model,
            "release": self.release,
            "weights": self.weights,
            "assignment": self.assignment,
            "graph": self.graph,
            "path": list(self.path),
            "full": self.full,
            "prefetch": self.prefetch,
            "policy": self.policy.as_json(),
        }

    @classmethod
    def of(cls, value: Any) -> "Desired":
        """Read the JSON object.

        Raises:
            InvalidInput: a field is missing or wrong.
        """
        fields = Fields(value, "desired release")
        path = fields.list_of("path")
        if not all(isinstance(step, str) for step in path):
            raise InvalidInput("desired release: field 'path' must be a list of target paths")
        return cls(
            model=fields.model("model"),
            release=fields.integer("release", minimum=1),
            weights=fields.digest("weights"),
            assignment=fields.integer("assignment", minimum=1),
            graph=fields.text("graph"),
            path=tuple(path),
            full=fields.text("full"),
            prefetch=fields.flag("prefetch"),
            policy=DevicePolicy.of(fields.mapping("policy")),
        )
