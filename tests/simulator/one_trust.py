"""The trust store of one device, without a network: the server's files are handed over in this process."""

from collections.abc import Iterator
from pathlib import Path

import tiny_onnx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from device_server import Device, DeviceServer

from sprat_client.agent.durable import Disk, PosixDisk
from sprat_client.agent.identity import Identity
from sprat_client.agent.journal import Journal
from sprat_client.agent.trust.clock import Clock
from sprat_client.agent.trust.store import Agreed, TrustStore
from sprat_shared.errors import InvalidInput, NotFound
from sprat_shared.ids import new_id
from sprat_shared.protocol.poll import PollAnswer, format_tag


class OneTrust:
    """A device's trust store, and the device as its server knows it.

    Args:
        folder: the agent's.
        server: it.
        disk: where is written.
        clock: of the device.
    """

    def __init__(
        self, folder: Path, server: DeviceServer, disk: Disk | None = None, clock: Clock | None = None
    ) -> None:
        self.folder, self.server, self.disk = folder, server, disk or PosixDisk()
        self.clock = clock or Clock()
        key = Ed25519PrivateKey.generate().public_key()
        self.device = Device(new_id(), key, f"gate-{len(server.devices)}")
        server.devices[self.device.name] = self.device
        self.identity = Identity(
            server_url="http://127.0.0.1",
            device=self.device.id,
            name="gate-7",
            poll_interval_s=60.0,
            image_root=server.repository.signed["root", 1],
            director_root=server.director.signed["root", 1],
        )
        self.asked: list[str] = []

    @property
    def keeper(self) -> Journal:
        """What survives apart from the files."""
        return Journal(self.folder / "journal.json", self.disk)

    @property
    def store(self) -> TrustStore:
        """Open the store on what the folder holds now, as a start of the agent does."""
        return self.on(self.folder, self.disk)

    def on(self, folder: Path, disk: Disk | None = None) -> TrustStore:
        """Open the store on another folder."""
        disk = disk or PosixDisk()
        keeper = Journal(folder / "journal.json", disk)
        if (latest := keeper.marks("director").time) is not None:
            self.clock.know(latest)
        return TrustStore(folder / "trust", disk, identity=self.identity, keeper=keeper, clock=self.clock)

    def metadata(self, repository: str, name: str) -> Iterator[bytes]:
        """Give a file as the network does."""
        self.asked.append(f"{repository}/{name}")
        found = self.server.metadata(self.device, f"{repository}/{name}")
        if found is None:
            raise NotFound(f"no {name}")
        yield found

    def poll(self, store: TrustStore | None = None) -> dict[str, bytes]:
        """Return the metadata that a poll brings."""

        held = (store or self.store).held()
        headers = {"If-None-Match": format_tag([item for item, _ in held])}
        if (nonce := self.clock.new_nonce()) is not None:
            headers["Sprat-Nonce"] = nonce
        body = self.server.poll(self.device, headers)
        if body is None:
            return {}
        try:
            answer = PollAnswer.from_bytes(body, b"".join(data for _, data in held))
        except InvalidInput:  # of a server that holds other files by these versions
            answer = PollAnswer.from_bytes(self.server.poll(self.device, {}) or b"")
        return {part.name: part.data for part in answer.parts if part.kind == "metadata"}

    def take(self) -> Agreed:
        """Poll and take the answer."""
        store = self.store
        return store.take(self.poll(store), self)

    def versions(self, folder: Path | None = None) -> dict[str, int]:
        """Return the versions of what is trusted, by repository and role."""
        store = self.store if folder is None else self.on(folder)
        return {f"{item.repository}/{item.role}": item.version for item, _ in store.held()}


def tiny_server() -> DeviceServer:
    """Return a server with two releases of the model `tiny`, the second as an update from the first."""
    server = DeviceServer()
    server.add_release("tiny", tiny_onnx.weights(1))
    server.add_release("tiny", tiny_onnx.nudged(tiny_onnx.weights(1), 2), base=1)
    server.offered[2] = ("tiny/2/from-1",)
    return server


def assigned_trust(folder: Path, server: DeviceServer) -> OneTrust:
    """Return the trust store of a device that should run the second release."""
    folder.mkdir()
    trust = OneTrust(folder, server)
    server.assign("tiny", 2, trust.device)
    return trust
