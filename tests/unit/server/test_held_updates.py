"""Updates to a release that uses another model's layers: what a device holds is named, not sent."""

from pathlib import Path

import numpy as np

from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.rebuild import RebuildStep, rebuild
from sprat_client.agent.store import TensorStore
from sprat_server.compress.held import held_update
from sprat_shared.encode import encode_full
from sprat_shared.wire.tensors import Array, ArrayTensors, digest_of, raw_bytes, tensor_sha256

RNG = np.random.default_rng(5)
TRUNK, OWN, HEAD, MAP = (RNG.standard_normal(n).astype(np.float32) for n in ((40, 30), (40, 30), (4, 40), (4, 40)))
BIAS, SCALE = np.ones(4, np.float32), np.ones((), np.float32)
DONOR = ArrayTensors({"0.weight": ("F32", TRUNK), "2.weight": ("F32", RNG.standard_normal((9, 40)).astype(np.float32))})
BASE = ArrayTensors({"0.weight": ("F32", OWN), "2.bias": ("F32", BIAS), "2.weight": ("F32", HEAD)})
SHARED = ArrayTensors(
    {
        "donor/0.weight": ("F32", TRUNK),
        "2.bias": ("F32", BIAS),
        "head": ("F32", HEAD),
        "map/weight": ("F32", MAP),
        "scale": ("F32", SCALE),
    }
)


def put(store: TensorStore, array: Array) -> None:
    store.put(tensor_sha256(array), raw_bytes(array))
    store.settle()


def test_what_the_donor_and_the_base_have_is_named_and_only_the_map_is_sent() -> None:
    data = held_update(BASE, SHARED, DONOR)
    assert len(data) < MAP.nbytes + 250 < TRUNK.nbytes


def test_a_device_rebuilds_it_bit_for_bit_and_writes_no_file_of_the_donor_again(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "store", PosixDisk())
    for index in range(len(DONOR.table)):
        put(store, DONOR.read(index))
    trunk = store.path(tensor_sha256(TRUNK))
    before = trunk.stat()
    full, shared = tmp_path / "full", tmp_path / "shared"
    full.write_bytes(encode_full(BASE))
    shared.write_bytes(held_update(BASE, SHARED, DONOR))
    steps = [RebuildStep(payload=full, weights=digest_of(BASE)), RebuildStep(payload=shared, weights=digest_of(SHARED))]
    rebuilt = rebuild(store, None, steps)
    assert rebuilt.table == SHARED.table
    assert rebuilt.sha256s[SHARED.table.index_of("donor/0.weight")] == tensor_sha256(TRUNK)
    after = trunk.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
