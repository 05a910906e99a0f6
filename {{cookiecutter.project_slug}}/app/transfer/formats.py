"""Reads keys as other systems store them. An error names the line, never what is in it."""

import csv
import io
import json
import re
import sqlite3
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from app.auth.database.engine import uri_of
from app.auth.errors import InvalidError
from app.auth.key import canonical, digest
from app.transfer.keys import Line, Secret
from app.transfer.strength import BITS, defaults, is_weak

# What the systems call their columns; the first that a row has counts.
_KEY: Final = ("digest", "hash", "hashedkey", "securevalue", "token", "key", "apikey")
_NAME: Final = ("name", "keyalias", "alias", "label", "keyname")
_END: Final = (
    *("expiresat", "expires", "expireson", "expireat", "expire", "expiration", "expirationdate"),
    *("expirydate", "expiry", "validuntil"),
)
_SCOPES: Final = ("scopes", "permissions")
_ON: Final = ("enabled", "isactive", "active", "isenabled")
_OFF: Final = ("blocked", "disabled", "revoked", "isrevoked", "isblocked", "isdisabled", "deleted")
_ENDED: Final = ("revokedat", "deletedat", "disabledat", "blockedat", "endedat")  # any time
_SALTED: Final = re.compile("salt|pepper|^fasthashed", re.IGNORECASE)

_SLOW: Final = {"$argon2": "Argon2", "pbkdf2": "PBKDF2", "$2": "bcrypt", "scrypt": "scrypt"}
_SHORT: Final = {16: "MD5", 20: "SHA-1", 48: "SHA-384", 64: "SHA-512"}  # by their bytes
_ADVICE: Final = (
    "only the SHA-256 of a whole key moves in. Let the old service write each key down when it is"
    " used, and import those with --format plain, or create others"
)
_SIMPLE: Final = (
    "SELECT api_key, name, is_active, CASE WHEN never_expire THEN NULL ELSE expiration_date END"
    " AS expires FROM fastapi_simple_security"
)
_MOST_SIGNS: Final = 12  # neither letters nor digits; the log finds no key with more
_WORDS: Final = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def of_text(text: str, *, in_the_clear: bool, force: bool, **known: Any) -> Iterator[Any]:
    """The keys of CSV with a header or of JSON lines, each with the number of its line; in the
    clear also those of a list. `known` is for `_line`. Raises InvalidError."""
    read = _clear(force) if in_the_clear else _stored(force)
    for number, row in _rows(text.removeprefix("\ufeff"), in_the_clear):
        yield number, _in_line(number, row, read, **known)


def of_fastapi_simple_security(file: str, *, force: bool, **known: Any) -> Iterator[Any]:
    """The keys of its SQLite file. Raises InvalidError."""
    try:
        with closing(sqlite3.connect(uri_of(Path(file), "ro"), uri=True)) as opened:
            opened.row_factory = sqlite3.Row
            rows = [_named(0, dict(row).items()) for row in opened.execute(_SIMPLE)]
    except sqlite3.Error as error:
        raise InvalidError(f"{file}: {error}; it is the file of fastapi-simple-security") from None
    for number, row in enumerate(rows, 1):
        yield number, _in_line(number, row, _clear(force), **known)


def _in_line(number: int, *arguments: Any, **options: Any) -> Line:
    try:
        return _line(number, *arguments, **options)
    except InvalidError as error:
        raise InvalidError(f"Line {number}: {error}") from None


def _rows(text: str, is_list: bool) -> Iterator[tuple[int, Mapping[str, Any]]]:
    header = re.sub('[_" ]', "", text.partition("\n")[0].strip().lower()).split(",")
    if text.lstrip().startswith("{"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    row = json.loads(line, object_pairs_hook=_unique)
                    yield number, _named(number, row.items())
                except (ValueError, AttributeError, RecursionError):
                    raise InvalidError(f"Line {number}: no JSON object, or a name twice") from None
    elif not {*map(str.strip, header)}.isdisjoint(_KEY):
        reader = csv.reader(io.StringIO(text), strict=True)
        try:
            names = next(reader)
            for row in filter(None, reader):
                if len(row) != len(names):
                    raise InvalidError(f"Line {reader.line_num}: more or fewer fields than names")
                yield reader.line_num, _named(reader.line_num, zip(names, row, strict=True))
        except csv.Error as error:
            raise InvalidError(f"Line {reader.line_num}: {error}") from None
    elif is_list:
        for number, key in enumerate(re.findall(r"[^\s,]+", text), 1):
            yield number, {"key": key}
    else:
        raise InvalidError(f"Line 1: no column has the name {', '.join(_KEY)}")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _named(number: int, fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The fields by their names, of which case and underscores do not matter."""
    row: dict[str, Any] = {}
    for name, value in fields:
        if (bare := name.strip().lower().replace("_", "")) in row:
            raise InvalidError(f"Line {number}: two columns have the name {name}")
        row[bare] = value
    return row


def _line(
    number: int,
    row: Mapping[str, Any],
    read: Callable[[str], bytes],
    *,
    now: datetime,
    actor: str,
    scopes: Sequence[str] = (),
) -> Line:
    """The key of a row. `scopes` are for rows that name none. What has ended is revoked."""
    for name, value in row.items():
        if _SALTED.search(name) and value:
            raise InvalidError(f"it is salted ({name}): {_ADVICE}")
    hashed = read(f"{_first(row, _KEY) or ''}".strip())
    # Whatever says that a key has ended counts.
    end = min(map(_instant, _all(row, _END)), default=None)
    is_on = all(map(_is_true, _all(row, _ON))) and not any(map(_is_true, _all(row, _OFF)))
    is_on = is_on and not any(_all(row, _ENDED))
    of = {name: f"{row[name]}" for name in ("owner", "note") if row.get(name)}
    return Line(
        # The digits after the milliseconds count: no two keys of a file share an id.
        id=f"{(int(now.timestamp() * 1000) << 24) + number:017x}",
        name=f"{_first(row, _NAME) or f'imported {number}'}",
        scopes=[*(_scopes(_first(row, _SCOPES)) or scopes)],
        **of,
        created_by=actor,
        created_at=now,
        expires_at=end,
        revoked_at=None if is_on and (end is None or end > now) else now,
        secrets=[Secret(digest=hashed.hex(), created_at=now)],
    )


def _all(row: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    return [row[name] for name in names if row.get(name) not in (None, "")]


def _first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next(iter(_all(row, names)), None)


# What a key is stored as.


def _clear(force: bool) -> Callable[[str], bytes]:
    def read(key: str) -> bytes:
        if not re.fullmatch("[!-~]+", key):
            raise InvalidError("no header can carry this key: it has other than visible ASCII")
        if key.startswith((*_SLOW, "sha256$", "sha512$")):
            raise InvalidError("this is a digest; read it with --format sha256")
        signs = len(re.findall("[^0-9A-Za-z]", key))
        if not force and (is_weak(key) or len(key) < 16 or signs > _MOST_SIGNS):
            raise InvalidError(
                f"below {BITS} bits, shorter than 16 characters, or more than {_MOST_SIGNS} signs:"
                " guessed in time or not found in logs; create another, or --force it"
            )
        return digest(canonical(key.encode()))

    return read


def _stored(force: bool) -> Callable[[str], bytes]:
    guessed = frozenset() if force else defaults()

    def read(text: str) -> bytes:
        name = next((name for begin, name in _SLOW.items() if text.startswith(begin)), "")
        found = b"" if name else _decoded(re.sub(r"^(sha256\$|\\x|sha512\$+)", "", text))
        if name := name or _SHORT.get(len(found), ""):
            raise InvalidError(f"this is {name}, and {_ADVICE}")
        if len(found) != 32:
            raise InvalidError("this is no SHA-256; for a key in the clear, --format plain")
        if found in guessed:
            raise InvalidError("the digest of a key from an example; create another, or --force it")
        return found

    return read


def _decoded(text: str) -> bytes:
    """Hex, or base64 of both alphabets, padded or not; nothing if it is neither."""
    with suppress(ValueError):
        return bytes.fromhex(text)
    bare = text.rstrip("=").replace("-", "+").replace("_", "/")
    with suppress(ValueError):
        return b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    return b""


# The other columns.


def _instant(value: Any) -> datetime:
    """A time without a zone is in UTC. Numbers are seconds or milliseconds since the epoch."""
    try:
        with suppress(ValueError):
            seconds = float(f"{value}")  # true is no number
            if seconds < 1e8:  # a year, a date without hyphens
                raise OverflowError
            return datetime.fromtimestamp(seconds / 1000 if seconds > 1e11 else seconds, UTC)
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError, OSError):
        raise InvalidError("its end is no time; write it like 2030-12-31T23:59Z") from None


def _is_true(value: Any) -> bool:
    if (found := _WORDS.get(f"{value}".strip().lower())) is None:
        raise InvalidError("whether it is in force is neither true nor false")
    return found


def _scopes(value: Any) -> list[str]:
    """From a list, a text, an array of PostgreSQL, or permissions: {"reports": ["read"]}."""
    found = value or []
    with suppress(ValueError, TypeError):
        found = json.loads(value)
    if isinstance(found, str):
        return re.findall(r"[^\s,{}\"]+", found)
    if isinstance(found, dict) and all(isinstance(each, list) for each in found.values()):
        return [f"{name}:{action}" for name, actions in found.items() for action in actions]
    if isinstance(found, list):
        return [f"{each}" for each in found]
    raise InvalidError('its permissions are not like {"reports": ["read"]}; name scopes instead')
