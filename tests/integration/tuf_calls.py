"""python-tuf's own client over the application's routes: an independent judge of what is signed."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from fleet_calls import TestDevice
from http_calls import Api
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig


class OverHttp(FetcherInterface):
    """python-tuf's fetcher port over the application's own routes."""

    def __init__(self, api: Api) -> None:
        super().__init__()
        self.api = api

    def _fetch(self, url: str) -> Iterator[bytes]:
        answer = self.api.get(urlsplit(url).path)
        if answer.status_code != 200:
            raise DownloadHTTPError(answer.text, answer.status_code)
        yield answer.content


def directed(device: TestDevice, folder: Path) -> Updater:
    """Return a client of the director that trusts the root which the device got when it joined."""
    folder.mkdir(exist_ok=True)
    return Updater(
        str(folder),
        "http://sprat.test/tuf/director/",
        fetcher=OverHttp(device.api),
        config=UpdaterConfig(prefix_targets_with_hash=False),
        bootstrap=device.answer.director_root,
    )
