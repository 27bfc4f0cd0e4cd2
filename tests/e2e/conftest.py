"""One server on loopback, shared by the tests that one process runs."""

from collections.abc import Iterator

import pytest
from demo.shell import Shell
from house import House, make_server


@pytest.fixture(scope="package")  # not the session: its server would run beside all that follows
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    with make_server(folder) as server:
        yield House(folder, server, Shell(server.url, server.admin_token))
