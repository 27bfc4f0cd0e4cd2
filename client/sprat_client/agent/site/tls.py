"""TLS between the members of one plan: each shows the certificate that the plan holds for it, and trusts no other.

Time is not checked here: a device's clock may be wrong. A certificate lives as long as its plan, whose end is held
against signed time with every request.
"""

import base64
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sprat_shared.protocol.site_plan import Member, SitePlan

_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME


def server_context(plan: SitePlan, own: Member, key_file: Path) -> ssl.SSLContext:
    """Return the context by which this device answers the others of a plan.

    Args:
        plan: it.
        own: this device.
        key_file: its private key, PEM.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER, plan, own, key_file)


def client_context(plan: SitePlan, own: Member, key_file: Path) -> ssl.SSLContext:
    """Return the context by which this device asks the others of a plan; as `server_context`."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, plan, own, key_file)


def choosing_context(choose: Callable[[str], ssl.SSLContext | None]) -> ssl.SSLContext:
    """Return the context of a listener, which has no certificate of its own.

    Args:
        choose: returns the context of the plan by whose name (`SitePlan.server_name`) a connection is opened; None:
            none is of that name, and the connection is refused.
    """

    def chosen(sock: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        context = choose(name or "")
        if context is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        sock.context = context
        return None

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _be_strict(context)  # a connection keeps these of the listener's context; of the chosen one it takes the rest
    context.sni_callback = chosen
    return context


def _context(protocol: int, plan: SitePlan, own: Member, key_file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    _be_strict(context)
    context.load_verify_locations(cadata=plan.authority)
    with _as_file(_pem(own.certificate)) as certificate:
        context.load_cert_chain(certificate, key_file)
    return context


def _be_strict(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # more is checked: that the certificate is the very one of the member
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | _NO_CHECK_TIME)
    if context.protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nothing is resumed under another plan


def _pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """Yield the name of a file in memory: OpenSSL reads certificates from files alone."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
