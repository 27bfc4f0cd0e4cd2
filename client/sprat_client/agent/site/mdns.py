"""Hints by multicast DNS (RFC 6762, 6763): this device says where it listens, and hears of those that it looks for.

The name is `<device>._sprat-site._tcp.local.`. Anybody on the local network can say anything here; what that is worth,
`whereabouts` decides. Kept is little of it: a few addresses of each device that is looked for just now.
"""

import itertools
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import Final
from uuid import UUID

import ifaddr
from zeroconf import (
    DNSAddress,
    DNSOutgoing,
    DNSQuestion,
    DNSRecord,
    DNSService,
    Error,
    RecordUpdate,
    RecordUpdateListener,
    ServiceInfo,
    Zeroconf,
)

from sprat_client.agent.site.whereabouts import Hint

_log = logging.getLogger(__name__)
_TYPE: Final = "_sprat-site._tcp.local."
_QUERY, _SRV, _IN = 0, 33, 1  # RFC 1035, RFC 2782
_LOOK_S: Final = 5.0  # at this device's own addresses
_LAPSE_S: Final = 10.0  # a device that nobody asked for in so long is not looked for any more
_FIRST_ASK_S: Final = 1.0  # between two questions; doubles
_LONGEST_ASK_S: Final = 30.0
_MOST_HINTS: Final = 4  # of one device: the newest
_CLOSE_S: Final = 5.0

Interface = IPv4Interface | IPv6Interface


@dataclass(slots=True)
class _Wanted:
    """A device that does not answer: until when it is looked for, when others are asked next, what was heard."""

    until: float
    ask_at: float
    ask_every_s: float = _FIRST_ASK_S
    hints: dict[tuple[str, int], int] = field(default_factory=dict)  # -> number of the hint, rising


class MdnsHints:
    """Says where this device is, and hears where others are, in a thread of its own, until it is closed.

    Args:
        device: this one.
        bound: where it listens, an IP address and a port; None: it does not, and only hears.
    """

    def __init__(self, device: UUID, bound: tuple[str, int] | None) -> None:
        self._device, self._bound = device, bound
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._wanted: dict[str, _Wanted] = {}  # by name of the service
        self._numbers = itertools.count()
        self._announcing = self._closing = False
        self._here: tuple[Interface, ...] = ()
        self._zeroconf: Zeroconf | None = None
        self._info: ServiceInfo | None = None
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name="site-mdns", daemon=True)
        self._thread.start()

    def announce(self) -> None:
        """Say, soon, where this device listens; again where it was said before."""
        self._announcing = True
        self._wake.set()

    def of(self, device: UUID) -> Sequence[Hint]:
        """Return a few hints of a device that does not answer, and let others be asked for more; never waits."""
        now, name = time.monotonic(), _name(device)
        with self._lock:
            wanted = self._wanted.get(name)
            if wanted is None:
                wanted = self._wanted[name] = _Wanted(now + _LAPSE_S, now)
                self._wake.set()
            wanted.until = now + _LAPSE_S
            return [Hint(host, port, number) for (host, port), number in wanted.hints.items()]

    def close(self) -> None:
        """Say that this device is gone, and hear no more."""
        self._closing = True
        self._wake.set()
        self._thread.join(_CLOSE_S)

    # in its thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            try:
                self._turn()
            except (OSError, RuntimeError, Error) as bad:  # no network, or it changes just now
                self._stop()
                self._complain(f"{bad!r:.200}")
            except Exception:  # noqa: BLE001  # a bug here must not end the thread
                self._stop()
                _log.exception("devices of the site cannot be looked for by mDNS")
            else:
                self._trouble = ""
            self._wake.wait(self._rest_s())
            self._wake.clear()
        self._stop()

    def _turn(self) -> None:
        names, here = self._due(), tuple(self._interfaces())
        if here != self._here:
            self._stop()
            self._start(here)
        if self._zeroconf is None:
            return
        if self._announcing and self._bound is not None:
            self._announcing = False
            self._say(self._zeroconf, self._bound[1])
        if names:
            query = DNSOutgoing(_QUERY)
            for name in names:
                query.add_question(DNSQuestion(name, _SRV, _IN))
            self._zeroconf.send(query)

    def _start(self, here: tuple[Interface, ...]) -> None:
        if here:
            self._zeroconf = Zeroconf(interfaces=[str(one.ip) for one in here], use_asyncio=False)
            self._zeroconf.add_listener(_Listener(self), None)
        self._here = here

    def _stop(self) -> None:
        zeroconf, self._zeroconf = self._zeroconf, None
        self._announcing = self._announcing or self._info is not None
        self._info, self._here = None, ()
        if zeroconf is not None:
            try:
                zeroconf.close()
            except (OSError, RuntimeError, Error) as bad:
                self._complain(f"{bad!r:.200}")

    def _say(self, zeroconf: Zeroconf, port: int) -> None:
        again = self._info is not None
        self._info = ServiceInfo(
            _TYPE,
            _name(self._device),
            port=port,
            server=f"{self._device}.local.",
            addresses=[one.ip.packed for one in self._here],
        )
        if again:
            zeroconf.update_service(self._info)
        else:  # a stranger that has the name already must not keep this device from saying where it is
            zeroconf.register_service(self._info, cooperating_responders=True)

    def _due(self) -> list[str]:
        """Return the names to ask for now; forget those that nobody looks for any more."""
        now = time.monotonic()
        with self._lock:
            self._wanted = {name: one for name, one in self._wanted.items() if one.until > now}
            due = [name for name, one in self._wanted.items() if one.ask_at <= now]
            for name in due:
                wanted = self._wanted[name]
                wanted.ask_at = now + wanted.ask_every_s
                wanted.ask_every_s = min(_LONGEST_ASK_S, 2 * wanted.ask_every_s)
        return due

    def _rest_s(self) -> float:
        now = time.monotonic()
        with self._lock:
            return max(0.0, min([now + _LOOK_S, *(one.ask_at for one in self._wanted.values())]) - now)

    def _interfaces(self) -> list[Interface]:
        """Return where this device is reached: the address that it listens on, or all, with their networks."""
        found = [
            ip_interface(f"{ip.ip if ip.is_IPv4 else ip.ip[0].partition('%')[0]}/{ip.network_prefix}")
            for adapter in ifaddr.get_adapters()
            for ip in adapter.ips
        ]
        bound = ip_address("0.0.0.0" if self._bound is None else self._bound[0])  # noqa: S104 - recognised
        if not bound.is_unspecified:
            return [one for one in found if one.ip == bound]
        usable = [one for one in found if bound.version >= one.version and not one.ip.is_loopback]
        scoped = [one for one in usable if isinstance(one, IPv6Interface) and one.ip.is_link_local]  # not connected to
        return sorted((one for one in usable if one not in scoped), key=str)

    def _complain(self, detail: str) -> None:
        if detail != self._trouble:
            _log.warning("devices of the site cannot be looked for by mDNS just now", extra={"detail": detail})
        self._trouble = detail

    # in the thread of zeroconf ----------------------------------------------------------------------------------------

    def hear(self, records: Sequence[DNSRecord]) -> None:
        """Take hints out of one packet."""
        services = [one for one in records if isinstance(one, DNSService) and one.key in self._wanted]
        for service in services[:_MOST_HINTS]:
            for one in records:
                if isinstance(one, DNSAddress) and one.key == service.server_key:
                    self._hear(service.key, ip_address(one.address), service.port)

    def _hear(self, name: str, address: IPv4Address | IPv6Address, port: int) -> None:
        if not port or not any(address in one.network for one in self._here):
            return  # of no network that this device is in: no stranger has it ask the world
        with self._lock:
            if (wanted := self._wanted.get(name)) is None:
                return
            where = str(address), port
            wanted.hints.pop(where, None)
            wanted.hints[where] = next(self._numbers)
            if len(wanted.hints) > _MOST_HINTS:
                del wanted.hints[next(iter(wanted.hints))]

    def own(self) -> frozenset[DNSRecord]:
        """Return what this device announces."""
        if (info := self._info) is None:
            return frozenset()
        return frozenset({info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()})


class _Listener(RecordUpdateListener):
    """Passes on what is heard, and leaves nothing of it in zeroconf's cache, which takes 10,000 records of any size."""

    def __init__(self, hints: MdnsHints) -> None:
        super().__init__()
        self._hints = hints
        self._zeroconf: Zeroconf | None = None
        self._passing: list[DNSRecord] = []

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Take the records of one packet, or those whose time is over."""
        self._zeroconf = zc
        told = [one.new for one in records]
        self._hints.hear([one for one in told if one.ttl and not one.is_expired(now)])
        # Its own it keeps: by these zeroconf knows what it has said just now, and says it no more than once a second.
        own = self._hints.own()
        self._passing = [one for one in told if one not in own]

    def async_update_records_complete(self) -> None:
        """Forget them: they are in the cache now."""
        if self._zeroconf is not None:
            cache = self._zeroconf.cache
            cache.async_remove_records([one for one in self._passing if cache.get(one) is not None])
        self._passing = []


def _name(device: UUID) -> str:
    return f"{device}.{_TYPE}"
