"""What the agent knows about itself across power cuts: one small file, replaced durably at each transition.

A transition and the report it causes are one write: after a cut either both happened or neither.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sprat_client.agent.desired import Desired
from sprat_client.agent.durable import Disk, write_json
from sprat_client.agent.formats import check_format
from sprat_client.agent.states import State
from sprat_client.agent.trust.marks import Marks
from sprat_shared.errors import InvalidInput, SpratError
from sprat_shared.protocol.fields import Fields
from sprat_shared.protocol.report import AnyReport, Evidence, Report, TrustReport

FORMAT: Final = 2
REFUSALS_KEPT: Final = 16


class JournalUnreadable(SpratError):
    """The journal is not what this agent writes."""

    code = "agent.journal"
    exit_code = 78


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The update under way.

    Attributes:
        wish: what both repositories agreed on.
        started_at: seconds since 1970, on the device's clock.
        steps: target paths of the updates to apply, in order; known once FETCHING chose them.
        release_id: of the release that comes out; known once VERIFYING said so.
        graph: digest of its graph; likewise.
        back_to: release id to go back to, in ROLLING_BACK; None: to no release at all.
        reason: public code and sentence of what went wrong, for the report of ROLLING_BACK.
        evidence: of validation.
        validated: what VALIDATING could say: `paired`, `labelled` (no old release), `unlabelled`, `unvalidated`, and
            whether that is unproven.
        received_bytes: body bytes read so far.
        entered_at: when its present state was entered, likewise; for people, no decision counts from it.
        spent_s: how long the agent has worked or waited in the present state, while it ran.
        agains: how often something of it was damaged or gone here, and it was fetched anew.
        waiting: what it waits for, in words; None: for nothing.
        told_ready: the assignment of which it was reported that the release is ready; 0: of none.
    """

    wish: Desired
    started_at: float
    steps: tuple[str, ...] = ()
    release_id: str | None = None
    graph: str | None = None
    back_to: str | None = None
    reason: tuple[str, str] | None = None
    evidence: Evidence | None = None
    validated: str | None = None
    received_bytes: int = 0
    entered_at: float = 0.0
    spent_s: float = 0.0
    agains: int = 0
    waiting: str | None = None
    told_ready: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "wish": self.wish.as_json(),
            "started_at": self.started_at,
            "steps": list(self.steps),
            "release_id": self.release_id,
            "graph": self.graph,
            "back_to": self.back_to,
            "reason": None if self.reason is None else list(self.reason),
            "evidence": None if self.evidence is None else self.evidence.as_json(),
            "validated": self.validated,
            "received_bytes": self.received_bytes,
            "entered_at": self.entered_at,
            "spent_s": self.spent_s,
            "agains": self.agains,
            "waiting": self.waiting,
            "told_ready": self.told_ready,
        }

    @classmethod
    def of(cls, value: Any) -> "Work":
        """Read the JSON object."""
        fields = Fields(value, "journal: work")
        reason = fields.list_of("reason") if fields.has("reason") else None
        return cls(
            wish=Desired.of(fields.mapping("wish")),
            started_at=fields.number("started_at"),
            steps=tuple(str(step) for step in fields.list_of("steps")),
            release_id=fields.digest("release_id") if fields.has("release_id") else None,
            graph=fields.digest("graph") if fields.has("graph") else None,
            back_to=fields.digest("back_to") if fields.has("back_to") else None,
            reason=None if reason is None else (str(reason[0]), str(reason[1])),
            evidence=Evidence.of(fields.mapping("evidence")) if fields.has("evidence") else None,
            validated=fields.text("validated") if fields.has("validated") else None,
            received_bytes=fields.integer("received_bytes"),
            entered_at=fields.number("entered_at"),
            spent_s=fields.number("spent_s"),
            agains=fields.integer("agains"),
            waiting=fields.text("waiting") if fields.has("waiting") else None,
            told_ready=fields.integer("told_ready") if fields.has("told_ready") else 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An assignment that ended without its release; a newer assignment may ask for it again.

    Attributes:
        assignment: its counter.
        release: number of the release.
        code: public code of the reason.
        final: never tried again; otherwise this device could not do it, and tries once more after a restart.
    """

    assignment: int
    release: int
    code: str
    final: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """One model's place in the state table.

    Attributes:
        state: see `states`.
        highest_assignment: largest counter seen; a smaller one is a replay.
        pending: the newest assignment, while it waits for the state to become idle.
        work: the update under way; None when idle.
        resumes: restarts in the present state.
        trial_cuts: restarts during the present trial.
        refused: newest last.
        failures: how often each release that fails here has failed, by its release id.
        validated: how the active release was validated; None: nobody knows any more.
    """

    state: State = State.IDLE
    highest_assignment: int = 0
    pending: Desired | None = None
    work: Work | None = None
    resumes: int = 0
    trial_cuts: int = 0
    refused: tuple[Refusal, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict)
    validated: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "state": self.state.value,
            "highest_assignment": self.highest_assignment,
            "pending": None if self.pending is None else self.pending.as_json(),
            "work": None if self.work is None else self.work.as_json(),
            "resumes": self.resumes,
            "trial_cuts": self.trial_cuts,
            "refused": [asdict(refusal) for refusal in self.refused],
            "failures": dict(self.failures),
            "validated": self.validated,
        }

    @classmethod
    def of(cls, value: Any) -> "ModelRecord":
        """Read the JSON object."""
        fields = Fields(value, "journal: model")
        return cls(
            state=State(fields.text("state")),
            highest_assignment=fields.integer("highest_assignment"),
            pending=Desired.of(fields.mapping("pending")) if fields.has("pending") else None,
            work=Work.of(fields.mapping("work")) if fields.has("work") else None,
            resumes=fields.integer("resumes"),
            trial_cuts=fields.integer("trial_cuts"),
            refused=tuple(Refusal(**refusal) for refusal in fields.list_of("refused")),
            failures={name: int(count) for name, count in fields.mapping("failures").items()},
            validated=fields.text("validated") if fields.has("validated") else None,
        )

    def refuse(self, assignment: int, release: int, code: str, *, final: bool = True) -> "ModelRecord":
        """Return the record that remembers a refusal."""
        refusal = Refusal(assignment=assignment, release=release, code=code, final=final)
        others = (other for other in self.refused if other.assignment != assignment)
        return replace(self, refused=(*others, refusal)[-REFUSALS_KEPT:])

    def refusal(self, assignment: int) -> Refusal | None:
        """Return how an assignment ended, if it ended without its release."""
        return next((one for one in self.refused if one.assignment == assignment), None)

    def failed(self, release_id: str) -> "ModelRecord":
        """Return the record that counts one more failure of a release."""
        others = {name: count for name, count in self.failures.items() if name != release_id}
        while len(others) >= REFUSALS_KEPT:  # the one that is furthest from being broken is forgotten
            del others[min(others, key=lambda name: others[name])]
        return replace(self, failures={**others, release_id: self.failures.get(release_id, 0) + 1})

    def retried(self) -> "ModelRecord":
        """Return the record that holds nothing against any release, nor against the standing assignment."""
        refused = tuple(one for one in self.refused if one.assignment != self.highest_assignment)
        return replace(self, failures={}, refused=refused)

    def forgiven(self, release_id: str) -> "ModelRecord":
        """Return the record that holds nothing against a release."""
        return replace(self, failures={name: count for name, count in self.failures.items() if name != release_id})

    def under(self, wish: Desired) -> "ModelRecord":
        """Return the record in which what waits, or is worked on, for this assignment goes by its newest policy."""
        pending, work = self.pending, self.work
        if pending is not None and pending.assignment == wish.assignment:
            pending = replace(pending, policy=wish.policy)
        if work is not None and work.wish.assignment == wish.assignment:
            work = replace(work, wish=replace(work.wish, policy=wish.policy))
        return replace(self, pending=pending, work=work)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why what the server sends is not believed just now.

    Attributes:
        code: public code of the refusal,
        detail: the sentence for people,
        since: seconds since 1970 on the device's clock.
    """

    code: str
    detail: str
    since: float

    @classmethod
    def of(cls, value: Any) -> "Trouble":
        """Read the JSON object."""
        fields = Fields(value, "journal: trouble")
        return cls(code=fields.text("code"), detail=fields.text("detail"), since=fields.number("since"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRecord:
    """What must survive of trust, apart from the metadata files.

    Attributes:
        marks: of each repository.
        trouble: None: the last answer was believed.
        clock_ahead_s: by how much the device's clock is ahead of signed times; None: it can be believed.
    """

    marks: Mapping[str, Marks] = field(default_factory=dict)
    trouble: Trouble | None = None
    clock_ahead_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "marks": {name: marks.as_json() for name, marks in self.marks.items()},
            "trouble": None if self.trouble is None else asdict(self.trouble),
            "clock_ahead_s": self.clock_ahead_s,
        }

    @classmethod
    def of(cls, value: Any) -> "TrustRecord":
        """Read the JSON object."""
        fields = Fields(value, "journal: trust")
        return cls(
            marks={name: Marks.of(marks) for name, marks in fields.mapping("marks").items()},
            trouble=Trouble.of(fields.mapping("trouble")) if fields.has("trouble") else None,
            clock_ahead_s=fields.number("clock_ahead_s") if fields.has("clock_ahead_s") else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    sequence: int = 0
    models: Mapping[str, ModelRecord] = field(default_factory=dict)
    trust: TrustRecord = field(default_factory=TrustRecord)
    unsent: tuple[str, ...] = ()  # canonical JSON of reports that are not in the outbox yet
    paused_until: float | None = None  # seconds since 1970 on the device's clock; None: not paused


class Journal:
    """The durable journal of one agent folder.

    Args:
        path: of the file; made at the first write.
        disk: where it is written.

    Raises:
        JournalUnreadable: the file is there and cannot be read.
        NewerFormat: a newer agent wrote it.
    """

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path, self._disk = path, disk
        self._content = _read(path, disk) if disk.exists(path) else _Content()

    @property
    def models(self) -> Mapping[str, ModelRecord]:
        """The records by model name."""
        return self._content.models

    def record(self, model: str) -> ModelRecord:
        """Return one model's record; a new one where there is none."""
        return self._content.models.get(model, ModelRecord())

    @property
    def next_sequence(self) -> int:
        """The sequence number that the next report must carry."""
        return self._content.sequence + 1

    def begin_after(self, sequence: int) -> None:
        """Number reports above `sequence`: what a device before this folder reported is not repeated."""
        if sequence > self._content.sequence:
            self._write(replace(self._content, sequence=sequence))

    @property
    def unsent(self) -> tuple[bytes, ...]:
        """Reports that are decided and not in the outbox yet."""
        return tuple(text.encode() for text in self._content.unsent)

    @property
    def trust(self) -> TrustRecord:
        """What survives of trust."""
        return self._content.trust

    @property
    def paused_until(self) -> float | None:
        """Until when no update is worked on, seconds since 1970 on the device's clock; None: there is no pause."""
        return self._content.paused_until

    def pause(self, until: float | None) -> None:
        """Let no update be worked on until then; None: at once again."""
        self._write(replace(self._content, paused_until=until))

    def marks(self, repository: str) -> Marks:
        """Return the marks of a repository (`trust.repository.MarksKeeper`)."""
        return self._content.trust.marks.get(repository, Marks())

    def keep_marks(self, repository: str, marks: Marks) -> None:
        """Make the marks of a repository durable."""
        self.keep_trust(replace(self.trust, marks={**self.trust.marks, repository: marks}))

    def keep_trust(self, trust: TrustRecord, report: TrustReport | None = None) -> None:
        """Make what is known of trust durable, together with the report that a change of it causes."""
        self._write(self._reported(replace(self._content, trust=trust), report))

    def store(self, model: str, record: ModelRecord, report: Report | None = None) -> None:
        """Make a record durable, together with the report that its transition causes."""
        self._write(self._reported(replace(self._content, models={**self._content.models, model: record}), report))

    def say(self, report: AnyReport) -> None:
        """Make a report durable that no transition causes."""
        self._write(self._reported(self._content, report))

    @staticmethod
    def _reported(content: _Content, report: AnyReport | None) -> _Content:
        if report is None:
            return content
        return replace(content, sequence=report.sequence, unsent=(*content.unsent, report.to_json().decode()))

    def forget_unsent(self) -> None:
        """Say that all unsent reports are in the outbox now."""
        self._write(replace(self._content, unsent=()))

    def _write(self, content: _Content) -> None:
        write_json(
            self._disk,
            self._path,
            {
                "format": FORMAT,
                "sequence": content.sequence,
                "models": {name: record.as_json() for name, record in content.models.items()},
                "trust": content.trust.as_json(),
                "unsent": list(content.unsent),
                "paused_until": content.paused_until,
            },
        )
        self._content = content


def _read(path: Path, disk: Disk) -> _Content:
    try:
        fields = Fields(_upgraded(json.loads(disk.read(path)), path), "journal")
        return _Content(
            sequence=fields.integer("sequence"),
            models={name: ModelRecord.of(value) for name, value in fields.mapping("models").items()},
            trust=TrustRecord.of(fields.mapping("trust")),
            unsent=tuple(str(report) for report in fields.list_of("unsent")),
            paused_until=fields.number("paused_until") if fields.has("paused_until") else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError, InvalidInput) as bad:
        raise JournalUnreadable(
            f"{path}: {bad!r}. The disk is damaged: enrol the device again into a new folder"
        ) from bad


def _upgraded(value: Any, path: Path) -> Any:
    """Return a journal of an older agent in today's format. What was under way then goes on where it was.

    Raises:
        NewerFormat: a newer agent wrote it.
    """
    found = check_format(value, path, FORMAT)
    while found != FORMAT:
        value, found = {**_UPGRADES[found](value), "format": found + 1}, found + 1
    return value


def _from_1(value: dict[str, Any]) -> dict[str, Any]:
    """Add what format 2 holds: policies, pauses, failures by release, how long a state lasts, what it waits for."""

    def wish(old: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if old is None else {**old, "prefetch": False, "policy": {}}

    def work(old: dict[str, Any] | None) -> dict[str, Any] | None:
        return (
            None
            if old is None
            else {
                **old,
                "wish": wish(old["wish"]),
                "entered_at": old["started_at"],
                "spent_s": 0.0,
                "agains": 0,
            }
        )

    models = {
        name: {**old, "pending": wish(old["pending"]), "work": work(old["work"]), "failures": {}}
        for name, old in value["models"].items()
    }
    return {**value, "models": models}


_UPGRADES: Final[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {1: _from_1}
