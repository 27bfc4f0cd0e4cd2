"""Settings of a running agent: frozen, units in the names, read once from the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from sprat_shared.trust.policy import DevicePolicy

T = TypeVar("T")
_LONGEST_SHADOW_S: Final = 86400.0  # where a policy counts requests, and none come


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """How the agent deals with its link.

    Attributes:
        connect_timeout_s: for one connection.
        idle_timeout_s: without a byte, before a transfer is given up and resumed.
        total_timeout_s: of one request, whatever comes.
        least_bytes_per_s: a server that sends less is given up: it holds the device up,
        rate_window_s: judged over so long.
        attempts: tries of one file before the agent turns to other work and comes back later.
        backoff_s: upper bound of the first wait; doubles; the wait is drawn from the whole range (full jitter).
        backoff_max_s: largest upper bound of a wait.
        inline_bytes: the server may put so many payload bytes into the answer to a poll.
    """

    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 30.0
    total_timeout_s: float = 3600.0
    least_bytes_per_s: float = 16.0
    rate_window_s: float = 60.0
    attempts: int = 8
    backoff_s: float = 0.5
    backoff_max_s: float = 300.0
    inline_bytes: int = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSettings:
    """When a new release is refused on the holdout samples.

    Attributes:
        alpha: refuse when so many losses would be rarer than this if old and new were equally good, and
        tolerance: the accuracy fell by more than this share of the samples.
        large_drop: refuse at such a fall of accuracy even where samples are too few for `alpha`,
        large_drop_samples: if at least so many samples were lost on balance.
        batch: samples per inference.
        latency_runs: timed inferences of one sample, old and new in turn.
        latency_budget_s: for these.
        min_samples: fewer compared samples prove nothing; then
        too_few: `accept` the release, marked as unproven, or `refuse` it.
        max_latency_ratio: of new to old 95th percentiles; None: not judged.
        max_memory_ratio: of new to old bytes of a loaded release; None: not judged.
        min_agreement: of old and new on inputs without labels; None: not judged.
    """

    alpha: float = 0.05
    tolerance: float = 0.01
    large_drop: float = 0.1
    large_drop_samples: int = 3
    batch: int = 64
    latency_runs: int = 30
    latency_budget_s: float = 60.0
    min_samples: int = 30
    too_few: str = "accept"
    max_latency_ratio: float | None = None
    max_memory_ratio: float | None = None
    min_agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutSettings:
    """How many labelled samples of one model are kept for applications that add them.

    Attributes:
        most_samples: of all classes together, and
        most_bytes: of their inputs.
    """

    most_samples: int = 2048
    most_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsSettings:
    """How a release's local statistics are computed from this device's inputs.

    Attributes:
        least: with fewer inputs the release is refused: its weights were trained for such statistics.
        most: of more inputs so many are used, evenly spread.
        timeout_s: of the process, before it is killed.
    """

    least: int = 64
    most: int = 256
    timeout_s: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """How a release that shares layers is watched in service (docs/sharing.md).

    Attributes:
        every: one request of so many, drawn at random, is compared with the release that it was made from; 0: none is.
        alpha: how likely it may be taken back although it keeps its budget, ever.
        idle_s: without a request to any model, before waiting requests are compared.
        patience_s: a device that is never idle compares what has waited so long all the same; None: it never does.
        rest_s: between two times of comparing: each loads the other release.
        most_requests: that wait, and
        most_bytes: of them; further ones are dropped.
    """

    every: int = 20
    alpha: float = 0.01
    idle_s: float = 2.0
    patience_s: float | None = 3600.0
    rest_s: float = 60.0
    most_requests: int = 64
    most_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """How this device works with the others of its site (docs/site.md).

    Attributes:
        listen: `host:port` on which the others reach it; port 0: any free one; None: they do not.
        address: `host:port` that they are told; None: that of `listen`.
        mdns: say on the local network where this device listens, and look there for devices that do not answer where
            the plan says; needs the extra `mdns`.
        heartbeat_s: so often a device whose modules are needed is asked whether it is there, less often on large sites,
        heartbeat_timeout_s: and without an answer for so long it is away.
        reach_s: for the others, before a plan is ready without some of those that hold the same.
        most_body_bytes: of one request between devices.
        most_connections: from other devices.
        most_waiting: requests to one module.
        most_rows: of a module's requests, along their first axis, that run in one go.
        most_requests: of applications, under way at once.
        hedge_share: of a task's steps that may be asked of a second device as well.
        report_s: between two reports of what was measured, where figures changed, and
        news_s: where some are there that were not before.
    """

    listen: str | None = None
    address: str | None = None
    mdns: bool = False
    heartbeat_s: float = 0.3
    heartbeat_timeout_s: float = 0.6
    reach_s: float = 30.0
    most_body_bytes: int = 64 << 20
    most_connections: int = 512
    most_waiting: int = 64
    most_rows: int = 32
    most_requests: int = 64
    hedge_share: float = 0.1
    report_s: float = 3600.0
    news_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """One agent.

    Attributes:
        folder: where everything of the device lies.
        holdouts: labelled samples by model name; a file, or a folder of files.
        unlabelled: inputs by model name, likewise; local statistics are computed from these and the holdout's.
        hooks: folder of executables named like states; None: no hooks.
        hook_timeout_s: before a hook is killed.
        port: of the loopback endpoint; 0: any free one; None: no endpoint, only `Agent.infer`.
        poll_interval_s: overrides the server's.
        trial_requests: served without an error, a release is healthy after so many requests,
        trial_s: or after so long, seconds.
        trial_error_limit: errors in the trial that send a release back.
        shadow_s: a new release answers so long in the shadow before its trial; 0: not at all, or
        shadow_requests: so many requests, whichever comes first.
        max_confidence_drop: of the mean top probability in shadow and trial; None: not judged.
        attempts: failures of one release on this device before it is not tried any more.
        rebuild_timeout_s: of the rebuild's process.
        space_margin_bytes: left free on the disk whatever an update needs.
    """

    folder: Path
    holdouts: Mapping[str, Path] = field(default_factory=dict)
    unlabelled: Mapping[str, Path] = field(default_factory=dict)
    hooks: Path | None = None
    hook_timeout_s: float = 60.0
    port: int | None = 0
    poll_interval_s: float | None = None
    trial_requests: int = 100
    trial_s: float = 5.0
    trial_error_limit: int = 1
    shadow_s: float = 0.0
    shadow_requests: int | None = None
    max_confidence_drop: float | None = None
    attempts: int = 3
    rebuild_timeout_s: float = 3600.0
    space_margin_bytes: int = 8 << 20
    link: LinkSettings = field(default_factory=LinkSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)
    kept: HoldoutSettings = field(default_factory=HoldoutSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    site: SiteSettings = field(default_factory=SiteSettings)

    def under(self, policy: DevicePolicy) -> "AgentSettings":
        """Return these settings with what a signed policy says in place of them."""
        validation = replace(
            self.validation,
            alpha=_said(policy.alpha, self.validation.alpha),
            tolerance=_said(policy.tolerance, self.validation.tolerance),
            min_samples=_said(policy.min_samples, self.validation.min_samples),
            too_few=_said(policy.too_few, self.validation.too_few),
            max_latency_ratio=_said(policy.max_latency_ratio, self.validation.max_latency_ratio),
            max_memory_ratio=_said(policy.max_memory_ratio, self.validation.max_memory_ratio),
            min_agreement=_said(policy.min_agreement, self.validation.min_agreement),
        )
        shadow_s = _said(policy.shadow_s, self.shadow_s)
        shadow_requests = _said(policy.shadow_requests, self.shadow_requests)
        return replace(
            self,
            validation=validation,
            trial_s=_said(policy.trial_s, self.trial_s),
            trial_requests=_said(policy.trial_requests, self.trial_requests),
            trial_error_limit=_said(policy.trial_errors, self.trial_error_limit),
            shadow_s=shadow_s or (_LONGEST_SHADOW_S if shadow_requests else 0.0),
            shadow_requests=shadow_requests,
            max_confidence_drop=_said(policy.max_confidence_drop, self.max_confidence_drop),
            attempts=_said(policy.attempts, self.attempts),
        )


def _said(said: T | None, own: T) -> T:
    return own if said is None else said
