"""What an API key is, and what the guard asks of the place that keeps them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol
from uuid import uuid4

# One spelling only: a key that could be written in five ways could be revoked in one of them.
_SECRET = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Key:
    """Who is calling. The secret itself is not kept anywhere in the service."""

    id: str


class KeyStore(Protocol):
    async def find(self, digest: bytes) -> Key | None:
        """Whose key is this SHA-256 digest? None if it is nobody's, or no longer."""
        ...


def new_secret() -> str:
    """A UUID4: 122 bits from the operating system's random source."""
    return str(uuid4())


def digest(secret: bytes) -> bytes:
    """One SHA-256 is enough: at 122 random bits there is nothing for a slow hash to slow down."""
    return sha256(secret).digest()


def id_of(hashed: bytes) -> str:
    """What stands for a key where it must not be shown: the start of its digest in hex."""
    return hashed.hex()[:12]


def key_of(secret: str) -> Key:
    return Key(id=id_of(digest(secret.encode())))


def is_canonical(secret: str) -> bool:
    """Whether this is a lower-case UUID4 that came from a random source rather than a keyboard."""
    return bool(_SECRET.fullmatch(secret)) and len(set(secret)) > 6


def parse_secrets(text: str) -> list[str]:
    """The secrets in a comma-separated list.

    Raises ValueError for an entry that is not canonical; the message gives its place, not its text.
    """
    secrets = [entry.strip() for entry in text.split(",")] if text.strip() else []
    for place, secret in enumerate(secrets, start=1):
        if not is_canonical(secret):
            raise ValueError(f"entry {place} of {len(secrets)} is not a random lower-case UUID4")
    return secrets


def by_digest(secrets: Iterable[str]) -> dict[bytes, Key]:
    return {digest(secret.encode()): key_of(secret) for secret in secrets}
