"""The one place where routers are listed: what the operators' API, the devices' API and the root path serve."""

from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter

from sprat_server.api import (
    access,
    agents,
    blobs,
    bundles,
    datasets,
    devices,
    drift,
    events,
    groups,
    health,
    jobs,
    keys,
    models,
    placements,
    policies,
    projects,
    rollouts,
    savings,
    sharing,
    sites,
    tasks,
    webhooks,
)

OPERATORS: Final[Sequence[APIRouter]] = (
    access.router,
    blobs.operators,
    bundles.router,
    datasets.router,
    devices.router,
    drift.router,
    groups.router,
    events.router,
    jobs.router,
    keys.router,
    models.router,
    placements.router,
    policies.router,
    projects.router,
    rollouts.router,
    savings.router,
    sharing.router,
    sites.router,
    tasks.router,
    webhooks.router,
)
"""Below /api/v1."""

DEVICES: Final[Sequence[APIRouter]] = (agents.devices,)
"""Below /device/v1."""

ROOT: Final[Sequence[APIRouter]] = (health.router, blobs.everyone, agents.everyone)
"""With paths of their own."""
