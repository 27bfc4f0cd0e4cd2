"""TUF targets of sprat: their paths, roles, and the custom field that binds an update to its base and its result.

The TUF specification (section 4.5) leaves a target's `custom` object to the application. Ours sits under the key
`sprat` and says what a device must know before it takes a byte: which weights the update needs, which it gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sprat_shared.errors import InvalidInput, UntrustedUpdate
from sprat_shared.ids import check_model_name, parse_digest

IMAGE_REPOSITORY: Final = "image"
WIRE_VERSION: Final = 1
MILLION: Final = 1_000_000
"""Shares of a whole are signed as whole millionths: canonical JSON has no fractions."""
_KEY: Final = "sprat"


def role_of_model(model: str) -> str:
    """Return the delegated role that signs a model's targets. The dot keeps it apart from the top-level roles."""
    return f"m.{check_model_name(model)}"


def paths_of_model(model: str) -> list[str]:
    """Return the path patterns that the role of `model` is trusted for."""
    return [f"{check_model_name(model)}/*/*"]


def update_path(model: str, release: int, base: int | None) -> str:
    """Return the target path of the update that gives `model@release` from release `base`, or from nothing."""
    return f"{check_model_name(model)}/{release}/{'full' if base is None else f'from-{base}'}"


def graph_path(model: str, graph_digest: str) -> str:
    """Return the target path of a graph."""
    return f"{check_model_name(model)}/graph/{parse_digest(graph_digest).hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalStatistics:
    """The tensors of a release that each device computes from its own inputs: statistics of batch norms.

    Attributes:
        graph: digest of the graph that gives the norms' inputs; a target of the model like its graph.
        tensors: their indices in the tensor table, rising.
    """

    graph: str
    tensors: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"graph": self.graph, "tensors": list(self.tensors)}

    @classmethod
    def of(cls, value: Any) -> "LocalStatistics":
        """Read the JSON object.

        Raises:
            ValueError, TypeError, KeyError, InvalidInput: a field is missing, of another type, or not in order.
        """
        tensors = tuple(value["tensors"])
        if not tensors or any(isinstance(index, bool) or not isinstance(index, int) for index in tensors):
            raise ValueError(f"local tensors {tensors!r:.80} are not indices")
        if tensors[0] < 0 or list(tensors) != sorted(set(tensors)):
            raise ValueError(f"local tensors {tensors!r:.80} do not rise from 0")
        return cls(graph=_digest(value["graph"]), tensors=tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """That a release is a near copy of another one of its model, which uses layers of a donor (docs/sharing.md).

    All levels of one ladder say the same: a device that leaves one has its base, or a lower level, to go to.

    Attributes:
        base: number of the release of the same model that it was made from; that one shares nothing.
        weights: weights digest of that release.
        donor: name of the model whose layers it uses.
        budget_ppm: the share of answers that may differ from the base's, in millionths.
    """

    base: int
    weights: str
    donor: str
    budget_ppm: int

    @property
    def budget(self) -> float:
        """Return the share of answers that may differ from the base's, 0 to 1."""
        return self.budget_ppm / MILLION

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"base": self.base, "weights": self.weights, "donor": self.donor, "budget_ppm": self.budget_ppm}

    @classmethod
    def of(cls, value: Any) -> "Shares":
        """Read the JSON object.

        Raises:
            ValueError, TypeError, KeyError, InvalidInput: a field is missing, of another type, or out of its bounds.
        """
        budget = positive(value["budget_ppm"])
        if budget > MILLION:
            raise ValueError(f"a budget of {budget} millionths is more than all answers")
        return cls(
            base=positive(value["base"]),
            weights=_digest(value["weights"]),
            donor=check_model_name(value["donor"]),
            budget_ppm=budget,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTarget:
    """What the signer says of one update file.

    Attributes:
        model: name of the model.
        release: number of the release it gives.
        weights: weights digest of that release.
        graph: digest of its graph.
        base_release: number of the release it needs; None for a full update.
        base_weights: weights digest of that release; None for a full update.
        wire: version of the wire format.
        min_agent: oldest agent version that may install it.
        local: what each device computes itself; None where everything is sent.
        shares: of which release it is a near copy that shares layers; None of a release by itself.
    """

    model: str
    release: int
    weights: str
    graph: str
    base_release: int | None
    base_weights: str | None
    wire: int = WIRE_VERSION
    min_agent: str = "0.1.0"
    local: LocalStatistics | None = None
    shares: Shares | None = None

    @property
    def path(self) -> str:
        """Return the target path."""
        return update_path(self.model, self.release, self.base_release)

    def to_custom(self) -> dict[str, Any]:
        """Return the target's `custom` object."""
        said: dict[str, Any] = {
            "model": self.model,
            "release": self.release,
            "weights": self.weights,
            "graph": self.graph,
            "wire": self.wire,
            "min_agent": self.min_agent,
        }
        if self.base_release is not None:
            said["base"] = {"release": self.base_release, "weights": self.base_weights}
        if self.local is not None:
            said["local"] = self.local.as_json()
        if self.shares is not None:
            said["shares"] = self.shares.as_json()
        return {_KEY: said}

    @classmethod
    def from_custom(cls, path: str, custom: Mapping[str, Any] | None) -> "UpdateTarget":
        """Read a target's `custom` object and check it against the path it was signed under.

        Raises:
            UntrustedUpdate: a field is missing, has another type, or contradicts the path.
        """
        try:
            said = (custom or {})[_KEY]
            base, local, shares = said.get("base"), said.get("local"), said.get("shares")
            target = cls(
                model=check_model_name(said["model"]),
                release=positive(said["release"]),
                weights=_digest(said["weights"]),
                graph=_digest(said["graph"]),
                base_release=None if base is None else positive(base["release"]),
                base_weights=None if base is None else _digest(base["weights"]),
                wire=positive(said["wire"]),
                min_agent=str(said["min_agent"]),
                local=None if local is None else LocalStatistics.of(local),
                shares=None if shares is None else Shares.of(shares),
            )
        except (KeyError, TypeError, AttributeError, ValueError, InvalidInput) as bad:
            raise UntrustedUpdate(f"target {path}: its signed description cannot be read ({bad!r})") from bad
        if target.path != path:
            raise UntrustedUpdate(f"target {path} describes itself as {target.path}; the repository is mixed up")
        if target.shares is not None and (target.shares.base >= target.release or target.shares.donor == target.model):
            raise UntrustedUpdate(f"target {path} shares layers with itself, or was made from a release to come")
        return target


def positive(value: Any) -> int:
    """Return a number of a signed description, if it is a whole one above 0; ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a positive number")
    return value


def _digest(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a digest")
    parse_digest(value)
    return value
