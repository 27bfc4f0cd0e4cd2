"""Settings of the server: read once, frozen, units in names. Each is an environment variable `SPRAT_<NAME>`."""

import difflib
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sprat_shared.errors import InvalidInput

PREFIX: Final = "SPRAT_"

# Variables that other programs of sprat read, or that an agent hands to its hooks: not ours, and not a typo.
NOT_OURS: Final = frozenset(
    f"SPRAT_{name}"
    for name in (
        "CONFIG",
        "DB_PASSWORD",
        "ENROLMENT_TOKEN",
        "MODEL",
        "PROFILE",
        "PROJECT",
        "RELEASE",
        "SERVER",
        "STATE",
        "TOKEN",
    )
)

Grant = Annotated[str, Field(pattern=r"^(?:viewer|operator|releaser|admin)(?:@[a-z0-9-]{1,63})?$")]


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
    database_url: str | None = Field(default=None, repr=False)  # it may hold a password
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
    tls_cert: Path | None = None
    """Certificate and chain (PEM) to serve HTTPS with; needs tls_key."""
    tls_key: Path | None = None
    """The certificate's private key (PEM)."""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses or networks, separated by commas, whose X-Forwarded-For and -Proto are believed; else nobody's are."""

    auth_failures_per_minute: int = Field(default=300, ge=1)
    """So many failures of one address, and a tenth of them with one token's id, lock it out for a minute."""
    oidc_issuer: str | None = None
    """URL of an OpenID Connect issuer whose tokens operators may show; https, or http on loopback."""
    oidc_audience: str | None = None
    """What the tokens' `aud` must name."""
    oidc_claim: str = "groups"
    """The claim that gives scopes: a list of texts, or one text of words."""
    oidc_scopes: Annotated[Mapping[str, Grant], NoDecode] = {}
    """What the claim's values give, as in `sprat-admins=admin,line-3=operator@line-3`: a scope in the whole server, or
    in one project; the highest holds."""

    auto_sign: str | None = Field(default=None, pattern=r"^(?:none|\*|[a-z0-9-]{1,63}\*)$")
    """Models whose releases the server signs by itself: `*`, or a prefix of names as in `lab-*`, or `none`.
    Unset: all with the private PostgreSQL of `up`, none with another database."""
    webhook_private: bool = False
    """Webhooks may go to addresses of private networks, and over plain HTTP."""
    event_streams: int = Field(default=200, ge=1)
    """So many callers may follow events at once, over one process."""
    poll_interval_s: float = Field(default=60.0, gt=0)
    """How often a device asks; told to it at enrolment."""
    clock_interval_s: float = Field(default=30.0, gt=0, le=60.0)
    """How often the server looks at what rollouts and sites do by the clock: starts, windows, retries, silence."""
    device_token_s: float = Field(default=3600.0, gt=0, le=86400.0)
    """How long the token lives that a device gets for proving that it holds its key."""
    enrolment_queue: int = Field(default=100, ge=0)
    """So many devices without a token may wait for an operator's word; 0: none."""
    enrolment_queue_per_address: int = Field(default=20, ge=1)
    """Of them, from one address."""
    enrolment_queue_s: float = Field(default=86400.0, gt=0)
    """How long a device waits, or stays rejected."""
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

    @field_validator("recipe_packages", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _parts(value) if isinstance(value, str) else value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            ipaddress.ip_network(each)
        return value

    @field_validator("oidc_scopes", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.rpartition("=") for part in _parts(value)]
        if not all(name and equals for name, equals, _ in pairs):
            raise ValueError("write value=scope, separated by commas")
        return {name: scope for name, _, scope in pairs}

    @field_validator("oidc_issuer")
    @classmethod
    def _safe_issuer(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
                raise ValueError("keys that come over plain HTTP can be anybody's; write https://")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("SPRAT_TLS_CERT and SPRAT_TLS_KEY go together")
        if self.oidc_issuer is not None and not (self.oidc_audience and self.oidc_scopes):
            raise ValueError("SPRAT_OIDC_ISSUER needs SPRAT_OIDC_AUDIENCE and SPRAT_OIDC_SCOPES")
        return self

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


def is_loopback(host: str) -> bool:
    """Return whether a host name or address never leaves this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


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
            if item["loc"]
            else item["msg"].removeprefix("Value error, ")  # of several settings: all of them would be shown
            for item in e.errors(include_url=False)
        )
        raise InvalidInput(f"settings cannot be used: {problems}") from None
