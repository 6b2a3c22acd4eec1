"""Who this node is to its peers: an ECDSA P-256 key and a self-signed certificate, made at the first start.

Peers pin the certificate itself (SHA-256 of its DER form), so its dates and names carry no trust; it is valid for ever,
and a node that loses its key is a new peer.
"""

from __future__ import annotations

import datetime
import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from replicator.core.errors import IntegrityError
from replicator.daemon.durablefile import write_bytes


@dataclass(frozen=True)
class Identity:
    """Paths of key and certificate, and the certificate itself."""

    key_path: Path
    cert_path: Path
    cert_pem: str
    fingerprint: bytes
    """SHA-256 of the DER certificate, 32 bytes."""


def fingerprint_of(der: bytes) -> bytes:
    """Return the 32-byte fingerprint of a DER certificate."""
    return hashlib.sha256(der).digest()


def check_cert(pem: object) -> tuple[str, bytes]:
    """Return (normalised PEM, fingerprint) of a certificate from a peer. Raises ValueError for anything else."""
    if not isinstance(pem, str) or len(pem) > 8192:
        raise ValueError("not a certificate")
    cert = x509.load_pem_x509_certificate(pem.encode())
    if not isinstance(cert.public_key(), ec.EllipticCurvePublicKey):
        raise ValueError("not an elliptic-curve certificate")
    der = cert.public_bytes(serialization.Encoding.DER)
    return cert.public_bytes(serialization.Encoding.PEM).decode(), fingerprint_of(der)


def load_or_create(keys_dir: Path, node_id: str) -> Identity:
    """Return this node's identity, made in `keys_dir` when there is none. Raises IntegrityError when it is damaged.

    Durable: key and certificate, before anybody is told of them.
    """
    keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_path, cert_path = keys_dir / "node.key", keys_dir / "node.crt"
    if not (key_path.exists() and cert_path.exists()):
        key_pem, cert_pem = _make(node_id)
        write_bytes(key_path, key_pem)
        write_bytes(cert_path, cert_pem)
    try:
        pem = cert_path.read_text()
        der = ssl.PEM_cert_to_DER_cert(pem)
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        cert = x509.load_der_x509_certificate(der)
        if _point(key.public_key()) != _point(cert.public_key()):
            raise ValueError("key and certificate do not belong together")
    except (ValueError, TypeError, UnicodeDecodeError) as exc:
        raise IntegrityError(
            f"the node's key in {keys_dir} is damaged: {exc}",
            "restore it, or remove the folder and join every peer again",
        ) from exc
    return Identity(key_path, cert_path, pem, fingerprint_of(der))


def _point(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("not an elliptic-curve key")
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def _make(node_id: str) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"farstripe {node_id}")])
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2000, 1, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem, cert.public_bytes(serialization.Encoding.PEM)
