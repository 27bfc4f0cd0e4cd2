"""The one place where routers are listed: what the operators' API, the devices' API and the root path serve."""

from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter

from sprat_server.api import access, blobs, health, jobs

OPERATORS: Final[Sequence[APIRouter]] = (access.router, blobs.operators, jobs.router)
"""Below /api/v1."""

DEVICES: Final[Sequence[APIRouter]] = ()
"""Below /device/v1."""

ROOT: Final[Sequence[APIRouter]] = (health.router, blobs.everyone)
"""With paths of their own."""
