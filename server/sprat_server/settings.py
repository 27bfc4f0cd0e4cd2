"""Settings of the server: read once, frozen, units in names. Each is an environment variable `SPRAT_<NAME>`."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sprat_shared.errors import InvalidInput

PREFIX: Final = "SPRAT_"

# Variables that other programs of sprat read, or that an agent hands to its hooks: not ours, and not a typo.
NOT_OURS: Final = frozenset(
    f"SPRAT_{name}"
    for name in ("CONFIG", "DB_PASSWORD", "ENROLMENT_TOKEN", "MODEL", "RELEASE", "SERVER", "STATE", "TOKEN")
)


def default_data_dir() -> Path:
    """Where the server keeps its data unless told: /var/lib/sprat for root, else below the home folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/sprat")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "sprat"


class Settings(BaseSettings):
    """All settings of `sprat-server`. Frozen; make one with `load_settings` so that a typo is an error."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    data_dir: Path = Field(default_factory=default_data_dir)
    """Keys, the embedded PostgreSQL and, unless blob_url says otherwise, the blobs."""
    database_url: str | None = None
    """postgresql://…; None: `up` starts a private PostgreSQL in the data folder."""
    postgres_user: str | None = None
    """The system user that the private PostgreSQL runs as when sprat-server is run by root."""
    blob_url: str | None = None
    """A folder, file:///…, or s3://bucket/prefix; None: `blobs` in the data folder."""

    host: str = "127.0.0.1"
    port: int = Field(default=8470, ge=0, le=65535)
    """0 takes a free port, which is printed."""
    insecure: bool = False
    """Allows plain HTTP on an address that is not loopback (behind a proxy that ends TLS)."""

    auto_sign: str | None = Field(default=None, pattern=r"^(?:none|\*|[a-z0-9-]{1,63}\*)$")
    """Models whose releases the server signs by itself: `*`, or a prefix of names as in `lab-*`, or `none`.
    Unset: all with the private PostgreSQL of `up`, none with another database."""
    poll_interval_s: float = Field(default=60.0, gt=0)
    """How often a device asks; told to it at enrolment."""
    recipe_packages: Annotated[tuple[str, ...], NoDecode] = ()
    """Packages, separated by commas, that recipes may come from. Their code runs in the worker."""
    max_blob_bytes: int = Field(default=2 << 30, gt=0)
    """The largest upload that is taken."""
    max_body_bytes: int = Field(default=1 << 20, gt=0)
    """The largest body of any other request."""

    db_pool_size: int = Field(default=10, ge=1)
    db_statement_timeout_s: float = Field(default=30.0, gt=0)
    """After this a statement of a request is given up."""
    worker_heartbeat_s: float = Field(default=3.0, gt=0)
    """How often a worker says that it lives."""
    worker_lost_after_s: float = Field(default=15.0, gt=0)
    """A worker silent for so long is taken for dead and its jobs are given to the next."""
    worker_stop_grace_s: float = Field(default=20.0, ge=0)
    """How long a worker that is told to stop waits for its job to reach a good place; the job is done again later."""
    job_max_setbacks: int = Field(default=3, ge=1)
    """So many times a worker may die over one job before it is failed."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """auto: console on a terminal, else one JSON object a line."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("recipe_packages", mode="before")
    @classmethod
    def _split_packages(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def blobs(self) -> str:
        """The blob URL in effect: blob_url, or the folder `blobs` in the data folder."""
        return self.blob_url or str(self.data_dir / "blobs")

    def signs_alone(self, model: str) -> bool:
        """Tell whether the server may sign releases of this model by itself, with the key `auto`."""
        allowed = self.auto_sign or ("*" if self.database_url is None else "none")
        return allowed != "none" and model.startswith(allowed.removesuffix("*"))

    @property
    def keys_dir(self) -> Path:
        """Where the signing keys lie (files 0600)."""
        return self.data_dir / "keys"


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment; keyword arguments (command line options) win over it.

    Args:
        overrides: values that replace the environment's; None means "not given".

    Raises:
        InvalidInput: a `SPRAT_` variable is unknown (the message names it and the nearest known one), or a value
            cannot be used (the message names the variable and why).
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known | NOT_OURS:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise InvalidInput(f"environment variable {name} is not a setting of sprat-server; {advice}")
    values = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**values)
    except ValidationError as e:
        problems = "; ".join(
            f"{PREFIX}{'.'.join(map(str, item['loc'])).upper()}: {item['msg']} (got {item['input']!r})"
            for item in e.errors(include_url=False)
        )
        raise InvalidInput(f"settings cannot be used: {problems}") from None
