"""Settings of a running agent: frozen, units in the names, read once from the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from sprat_shared.trust.policy import DevicePolicy

T = TypeVar("T")


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
    """

    alpha: float = 0.05
    tolerance: float = 0.01
    large_drop: float = 0.1
    large_drop_samples: int = 3
    batch: int = 64
    latency_runs: int = 30


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
    attempts: int = 3
    rebuild_timeout_s: float = 3600.0
    space_margin_bytes: int = 8 << 20
    link: LinkSettings = field(default_factory=LinkSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)

    def under(self, policy: DevicePolicy) -> "AgentSettings":
        """Return these settings with what a signed policy says in place of them."""
        validation = replace(
            self.validation,
            alpha=_said(policy.alpha, self.validation.alpha),
            tolerance=_said(policy.tolerance, self.validation.tolerance),
        )
        return replace(
            self,
            validation=validation,
            trial_s=_said(policy.trial_s, self.trial_s),
            trial_requests=_said(policy.trial_requests, self.trial_requests),
            trial_error_limit=_said(policy.trial_errors, self.trial_error_limit),
            attempts=_said(policy.attempts, self.attempts),
        )


def _said(said: T | None, own: T) -> T:
    return own if said is None else said
