"""One-time tokens: how a new peer finds this node, knows it is the right one, and proves that it was invited.

The token is one word a person can copy: "fs1." + base64url of msgpack [address, port, node name, fingerprint of our
certificate, id, secret, expiry] + 4 bytes of SHA-256 against slips of the pen. Who has it may become a peer once, until
it expires; so it travels as a password would. STATE/tokens.json holds id, secret and expiry of those not yet used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgpack

from replicator.core.errors import AuthError, BadInput
from replicator.daemon.durablefile import read_json, write_json

PREFIX = "fs1."
SECRET_BYTES = 32
DEFAULT_LIFE_S = 3600.0
MAX_LIFE_S = 30 * 86400.0
MAX_OPEN = 100


@dataclass(frozen=True)
class Token:
    """A decoded token."""

    address: str
    port: int
    name: str
    fingerprint: bytes
    id: str
    secret: bytes
    expires: float
    """Seconds since 1970, by the issuer's clock."""

    def encode(self) -> str:
        """Return the word."""
        fields = [self.address, self.port, self.name, self.fingerprint, self.id, self.secret, self.expires]
        body = msgpack.packb(fields)
        return PREFIX + base64.urlsafe_b64encode(body + _check(body)).rstrip(b"=").decode()


def _check(body: bytes) -> bytes:
    return hashlib.sha256(b"farstripe token" + body).digest()[:4]


def decode(word: str) -> Token:
    """Decode a token. Raises BadInput that says what is wrong with it; does not look at the expiry."""
    word = "".join(word.split())
    if not word.startswith(PREFIX):
        raise BadInput(
            "this is not a farstripe token", f"a token begins with {PREFIX!r}; 'farstripe peer token' makes one"
        )
    damaged = BadInput("the token is damaged", "copy it again, all of it")
    try:
        text = word[len(PREFIX) :].encode("ascii")
        raw = base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error, UnicodeEncodeError):
        raise damaged from None
    body, check = raw[:-4], raw[-4:]
    spelled_so = base64.urlsafe_b64encode(raw).rstrip(b"=") == text  # the last letter may hold bits that say nothing
    if len(raw) > 4096 or check != _check(body) or not spelled_so:
        raise damaged
    try:
        address, port, name, fingerprint, token_id, secret, expires = msgpack.unpackb(body)
        ok = isinstance(address, str) and isinstance(name, str) and isinstance(token_id, str)
        ok = ok and isinstance(port, int) and 1 <= port <= 65535 and isinstance(expires, float)
        ok = ok and isinstance(fingerprint, bytes) and len(fingerprint) == 32
        ok = ok and isinstance(secret, bytes) and len(secret) == SECRET_BYTES
    except (ValueError, TypeError, msgpack.UnpackException):
        raise damaged from None
    if not ok:
        raise damaged
    return Token(address, port, name, fingerprint, token_id, secret, expires)


class TokenStore:
    """The tokens this node has issued and nobody has used yet; thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._open: dict[str, dict[str, object]] = read_json(path)
        except FileNotFoundError:
            self._open = {}

    def issue(self, address: str, port: int, name: str, fingerprint: bytes, life_s: float, now: float) -> Token:
        """Make a token that is good for `life_s` seconds from `now` (since 1970). Durable: the token.

        Raises BadInput for a life out of range or when too many tokens are open.
        """
        if not 1 <= life_s <= MAX_LIFE_S:
            raise BadInput(f"a token lives 1 to {MAX_LIFE_S:.0f} seconds, not {life_s:g}")
        token = Token(
            address, port, name, fingerprint, secrets.token_hex(8), secrets.token_bytes(SECRET_BYTES), now + life_s
        )
        with self._lock:
            still = {key: entry for key, entry in self._open.items() if _expiry(entry) > now}
            if len(still) >= MAX_OPEN:
                raise BadInput(f"{MAX_OPEN} tokens are open already", "wait until some expire")
            still[token.id] = {"secret": token.secret.hex(), "expires": token.expires}
            write_json(self._path, still)
            self._open = still
        return token

    def secret_of(self, token_id: str, now: float | None = None) -> bytes:
        """Return the secret of an open token. Raises AuthError: unknown (or used), or expired."""
        with self._lock:
            entry = self._open.get(token_id)
        if entry is None:
            raise AuthError("the token is not known here, or was used already", "make a new one: farstripe peer token")
        if _expiry(entry) <= (time.time() if now is None else now):
            raise AuthError("the token has expired", "make a new one: farstripe peer token")
        return bytes.fromhex(str(entry["secret"]))

    def consume(self, token_id: str) -> None:
        """Use the token up. Durable: it can never be used again. Raises AuthError when another was faster."""
        with self._lock:
            if token_id not in self._open:
                raise AuthError("the token was used already", "make a new one: farstripe peer token")
            rest = {key: entry for key, entry in self._open.items() if key != token_id}
            write_json(self._path, rest)
            self._open = rest


def _expiry(entry: dict[str, object]) -> float:
    return float(str(entry["expires"]))
