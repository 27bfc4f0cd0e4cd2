"""A release that shares layers, in service: its answers are compared with those of the release it was made from."""

import json
from pathlib import Path
from typing import Any

import pytest
from one_device import MODEL
from sharing_device import sharing_device

from sprat_client.agent.releases import Manifest
from sprat_shared.errors import InvalidInput


def manifest_of(folder: Path, release: int) -> dict[str, Any]:
    found = [json.loads(file.read_bytes()) for file in (folder / "models" / MODEL / "releases").glob("*/manifest.json")]
    (manifest,) = [one for one in found if one["release"] == release]
    return dict(manifest)


def test_what_a_release_shares_is_in_its_folder(tmp_path: Path) -> None:
    with sharing_device(tmp_path) as device:
        base, copy = manifest_of(device.folder, 1), manifest_of(device.folder, 2)
    assert Manifest.of(base).shares is None
    assert copy["shares"] == {"base": 1, "weights": base["weights"], "donor": "face", "budget_ppm": 50_000}
    assert Manifest.of(copy).as_json() == copy
    assert Manifest.of({name: copy[name] for name in copy if name != "shares"}).shares is None, "of an older agent"
    with pytest.raises(InvalidInput, match="'shares' cannot be read"):
        Manifest.of({**copy, "shares": {**copy["shares"], "budget_ppm": 0}})
