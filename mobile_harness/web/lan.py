"""This machine on its local network: its address, and a certificate of its own making for it."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
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


def check_certificate(certificate: Path, key: Path) -> None:
    """Raise UserError when the PEM files are no certificate with its key."""
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"--cert {certificate} and --key {key} are no certificate with its key ({error}): name "
            "two PEM files, as mkcert or openssl write them"
        ) from error


def write_certificate(folder: Path, address: str) -> tuple[Path, Path]:
    """Write a self-signed certificate and its key (PEM, mode 0600), valid for 7 days."""
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
    paths = folder / "certificate.pem", folder / "key.pem"
    for path, content in zip(
        paths, (certificate.public_bytes(serialization.Encoding.PEM), private), strict=True
    ):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as handle:
            handle.write(content)
    return paths
