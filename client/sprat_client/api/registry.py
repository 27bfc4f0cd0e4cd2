"""Models, their releases, and datasets."""

from collections.abc import Mapping
from typing import Any, cast

from sprat_client.api.naming import unique_match
from sprat_client.api.transport import Transport
from sprat_client.api.views import DatasetView, JobView, ModelView, PolicyView, ReleaseView, WayView
from sprat_shared.errors import NotFound


class Models:
    """Models and their releases."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def register(
        self,
        name: str,
        *,
        weights: str,
        recipe: Mapping[str, Any] | None = None,
        graph: str | None = None,
        example: Mapping[str, Any] | None = None,
    ) -> JobView:
        """Ask for a new model; the job makes its release 1.

        Args:
            name: 1 to 63 of a-z, 0-9 and '-'.
            weights: digest of an uploaded safetensors file.
            recipe: {"factory": "package.module:build", "config": {...}}, or None for a model from ONNX alone.
            graph: digest of an uploaded ONNX file, or None where the recipe gives it.
            example: {"shape": [1, ...], "dtype": "F32"} of its input, shape with the batch axis, dtype as in
                safetensors files; {"inputs": [{"name": ..., "shape": ...}, ...]} of several, in the order of the
                module's arguments.
        """
        body = {"name": name, "recipe": recipe, "weights": weights, "graph": graph, "example": example}
        return _job(self._transport.post("/models", body))

    def get(self, name: str) -> ModelView:
        """Return one model."""
        return cast("ModelView", self._transport.get(f"/models/{name}"))

    def retrain(self, name: str, *, dataset: str, base: int | None = None, **options: Any) -> JobView:
        """Ask for a release retrained on a dataset; the job's result names it and its measured accuracies.

        Args:
            name: the model.
            dataset: digest of a validated dataset.
            base: number of the release to start from; the latest when None.
            options: further fields of the request: `retain` (digest of an old domain's dataset that is to be kept);
                at most one of `keep` (share of the full retrain's gain, above 0 to 1; the server's default is 0.95),
                `budget` (most bytes of the update) and `max_drop` (most that accuracy may be below the full
                retrain's: 0.005 is half a point); `config` (keys of the recipe's config that change); `seed`,
                `max_epochs`, …
        """
        body = {"dataset": dataset, "base": base, **options}
        return _job(self._transport.post(f"/models/{name}/retrain", body))

    def create_release(
        self, name: str, *, weights: str, base: int | None = None, lossless: bool = False, **architecture: Any
    ) -> JobView:
        """Ask for a release from weights trained elsewhere.

        Args:
            name: the model.
            weights: digest of an uploaded safetensors file.
            base: number of the release to start from; the latest when None.
            lossless: keep every bit.
            architecture: where tensors come, go or change their shapes: `config` (keys of the recipe's config that
                change), or, for a model from ONNX alone, `graph` (digest of an uploaded ONNX file).
        """
        body = {"weights": weights, "base": base, "lossless": lossless, **architecture}
        return _job(self._transport.post(f"/models/{name}/releases", body))

    def certify(
        self,
        name: str,
        number: int,
        *,
        against: int,
        dataset: str,
        budget: float | None = None,
        tolerance: float | None = None,
    ) -> JobView:
        """Ask by how much a release can be worse than another one; the job's result is the certificate.

        Args:
            name: the model.
            number: of the release.
            against: number of the one that it is a near copy of.
            dataset: digest; its labels are not used.
            budget: largest share of answers that may change.
            tolerance: of outputs that are no classes.
        """
        body = {"against": against, "dataset": dataset, "budget": budget, "tolerance": tolerance}
        return _job(self._transport.post(f"/models/{name}/releases/{number}/certify", body))

    def releases(self, name: str) -> list[ReleaseView]:
        """Return the releases of a model."""
        return list(self._transport.pages(f"/models/{name}/releases"))

    def release(self, name: str, number: int) -> ReleaseView:
        """Return one release."""
        return cast("ReleaseView", self._transport.get(f"/models/{name}/releases/{number}"))

    def updates(self, name: str, *, to: int | None = None) -> list[WayView]:
        """Return the way from each release of a model to one release (the newest when None), with its bytes."""
        return list(self._transport.pages(f"/models/{name}/updates", to=to))

    def policy(self, name: str, *, profile: str | None = None) -> PolicyView:
        """Return the policy that holds for devices of a profile; None: of any."""
        return cast("PolicyView", self._transport.get(f"/models/{name}/policy", profile=profile))

    def set_policy(self, name: str, policy: Mapping[str, Any], *, profile: str | None = None) -> PolicyView:
        """Set a policy (`sprat_shared.trust.policy`) in the place of the one before.

        Args:
            name: the model.
            policy: the JSON object.
            profile: of devices for which it stands in the place of the model's; None: of all others.
        """
        return cast("PolicyView", self._transport.put(f"/models/{name}/policy", dict(policy), profile=profile))

    def clear_policy(self, name: str, *, profile: str | None = None) -> PolicyView:
        """Take a policy away; return what holds then."""
        return cast("PolicyView", self._transport.delete(f"/models/{name}/policy", profile=profile))

    def list(self) -> list[ModelView]:
        """Return all models."""
        return list(self._transport.pages("/models"))


class Datasets:
    """Labelled samples on the server."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, *, blob: str) -> JobView:
        """Ask for an uploaded `.npz` or safetensors file to be validated and kept as a dataset."""
        return _job(self._transport.post("/datasets", {"name": name, "blob": blob}))

    def list(self) -> list[DatasetView]:
        """Return all datasets."""
        return list(self._transport.pages("/datasets"))

    def get(self, digest: str) -> DatasetView:
        """Return one dataset by its digest."""
        return cast("DatasetView", self._transport.get(f"/datasets/{digest}"))

    def resolve(self, wanted: str) -> DatasetView:
        """Return the dataset of this name, digest, or unique start of a digest.

        Raises:
            NotFound: none is called so.
            InvalidInput: several are.
        """
        if wanted.startswith("sha256:") and len(wanted) == len("sha256:") + 64:
            return self.get(wanted)
        datasets = self.list()
        named = [one for one in datasets if one["name"] == wanted]
        if len(named) == 1:
            return named[0]
        if not named and not datasets:
            raise NotFound("there is no dataset yet; bring one with: sprat dataset upload NAME FILE")
        digest = unique_match("dataset", wanted, [one["digest"] for one in named or datasets], prefix="sha256:")
        return next(one for one in datasets if one["digest"] == digest)


def _job(answer: Any) -> JobView:
    return cast("JobView", answer["job"])
