"""The authority of one plan of a site: it certifies the members' enrolled keys once, and its key is never stored.

Standard X.509 (RFC 5280) with ed25519 (RFC 8410), so that TLS 1.3 of any library checks it: a self-signed authority
that can sign no further ones, and for each member a certificate for both ends of a connection, whose subject is the
device's id and whose name, the one that is connected to, is that of the plan. What it signed opens nothing of another
plan: that has another authority.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_BEGINS: Final = datetime(1970, 1, 1, tzinfo=UTC)  # clocks of devices may be wrong


@dataclass(frozen=True, slots=True)
class Certified:
    """What the authority of a plan made before its key was thrown away.

    Attributes:
        authority: its certificate, DER.
        members: device -> certificate, DER.
    """

    authority: bytes
    members: Mapping[UUID, bytes]


def certify(title: str, server_name: str, keys: Iterable[tuple[UUID, bytes]], *, until: datetime) -> Certified:
    """Make an authority, certify members' keys, and forget the authority's own.

    Args:
        title: of the plan, `site/number`.
        server_name: that members ask for in TLS.
        keys: (device, ed25519 public key, 32 bytes).
        until: when all of it ends; whole seconds.
    """
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"plan {title}"[:64])])
    authority = (
        _begun(name, name, key.public_key(), until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )
    members = {
        device: _member(key, name, device, Ed25519PublicKey.from_public_bytes(raw), server_name, until)
        for device, raw in keys
    }
    return Certified(authority.public_bytes(Encoding.DER), members)


def _member(  # noqa: PLR0917 - all that a certificate says
    key: Ed25519PrivateKey, issuer: x509.Name, device: UUID, public: Ed25519PublicKey, dns: str, until: datetime
) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(device))])
    both_ends = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    issued = (
        _begun(subject, issuer, public, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(both_ends, critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return issued.sign(key, None).public_bytes(Encoding.DER)


def _begun(subject: x509.Name, issuer: x509.Name, public: Ed25519PublicKey, until: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGINS)
        .not_valid_after(until)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
