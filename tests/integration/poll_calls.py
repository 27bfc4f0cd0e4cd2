"""A fleet that is brought to a release, and a device that asks while the server runs: what tests of polls share."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
from fastapi import FastAPI
from fleet_calls import TestDevice, held_after

from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.flows import rollout as rollout_flow
from sprat_server.rollouts.plan import RolloutPlan
from sprat_shared.protocol.poll import HeldMetadata, PollAnswer, format_tag


def bring_to(app: FastAPI, release: int) -> None:
    """Start a rollout to the whole fleet, without HTTP."""
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        made_one = rollout_flow.create(
            session,
            model="mnist",
            release=release,
            reaches=["100%"],
            devices=None,
            by="test",
            plan=RolloutPlan(override_quarantine="a test"),
        )
        rollout_flow.start(session, made_one.id, app.state.settings)


def names(answer: PollAnswer, kind: str) -> list[str]:
    """Return the names of an answer's parts of a kind, in its order."""
    return [part.name for part in answer.parts if part.kind == kind]


class Asking:
    """The device while the application runs; it keeps what it is sent.

    Args:
        client: with the device's token.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.held: dict[HeldMetadata, bytes] = {}

    async def ask(self, **headers: str) -> httpx.Response:
        """Poll, and keep nothing of the answer."""
        tag = {"If-None-Match": format_tag(list(self.held))}
        return await self._client.get("/device/v1/poll", headers=tag | headers)

    async def settled(self) -> None:
        """Poll until there is nothing new and the server remembers it."""
        while (answer := await self.ask()).status_code == 200:
            self.keep(answer)
        for _ in range(3):
            await asyncio.sleep(0.05)
            await self.ask()

    def keep(self, answer: httpx.Response) -> PollAnswer:
        """Keep the metadata of an answer, and return it."""
        read = PollAnswer.from_bytes(answer.content, b"".join(self.held.values()))
        self.held = held_after(read, self.held)
        return read

    async def changed_within(self, seconds: float = 5.0) -> httpx.Response:
        """Poll until the answer is not 304."""
        for _ in range(int(seconds / 0.01)):
            answer = await self.ask()
            if answer.status_code != 304:
                return answer
            await asyncio.sleep(0.01)
        raise AssertionError("nothing was heard of the change")


def while_running(app: FastAPI, device: TestDevice, body: Callable[[Asking], Awaitable[None]]) -> None:
    """Run `body` with the application started: it listens, remembers, and writes last-seen times."""

    async def run() -> None:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            headers = {"Authorization": f"Bearer {device.api.token}"}
            async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as client:
                asking = Asking(client)
                await asking.settled()
                await body(asking)

    asyncio.run(run())
