"""This machine on its local network: its address, and a certificate of its own making for it."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pocketfocus.run.errors import UserError

ANYWHERE = ("203.0.113.1", 9)  # RFC 5737: no such host; connecting a UDP socket sends nothing
VALID = timedelta(days=7)


def lan_address() -> str:
    """Return the IPv4 address at which the network reaches this machine; UserError if none."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(ANYWHERE)
            address = str(probe.getsockname()[0])
    except OSError as error:
        raise UserError(
            f"this machine is on no network ({error.strerror}): join the phone's Wi-Fi, or leave "
            "--lan out"
        ) from error
    if ipaddress.ip_address(address).is_loopback:
        raise UserError("this machine is on no network: join the phone's Wi-Fi, or leave --lan out")
    return address


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return how a server encrypts; UserError for PEM files that are no certificate with key."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"--cert {certificate} and --key {key} are no certificate with its key ({error}): name "
            "two PEM files, as mkcert or openssl write them"
        ) from error
    return context


def make_certificate(address: str) -> tuple[bytes, bytes]:
    """Return a self-signed certificate and its key (PEM), valid for 7 days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pocketfocus serve")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + VALID)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private


def own_context(address: str) -> ssl.SSLContext:
    """Return how a server encrypts with a certificate of its own.

    The library reads nothing but files: these have no name in any folder, so that nothing is left
    of them, however this process ends.
    """
    with tempfile.TemporaryFile() as certificate, tempfile.TemporaryFile() as key:
        for handle, content in zip((certificate, key), make_certificate(address), strict=True):
            handle.write(content)
            handle.flush()
            handle.seek(0)  # macOS goes on reading where the handle is
        return tls_context(*(Path(f"/dev/fd/{each.fileno()}") for each in (certificate, key)))
