"""What routes are handed besides their transaction: the blob store and the settings."""

from typing import Annotated

from fastapi import Depends, Request

from sprat_server.db.blobs import Blobs
from sprat_server.settings import Settings


def _blobs(request: Request) -> Blobs:
    blobs: Blobs = request.app.state.blobs
    return blobs


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


BlobsDep = Annotated[Blobs, Depends(_blobs)]
SettingsDep = Annotated[Settings, Depends(_settings)]
