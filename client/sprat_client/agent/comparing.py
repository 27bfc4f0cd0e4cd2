"""The work of VALIDATING: loads a new release, measured, and compares it with the one that serves."""

import contextlib
from pathlib import Path

from sprat_client.agent.journal import Work
from sprat_client.agent.judgement import ValidationRefused
from sprat_client.agent.measure import Memory, load_measured
from sprat_client.agent.releases import Shelf
from sprat_client.agent.room import require_memory
from sprat_client.agent.samples import joined, load_holdout, load_inputs
from sprat_client.agent.serve import Serving
from sprat_client.agent.steps import Workshop
from sprat_client.agent.validate import Validation, validate
from sprat_client.runtime.ports import ModelHost, ModelNotLoadable


def compare(shop: Workshop, shelf: Shelf, work: Work) -> tuple[ModelHost, Validation]:
    """Load the new release and compare it with the one that serves; return it, still loaded.

    Raises:
        ValidationRefused: it is worse, or does not load.
        MemoryShort: there is too little memory for both; nothing was loaded.
        InvalidInput: the holdout samples cannot be used.
    """
    model, serving = work.wish.model, shop.servings.get(work.wish.model)
    new, memory = _load_both(shop, shelf, work, serving)
    path, unlabelled = shop.settings.holdouts.get(model), shop.settings.unlabelled.get(model)
    holdout = None if path is None else load_holdout(path)
    if len(new.inputs) == 1:
        holdout = joined(holdout, shop.holdouts.of(model).load(new.inputs[0]))
    inputs = load_inputs(unlabelled) if holdout is None and unlabelled is not None else None
    settings = shop.settings.under(work.wish.policy).validation
    old = None if serving is None else serving.host
    budget = None if serving is None else _budget(shelf, work, serving)
    return new, validate(new, old, holdout, settings, inputs=inputs, memory=memory, budget=budget)


def _budget(shelf: Shelf, work: Work, serving: Serving) -> float | None:
    """Return which share of answers may differ, where the new release is a near copy of the one that serves."""
    shares = None if work.release_id is None else shelf.manifest(work.release_id).shares
    return None if shares is None or shares.weights != serving.slot.weights else shares.budget


def load_new(shop: Workshop, shelf: Shelf, work: Work) -> ModelHost:
    """Load the release of an update under way.

    Raises:
        ValidationRefused: the runtime refuses it.
        StoreCorrupted: a file does not have its bytes.
    """
    return _load_both(shop, shelf, work, None)[0]


def _load_both(shop: Workshop, shelf: Shelf, work: Work, serving: Serving | None) -> tuple[ModelHost, Memory | None]:
    """Load the new release, and say what it takes beside what the old one takes, each loaded in the same way.

    What the old one takes is known where it was the new one, or the old one, of the comparison before.
    """
    if work.release_id is None:
        raise AssertionError("VERIFYING sets the release id, and came before")
    manifest = shelf.manifest(work.release_id)
    require_memory(
        manifest.mapped_bytes, f"loading {work.wish.model}@{work.wish.release} beside the release that serves"
    )
    shelf.check(manifest)
    new_folder = shelf.folder_of(work.release_id)

    def taken_by(folder: Path) -> int:
        return load_measured(shop.runtime, folder)[1]

    taken = {}
    if serving is not None:
        old_id = serving.slot.release_id
        before = shelf.folder_of(old_id)
        known = shop.taken.get(work.wish.model, {}).get(old_id)
        with contextlib.suppress(ModelNotLoadable):  # it serves, from files that are gone since
            taken[old_id] = taken_by(before) if known is None else known
    try:
        new, new_bytes = load_measured(shop.runtime, new_folder)
    except ModelNotLoadable as bad:
        raise ValidationRefused(str(bad), code=bad.code) from bad
    if not taken:
        return new, None
    shop.taken[work.wish.model] = {**taken, work.release_id: new_bytes}
    return new, Memory(old=taken[old_id], new=new_bytes, again=lambda: (taken_by(before), taken_by(new_folder)))
