"""The plan of a site, which its devices run tasks by: who is of it, which module is where, and how tasks go.

A plan is one immutable file, named by its digest; the director signs for each member which one it holds or serves by
(`sprat_shared.trust.site_targets`). It fixes one release of each module, so an answer under one plan never mixes
versions. Members know each other by certificates that an authority of this plan alone has signed: its key was thrown
away, so nobody joins later, and a certificate of another plan opens nothing.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final
from uuid import UUID

from sprat_shared.errors import InvalidInput
from sprat_shared.ids import check_model_name
from sprat_shared.protocol.fields import Fields, canonical_json
from sprat_shared.tasks.graph import TaskGraph

MOST_PLAN_BYTES: Final = 4 << 20
MOST_MEMBERS: Final = 200
MOST_MODULES: Final = 200
MOST_TASKS: Final = 100
_MOST_CERTIFICATE_BYTES: Final = 4096
_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
_ADDRESS: Final = re.compile(r"(\[[0-9a-fA-F:]{2,45}\]|[A-Za-z0-9.-]{1,253}):([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A device of the site.

    Attributes:
        device: its id.
        name: as people call it.
        address: where the other members reach it, `host:port`; None: it only asks, and holds no module.
        certificate: X.509, DER, over the key that it enrolled with; signed by the plan's authority.
    """

    device: UUID
    name: str
    address: str | None
    certificate: bytes

    @property
    def host(self) -> tuple[str, int]:
        """Return host and port; an IPv6 address without its brackets.

        Raises:
            InvalidInput: it cannot be reached.
        """
        if self.address is None:
            raise InvalidInput(f"{self.name} has no address: it holds no module, and answers nobody")
        host, port = self.address.rsplit(":", 1)
        return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModule:
    """A module: one release of a model, and where it is.

    Attributes:
        model: its name.
        release: number of the release.
        release_id: digest of graph and weights.
        hosts: members that hold it, the one that is asked first before the others.
    """

    model: str
    release: int
    release_id: str
    hosts: tuple[UUID, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTask:
    """How a task goes.

    Attributes:
        graph: its steps.
        deadline_s: of a request that brings none of its own.
        fallback: smaller steps that the device that is asked runs by itself where the others do not answer in time;
            of the same inputs and outputs. None: there are none.
        routes: asked device -> step -> the hosts that it asks, one after the other; the further ones, or all where none
            is said: itself before others, and those as the module's hosts are.
    """

    graph: TaskGraph
    deadline_s: float
    fallback: TaskGraph | None = None
    routes: Mapping[UUID, Mapping[str, tuple[UUID, ...]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SitePlan:
    """A plan.

    Attributes:
        site: name of the site.
        number: of the plan; a later one is larger.
        expires_at: to the second, UTC; no member answers by it afterwards.
        authority: X.509 certificate, DER, that signed the members' ones.
        members: of the site.
        modules: by model.
        tasks: by name.

    Raises:
        InvalidInput: names or hosts are not known or not unique, or a task names a module that is nowhere.
    """

    site: str
    number: int
    expires_at: datetime
    authority: bytes
    members: tuple[Member, ...]
    modules: Mapping[str, PlannedModule]
    tasks: Mapping[str, PlannedTask]

    def __post_init__(self) -> None:
        check_model_name(self.site)
        for what, found, most in (
            ("members", len(self.members), MOST_MEMBERS),
            ("modules", len(self.modules), MOST_MODULES),
            ("tasks", len(self.tasks), MOST_TASKS),
        ):
            if not 1 <= found <= most:
                raise InvalidInput(f"{self.title}: 1 to {most} {what}, not {found}")
        if len(self.member) != len(self.members):
            raise InvalidInput(f"{self.title}: a member is there twice")
        self._check_modules()
        for name, task in self.tasks.items():
            check_model_name(name)
            graphs = [task.graph] if task.fallback is None else [task.graph, task.fallback]
            if missing := sorted({model for graph in graphs for model in graph.models} - self.modules.keys()):
                raise InvalidInput(f"{self.title}: task {name} uses {missing[0]}, which is on no device")
            self._check_routes(name, task)
            if len({(frozenset(graph.inputs.items()), frozenset(graph.outputs)) for graph in graphs}) != 1:
                raise InvalidInput(f"{self.title}: task {name}: its fallback has other inputs or outputs")

    def _check_modules(self) -> None:
        for model, module in self.modules.items():
            if module.model != model or not module.hosts or len(set(module.hosts)) != len(module.hosts):
                raise InvalidInput(f"{self.title}: module {model} is of another name, or on no device, or on one twice")
            if strange := set(module.hosts) - self.member.keys():
                raise InvalidInput(f"{self.title}: module {model} is on {min(strange)}, which is no member")
            if mute := [self.member[host].name for host in module.hosts if self.member[host].address is None]:
                raise InvalidInput(f"{self.title}: module {model} is on {mute[0]}, which has no address")

    def _check_routes(self, name: str, task: PlannedTask) -> None:
        models = {step.name: step.model for step in task.graph.steps}
        for device, routes in task.routes.items():
            hosts = {step: self.modules[model].hosts for step, model in models.items()}
            wrong = [step for step, way in routes.items() if not set(way) <= set(hosts.get(step, ()))]
            wrong += [step for step, way in routes.items() if len(set(way)) < len(way)]
            if device not in self.member or wrong:
                raise InvalidInput(f"{self.title}: task {name}: a route of {device} leads nowhere: {wrong}")

    @property
    def title(self) -> str:
        """Return `site/number`, as it is shown and sent."""
        return f"{self.site}/{self.number}"

    @property
    def server_name(self) -> str:
        """Return the name that a member asks for in TLS (SNI): a device that holds two plans tells them apart by it."""
        return f"{self.number}.{self.site}.plan.sprat"

    @cached_property
    def member(self) -> Mapping[UUID, Member]:
        """Return the members by id."""
        return {one.device: one for one in self.members}

    def modules_of(self, device: UUID) -> list[PlannedModule]:
        """Return what a member holds, by model name."""
        return [module for _, module in sorted(self.modules.items()) if device in module.hosts]

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, which name it by their digest."""
        tasks = {
            name: {"graph": task.graph.as_json(), "deadline_s": task.deadline_s}
            | ({} if task.fallback is None else {"fallback": task.fallback.as_json()})
            | ({} if not task.routes else {"routes": _routes_as_json(task.routes)})
            for name, task in self.tasks.items()
        }
        modules = [
            {
                "model": one.model,
                "release": one.release,
                "id": one.release_id,
                "hosts": [str(host) for host in one.hosts],
            }
            for _, one in sorted(self.modules.items())
        ]
        members = [
            {
                "device": str(one.device),
                "name": one.name,
                "address": one.address,
                "certificate": base64.b64encode(one.certificate).decode(),
            }
            for one in self.members
        ]
        return canonical_json(
            {
                "site": self.site,
                "plan": self.number,
                "expires_at": self.expires_at.astimezone(UTC).strftime(_FORMAT),
                "authority": base64.b64encode(self.authority).decode(),
                "members": members,
                "modules": modules,
                "tasks": tasks,
            }
        )

    @classmethod
    def from_bytes(cls, body: bytes) -> "SitePlan":
        """Read a plan.

        Raises:
            InvalidInput: a field is missing or wrong.
        """
        if len(body) > MOST_PLAN_BYTES:
            raise InvalidInput(f"site plan: {len(body)} bytes are more than {MOST_PLAN_BYTES}")
        fields = Fields.parse(body, "site plan")
        modules = [_module(said) for said in fields.list_of("modules")]
        if len({one.model for one in modules}) != len(modules):
            raise InvalidInput("site plan: a module is there twice")
        return cls(
            site=fields.model("site"),
            number=fields.integer("plan", minimum=1),
            expires_at=_time(fields.text("expires_at")),
            authority=_der(fields, "authority"),
            members=tuple(_member(said) for said in fields.list_of("members")),
            modules={one.model: one for one in modules},
            tasks={name: _task(name, said) for name, said in fields.mapping("tasks").items()},
        )


def check_address(text: str) -> str:
    """Return `host:port` if it is one: a name, an IPv4 address, or an IPv6 address in brackets.

    Raises:
        InvalidInput: it has another form.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or not 1 <= int(found[2]) <= 65535:  # noqa: PLR2004 - the largest port there is
        raise InvalidInput(f"{text[:100]!r} is no address; write host:port, as 10.0.0.5:8478 or [fd00::5]:8478")
    return text


def _member(value: Any) -> Member:
    fields = Fields(value, "site plan: member")
    return Member(
        device=fields.uuid("device"),
        name=fields.text("name", max_length=100),
        address=check_address(fields.text("address", max_length=300)) if fields.has("address") else None,
        certificate=_der(fields, "certificate"),
    )


def _module(value: Any) -> PlannedModule:
    fields = Fields(value, "site plan: module")
    hosts = fields.list_of("hosts")
    try:
        found = tuple(UUID(host) for host in hosts)
    except (ValueError, AttributeError, TypeError):
        raise InvalidInput(f"site plan: module: hosts {hosts!r:.80} are not device ids") from None
    return PlannedModule(
        model=fields.model("model"),
        release=fields.integer("release", minimum=1),
        release_id=fields.digest("id"),
        hosts=found,
    )


def _task(name: str, value: Any) -> PlannedTask:
    fields = Fields(value, f"site plan: task {name:.80}")
    deadline_s = fields.number("deadline_s")
    if not 0 < deadline_s <= 3600:  # noqa: PLR2004 - also refuses NaN
        raise InvalidInput(f"site plan: task {name:.80}: a deadline of {deadline_s} s; 0 to 3,600 s")
    return PlannedTask(
        graph=TaskGraph.of(fields.mapping("graph")),
        deadline_s=deadline_s,
        fallback=TaskGraph.of(fields.mapping("fallback")) if fields.has("fallback") else None,
        routes=_routes(fields.mapping("routes")) if fields.has("routes") else {},
    )


def _routes(value: Mapping[str, Any]) -> dict[UUID, dict[str, tuple[UUID, ...]]]:
    try:
        return {
            UUID(device): {step: tuple(UUID(host) for host in _listed(way)) for step, way in said.items()}
            for device, said in value.items()
        }
    except (ValueError, AttributeError, TypeError):
        raise InvalidInput(f"site plan: task: routes {value!r:.80} are not device -> step -> devices") from None


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _routes_as_json(routes: Mapping[UUID, Mapping[str, tuple[UUID, ...]]]) -> dict[str, dict[str, list[str]]]:
    return {
        str(device): {step: [str(host) for host in way] for step, way in said.items()}
        for device, said in routes.items()
    }


def _der(fields: Fields, name: str) -> bytes:
    try:
        der = base64.b64decode(fields.text(name, max_length=2 * _MOST_CERTIFICATE_BYTES), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"site plan: {name} is not base64") from None
    if not 0 < len(der) <= _MOST_CERTIFICATE_BYTES:
        raise InvalidInput(f"site plan: {name} takes 1 to {_MOST_CERTIFICATE_BYTES} bytes, not {len(der)}")
    return der


def _time(text: str) -> datetime:
    try:
        return datetime.strptime(text, _FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise InvalidInput(f"site plan: {text[:40]!r} is no time; write 2026-01-31T12:00:00Z") from None
