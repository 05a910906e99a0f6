"""The API key: its name, its scopes, and the spellings of its secret."""

import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final
from urllib.parse import unquote
from uuid import UUID, uuid4
from weakref import WeakSet
from zlib import crc32

# The canonical spelling is a lower-case UUID4. Only this one is hashed, so a revocation covers
# every spelling of a key.
_SECRET = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
# The prefixed spelling, which people and scanners recognize: a prefix, the UUID's 16 bytes in base
# 62, and a CRC-32 of both.
_PREFIXED = re.compile(r"([a-z][a-z0-9]{0,15}_)([0-9A-Za-z]{22})([0-9A-Za-z]{6})")
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
# Either spelling inside other text.
_IN_TEXT = re.compile(
    rf"{_SECRET.pattern}|(?<![0-9a-z]){_PREFIXED.pattern}(?![0-9a-z])", re.IGNORECASE
)
# Where an imported key may stand, and where one may begin or end in it.
_VISIBLE = re.compile(r"[!-~]{16,}")
_EDGE = re.compile(r"(?<![0-9A-Za-z])|(?![0-9A-Za-z])")
# Also where two overlap, or a secret follows other letters.
_ANYWHERE = re.compile(rf"(?=({_SECRET.pattern}|{_PREFIXED.pattern}))", re.IGNORECASE)

PREFIX_PATTERN: Final = r"^([a-z][a-z0-9]{0,15})?$"
SCOPE_PATTERN: Final = r"^(\*|[a-z0-9._-]+(:[a-z0-9._-]+)*(:\*)?)$"
_SCOPE = re.compile(SCOPE_PATTERN)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Key:
    """A key and its rights, without its secret. No part of the service keeps the secret."""

    id: str
    name: str
    scopes: frozenset[str]
    # Further bounds, by the name of the policy that enforces them: {"limits": ("9/hour",)}.
    restrictions: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    owner: str = ""  # a name that the service's own records know; "" for none

    def covers(self, scope: str) -> bool:
        """Whether the key has this scope or a wildcard that includes it: `reports:*`, `*`."""
        return scope in self.scopes or any(
            held == "*" or (held.endswith(":*") and scope.startswith(held[:-1]))
            for held in self.scopes
        )

    def lacks(self, scopes: Iterable[str]) -> str | None:
        """Return the first of these scopes that the key does not cover."""
        return next((scope for scope in scopes if not self.covers(scope)), None)


def new_secret() -> str:
    """Return a UUID4: 122 bits from the operating system's random source."""
    return str(uuid4())


def digest(secret: bytes) -> bytes:
    """SHA-256. Nobody can guess 122 random bits, so a slow hash would protect nothing more."""
    return sha256(secret).digest()


def id_of(hashed: bytes) -> str:
    """Return an id that is safe to show: the first 12 hex digits of the digest."""
    return hashed.hex()[:12]


def is_canonical(secret: str) -> bool:
    """Whether this is a lower-case UUID4 with enough different digits to be random."""
    return bool(_SECRET.fullmatch(secret)) and len(set(secret)) > 6


def is_spelled_right(secret: bytes) -> bool:
    """Whether this may be a UUID. Logs show no digest of any other text."""
    return len(secret) == 36 and secret.count(b"-") == 4  # a cheap check: it runs per request


def with_prefix(secret: str, prefix: str) -> str:
    """Return the prefixed spelling of a canonical secret; with no prefix, the secret itself."""
    if not prefix:
        return secret
    text = f"{prefix}_{_to_base62(UUID(secret).int, 22)}"
    return text + _to_base62(crc32(text.encode()), 6)


def canonical(spelled: bytes) -> bytes:
    """Return the canonical spelling of a prefixed secret, and any other text unchanged."""
    if match := _PREFIXED.fullmatch(spelled.decode("latin-1")):
        prefix, body, checksum = match.groups()
        number = _from_base62(body)
        if number < 1 << 128 and _from_base62(checksum) == crc32((prefix + body).encode()):
            return str(UUID(int=number)).encode()
    return spelled


def _to_base62(number: int, length: int) -> str:
    digits = ""
    while len(digits) < length:
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits


def _from_base62(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * 62 + _BASE62.index(digit)
    return number


def parse_secrets(text: str) -> list[str]:
    """Return the secrets in a comma-separated list, in their canonical spelling.

    Raises ValueError if an entry is not a secret. The message gives its position, not its text.
    """
    entries = [entry.strip() for entry in text.split(",")] if text.strip() else []
    secrets = [canonical(entry.encode(errors="replace")).decode() for entry in entries]
    for place, secret in enumerate(secrets, start=1):
        if not is_canonical(secret):
            raise ValueError(f"entry {place} of {len(secrets)} is not a random lower-case UUID4")
    return secrets


def digests(secrets: Iterable[str]) -> Iterator[bytes]:
    return (digest(secret.encode()) for secret in secrets)


KNOWING: Final[WeakSet[Any]] = WeakSet()
"""The stores of this process with keys from elsewhere. Whatever key they know is masked, too."""


def imported_in(text: str, most: float) -> Iterator[tuple[int, int]]:
    """Yield where imported keys stand in the text. Ends after `most` characters of other text."""
    place, knowing = 0, [store.may_exist for store in KNOWING]
    for visible in _VISIBLE.finditer(text) if knowing else ():
        edges = [edge.start() for edge in _EDGE.finditer(text, *visible.span())]
        for number, start in enumerate(edges):
            if start >= place + most:
                return
            for end in edges[number + 1 : number + 27] if start >= place else ():
                spelled = text[start:end].encode() if end - start >= 16 else b""
                if spelled and any(known(digest(spelled)) for known in knowing):
                    yield start, end
                    most, place = most - (start - place), end
                    break


def masked(text: str) -> str:
    """The gate for all text of callers on its way to a log, a span or a metric.

    Returns at most 200 printable characters, with `[key]` for text spelled like a secret.
    """
    # Masking that many characters leaves more than 200, so the cut below never splits a secret.
    shown = _IN_TEXT.sub("[key]", text[: 8000 if KNOWING else 2000])
    for spelled in {shown: 1, unquote(shown): 1} if KNOWING else ():
        for start, end in reversed([*imported_in(spelled, 200)]):
            shown = spelled = f"{spelled[:start]}[key]{spelled[end:]}"
    if not shown.isprintable():
        shown = repr(shown)[1:-1]
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def spelled_in(text: str) -> Iterator[str]:
    """Yield everything in the text that is spelled like a secret."""
    return (match[1] for match in _ANYWHERE.finditer(text))


def is_scope(text: str) -> bool:
    return bool(_SCOPE.fullmatch(text)) and len(text) <= 100
