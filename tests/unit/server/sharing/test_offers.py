"""What one model could share with another: measured on some inputs, proven on others, built as it was measured."""

import numpy as np
import pytest
from small_graphs import images, plain

from sprat_server.sharing.offers import Subject, certified, offers, parted, way_of
from sprat_server.sharing.releases import NotShareable, Release
from sprat_shared.wire.tensors import ArrayTensors


def near(base: Release, name: str, noise: float) -> Release:
    draw = np.random.default_rng(2)
    arrays = {
        spec.name: ("F32", (base.tensors.read(i) + noise * draw.normal(size=spec.shape)).astype(np.float32))
        for i, spec in enumerate(base.tensors.table)
    }
    return Release(name, base.model.SerializeToString(), ArrayTensors(arrays))


def test_inputs_are_parted_without_overlap_and_alike_for_one_seed() -> None:
    parts = parted(np.arange(500, dtype=np.float32)[:, None], seed=3)
    found = np.concatenate([parts.fit, parts.tune, parts.choose, parts.certify])
    assert sorted(found.ravel().tolist()) == list(range(500))
    assert [len(part) for part in (parts.fit, parts.tune, parts.choose, parts.certify)] == [150, 50, 100, 200]
    again = parted(np.arange(500, dtype=np.float32)[:, None], seed=3)
    assert np.array_equal(parts.certify, again.certify)
    with pytest.raises(NotShareable, match="too few"):
        parted(np.zeros((99, 1), np.float32), seed=0)


def test_a_near_sibling_is_offered_ties_and_what_is_built_certifies() -> None:
    base = plain(width=16)
    inputs = parted(images(400), seed=1)
    donor, recipient = Subject(base, inputs), Subject(near(base, "sibling", 1e-5), inputs)
    found = list(offers(donor, recipient, inputs))
    tie = max((one for one in found if one.form == "tie"), key=lambda one: one.saved_bytes)
    assert tie.disagreed <= 1
    derived = way_of(donor, recipient, inputs, tie.form, tie.way).derived()
    assert derived.own_bytes == recipient.release.nbytes - tie.saved_bytes
    proof = certified(recipient, derived, inputs, looks=3)
    assert (proof.compared, proof.looks) == (len(inputs.certify), 3)
    assert proof.bound < 0.05


def test_a_model_of_other_inputs_is_refused_by_name() -> None:
    with pytest.raises(NotShareable, match="takes inputs of shape"):
        Subject(plain(width=16), parted(np.zeros((200, 7), np.float32), seed=0))
