"""A release is fetched ahead of its rollout by real agents; starting it then takes no payload from the server."""

from collections.abc import Iterator

import pytest
import tiny_models
from demo.shell import Shell
from house import PATIENCE_S, House, make_server

pytestmark = pytest.mark.e2e
MODEL = "ahead"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server of its own: it loses its payloads."""
    folder = tmp_path_factory.mktemp("prefetch")
    with make_server(folder) as server:
        yield House(folder, server, Shell(server.url, server.admin_token))


def test_a_start_after_a_prefetch_needs_no_payload_any_more(house: House) -> None:
    shell = house.shell
    house.register(MODEL)
    with house.devices(MODEL, "near", "far") as devices:
        house.roll_out(MODEL, 1, devices, "100%")
        release = house.release(MODEL, tiny_models.truth())
        draft = house.roll_out(MODEL, 2, devices, "1,100%", "--json")
        assert draft["state"] == "draft"
        ready = shell.one("rollout", "prefetch", draft["id"], "--watch")
        assert (ready["state"], ready["prefetched"], ready["ready"]) == ("draft", 2, 2)
        for device in devices:
            serves = device.serves(MODEL)
            assert serves is not None
            assert serves["release"] == 1, "nothing that was fetched ahead serves"
            report = shell.one("device", "show", device.name)["reports"][0]
            assert (report["outcome"], report["release"]) == ("ready", 2)
            assert report["received_bytes"] == next(one["bytes"] for one in release["updates"] if one["base"] == 1)
        (blobs,) = house.folder.rglob("blobs")
        blobs.rename(blobs.with_name("lost"))
        assert shell.one("rollout", "start", draft["id"], "--reason", "it is there", "--watch")["state"] == "succeeded"
        for device in devices:
            device.wait_for(MODEL, 2, PATIENCE_S)
            report = shell.one("device", "show", device.name)["reports"][0]
            assert (report["outcome"], report["received_bytes"]) == ("committed", 0)
