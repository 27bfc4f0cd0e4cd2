"""What is signed of a site's plans: certificates, polls and bundles that bring it, whole whoever dies or is as fast."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fastapi import FastAPI
from http_calls import Api
from poll_calls import Asking, while_running
from sharing_calls import runner
from site_calls import PLANS, Site
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import ACROSS, DEFAULT_PROJECT
from sprat_server.flows import bundles, live, site_plans, site_steps
from sprat_server.observe.actors import SYSTEM
from sprat_server.settings import Settings
from sprat_shared.protocol.poll import PollAnswer
from sprat_shared.protocol.site_report import PlanState

READY, SERVING, REFUSED = PlanState.READY, PlanState.SERVING, PlanState.REFUSED
REASON = {"reason": "because"}


@pytest.fixture
def site(app: FastAPI, settings: Settings, blobs: Blobs, admin: Api) -> Site:
    return Site(app, runner(app, settings, blobs), admin, blobs)


def test_members_are_certified_by_an_authority_of_this_plan_alone(site: Site) -> None:
    site.create()
    first = site.served()
    second = site.planned()
    site.apply(second)
    plans = {number: site.file(number) for number in (first, second)}
    authorities = {number: x509.load_der_x509_certificate(plan.authority) for number, plan in plans.items()}
    for number, plan in plans.items():
        assert [one.address for one in sorted(plan.members, key=lambda one: one.address)] == [
            f"10.0.0.{at}:8478" for at in (1, 2, 3)
        ]
        for member in plan.members:
            certificate = x509.load_der_x509_certificate(member.certificate)
            certificate.verify_directly_issued_by(authorities[number])
            with pytest.raises(ValueError, match="Issuer"):
                certificate.verify_directly_issued_by(authorities[3 - number])
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            assert [one.value for one in names] == [str(member.device)]
            dns = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert dns.get_values_for_type(x509.DNSName) == [f"{number}.line-3.plan.sprat"] == [plan.server_name]
            usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
            key = certificate.public_key()
            assert isinstance(key, Ed25519PublicKey)
            device = site.devices[member.name]
            assert key.public_bytes_raw() == device.key.public_key().public_bytes_raw()
            assert certificate.not_valid_before_utc == datetime(1970, 1, 1, tzinfo=UTC)
            assert certificate.not_valid_after_utc == plan.expires_at
        assert timedelta(days=29) < plan.expires_at - datetime.now(UTC) <= timedelta(days=30)


def test_the_plan_comes_with_the_poll_until_its_device_is_ready(site: Site) -> None:
    site.create()
    number = site.planned()
    site.apply(number)
    digest = site.look(number)["digest"]

    def payloads() -> list[str]:
        answer = PollAnswer.from_bytes(site.devices["camera"].poll(inline=1 << 20).content)
        return [part.name for part in answer.parts if part.kind == "blob"]

    assert digest in payloads()
    site.say("camera", number, READY)
    assert digest not in payloads()


def test_a_poll_that_is_remembered_is_forgotten_when_a_phase_is_signed(site: Site) -> None:
    site.create()
    number = site.planned()

    async def body(asking: Asking) -> None:
        assert (await asking.ask()).status_code == 304
        await asyncio.to_thread(site.apply, number)
        asking.keep(await asking.changed_within())
        await asking.settled()
        for name in site.devices:
            await asyncio.to_thread(site.say, name, number, READY)
        asking.keep(await asking.changed_within())

    while_running(site.app, site.devices["camera"], body)
    assert site.signed("camera") == {1: "serve"}


def test_members_that_are_ready_at_once_switch_once_and_plans_applied_at_once_are_one(site: Site) -> None:
    site.create()
    numbers = [site.planned() for _ in range(3)]

    def apply(number: int) -> int:
        return site.api.post(f"{PLANS}/{number}/apply", json={}).status_code

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(apply, numbers)) == [200, 409, 409]
        (held,) = [number for number in numbers if site.look(number)["state"] == "holding"]
        list(pool.map(lambda name: site.say(name, held, READY), site.devices))
        assert site.look(held)["state"] == "switching"
        list(pool.map(lambda name: site.say(name, held, SERVING), site.devices))
    assert [one["type"] for one in site.events()] == ["site.held", "site.switching", "site.serving"]


def test_a_server_that_dies_while_it_applies_a_plan_has_applied_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.create()
    number = site.planned()
    dying = (
        (live, "bring_in"),  # its file is stored, its members are not
        (site_steps, "tell"),  # all is written, and not committed
    )
    for module, name in dying:

        def dies(*_: Any, **__: Any) -> None:
            raise SystemExit

        with monkeypatch.context() as broken:
            broken.setattr(module, name, dies)
            with pytest.raises(SystemExit), site.app.state.database.transaction(DEFAULT_PROJECT) as session:
                site_plans.apply(session, site.blobs, site.app.state.settings, "line-3", number, SYSTEM)
        assert site.look(number)["state"] == "planned"
        assert site.signed("camera") == {}
        assert site.wish("box", "vision") is None
    site.apply(number)
    assert site.signed("camera") == {1: "hold"}


def test_a_bundle_brings_the_plan_too(site: Site) -> None:
    site.create()
    number = site.planned()
    site.apply(number)
    digest = bytes.fromhex(site.look(number)["digest"].removeprefix("sha256:"))
    for full in (False, True):
        with site.app.state.database.transaction(DEFAULT_PROJECT) as session:
            made_one = bundles.export(session, site.app.state.settings, [site.devices["box"].id], full=full)
        assert digest in made_one.head.payloads
        site.say("box", number, READY)


def test_what_was_signed_stays_and_numbers_rise(site: Site) -> None:
    site.create()
    number = site.planned()
    site.apply(number)
    for change in ("number = 9", "content = '{}'", "digest = 'sha256:' || repeat('0', 64)", "state = 'asleep'"):
        with pytest.raises(IntegrityError), site.app.state.database.transaction(DEFAULT_PROJECT) as session:
            session.execute(text(f"UPDATE site_plan SET {change}"), execution_options=ACROSS)
    with (
        pytest.raises(IntegrityError, match="the newest plan of this site is 1"),
        site.app.state.database.transaction(DEFAULT_PROJECT) as session,
    ):
        session.execute(
            text(
                "INSERT INTO site_plan (id, site_id, number, state, asked, content, made_by, project_id) "
                "SELECT gen_random_uuid(), site_id, 1, 'planned', '{}', '{}', 'me', project_id FROM site_plan"
            ),
            execution_options=ACROSS,
        )
