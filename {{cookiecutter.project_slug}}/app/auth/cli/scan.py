"""Finding keys where they do not belong: in files, logs and dumps, however they are spelled.

A key is what the service knows as one, or has a prefix and the checksum that goes with it, or
stands next to the name of the header or of API_KEYS. Any other UUID4 is somebody's order number.
"""

import json
import os
import re
import sys
from binascii import a2b_base64, a2b_hex
from bisect import bisect_left, bisect_right
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.key import canonical, digest, id_of, is_canonical
from app.constants import API_KEY_HEADER

BLOCK: Final = 1 << 20  # bytes that are read at once
MARGIN: Final = 1 << 16  # bytes on either side of a key in which its name and its mark are seen
BATCH: Final = 1000  # keys that a source is asked for at once
DEPTH: Final = 4  # encodings within each other, as base64 in UTF-16 in base64

Source = Callable[[Sequence[bytes]], Mapping[bytes, str]]
"""Gives the ids of those keys that it knows, by their digests.

May raise SettingsError or StoreUnavailableError.
"""


@dataclass(frozen=True)
class Finding:
    """A key, or a file of which nobody knows what is in it."""

    file: str
    line: int | None  # none for a key in the file's name
    id: str | None
    why: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.why}" if self.id is None else f"{place}: key {self.id} ({self.why})"


def report(
    files: Iterable[str],
    sources: Iterable[Source],
    *,
    show: Callable[[str], None],
    note: Callable[[str], None],
    as_json: bool,
) -> bool:
    """Show what is found, and tell whether that is anything."""
    known = Known(sources, note)
    findings = (finding for file in files for finding in scan(file, known))
    if as_json:
        found = [asdict(finding) for finding in findings]
        show(json.dumps(found))
        return bool(found)
    clean = True
    for finding in findings:
        show(f"{finding}")
        clean = False
    return not clean


class Known:
    """The keys that the sources know. One that fails is not asked again, and that is said."""

    def __init__(self, sources: Iterable[Source], note: Callable[[str], None]) -> None:
        self._sources = list(sources)
        self._note = note

    def ids(self, digests: Collection[bytes]) -> dict[bytes, str]:
        ids: dict[bytes, str] = {}
        for source in self._sources.copy():
            asked = [each for each in digests if each not in ids]
            try:
                for first in range(0, len(asked), BATCH):
                    ids |= source(asked[first : first + BATCH])
            except (SettingsError, StoreUnavailableError) as error:
                self._sources.remove(source)
                self._note(f"Not every key is known here: {error}")
        return ids


# Files.

_LINE_ENDS: Final = {BOM_UTF16_LE: b"\n\0", BOM_UTF16_BE: b"\0\n"}
_NOT_A_KEY = re.compile(b"\0?".join(bytes([byte]) for byte in b"not-a-key"), re.IGNORECASE)


def scan(file: str, known: Known) -> Iterator[Finding]:
    """The keys in a file and in its name, each once a line, but for lines that say: not-a-key."""
    name = os.fsencode(file)
    in_name = _keys(name, known)
    # The name as far as it shows no key, and in one line.
    shown = f"{os.fsdecode(name[: in_name[0].place])}[key]" if in_name else file
    shown = shown if shown.isprintable() else ascii(shown)
    for _, id, why in in_name:
        yield Finding(shown, None, id, f"{why}, in the file's name")
    try:
        with nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb") as opened:
            for line, id, why in _keys_by_line(opened, known):
                yield Finding(shown, line, id, why)
    except OSError as error:
        yield Finding(shown, None, None, f"cannot be read: {error.strerror}")


def _keys_by_line(file: BinaryIO, known: Known) -> Iterator[tuple[int, str, str]]:
    before: Collection[tuple[int, str]] = ()  # a line may be longer than a window
    for window, start, end, line, line_end in _windows(file):
        if not (keys := _keys(window, known, start, end)):
            continue
        ends = [match.start() for match in re.finditer(line_end, window)]
        meant = {bisect_left(ends, match.start()) for match in _NOT_A_KEY.finditer(window)}
        found: dict[tuple[int, str], str] = {}
        for place, id, why in keys:
            if (lines := bisect_left(ends, place)) not in meant:
                found.setdefault((line + lines, id), why)
        for number, id in sorted(found.keys() - before):
            yield number, id, found[number, id]
        before = found.keys()


def _windows(file: BinaryIO) -> Iterator[tuple[bytes, int, int, int, bytes]]:
    """The file in pieces that overlap, each with the start and the end of the part that is its own,
    the number of its first line, and how lines end."""
    window, start, line = file.read(BLOCK), 0, 1
    line_end = _LINE_ENDS.get(window[:2], b"\n")
    while more := file.read(BLOCK):
        window += more
        end = len(window) - MARGIN
        yield window, start, end, line, line_end
        line += window.count(line_end, 0, end - MARGIN)
        window, start = window[end - MARGIN :], MARGIN
    yield window, start, len(window), line, line_end


class _Key(NamedTuple):
    place: int
    id: str
    why: str


def _keys(data: bytes, known: Known, start: int = 0, end: int | None = None) -> list[_Key]:
    """Those that begin between start and end, in their order."""
    own = range(start, len(data) if end is None else end)
    candidates = sorted(each for each in _candidates(data) if each.place in own)
    ids = known.ids({each.digest for each in candidates})
    return [
        _Key(place, ids.get(hashed) or id_of(hashed), "known" if hashed in ids else why)
        for place, hashed, why in candidates
        if why or hashed in ids
    ]


# What may be a key.


class _Candidate(NamedTuple):
    place: int
    digest: bytes
    why: str  # it is a key, known or not; empty if only one that is known is one


# All of these are for text in lower case. A hyphen may be escaped, or have become another dash, of
# which half is left in UTF-16.
_DASH = rb"(?:[-_\x10-\x15]|\\-|%(?:25)*2d|=2d|&#(?:45|x2d);|\\(?:u00|x)2d|\xe2\x80[\x90-\x95])?"
_FOUR = b"([0-9a-f]{4})"
_UUID = _DASH.join([b"([0-9a-f]{8})", _FOUR, _FOUR, _FOUR, b"([0-9a-f]{12})"])
_SECRET = re.compile(_UUID)
# Where one may begin, with every digit made a zero: nothing is found as fast as a literal text.
# Without hyphens it is all of a number, or what stands behind an escape.
_ZEROS = bytes.maketrans(b"123456789abcdef", b"0" * 15)
_START = re.compile(
    rb"00000000(?:(?!0)|(?!.{24}0)(?=0{24})"
    rb"(?:(?<!0.{8})|(?<=[%=]00.{8})|(?<=%0000.{8})|(?<=\\x00.{8})|(?<=\\u0000.{8})))",
    re.DOTALL,
)

# What stands between a name and its value, and between the values of a list, in files of all kinds.
# What a line begins with belongs to no line before.
_BETWEEN = (
    rb"(?:%25[0-9a-f]{2}|[%=][0-9a-f]{2}|&#?[0-9a-z]{2,6};|\\(?:u[0-9a-f]{4}|x[0-9a-f]{2}|[nrt])"
    rb"|\x1b\[[0-9;]{0,9}m|[^0-9a-z]){1,64}"
)
_WORDS = rb"(?:(?:b|default|final|is|secretstr|str|string|urn|uuid4?|value)%b){0,2}" % _BETWEEN
_VALUE = rb"(?:%b(?![0-9a-f])|[a-z][0-9a-z]{0,15}_[0-9a-z]{28}|[0-9a-z+/]{43,})" % _UUID
_NAMES = "|".join(
    "[-_. ]?".join(re.split("[-_]", name)) for name in (API_KEY_HEADER.lower(), "api_keys")
)
_NAMED = re.compile(
    rb"(?:%b)(?:[-_]?headers?)?%b%b(?<!\n)(?=%b)" % (_NAMES.encode(), _BETWEEN, _WORDS, _VALUE)
)
_ONE = re.compile(_VALUE)
_ANOTHER = re.compile(rb"%b(?<!\n)(?=%b)" % (_BETWEEN, _VALUE))

# With a prefix, in any text.
_END_OF_PREFIXED = re.compile(rb"_([0-9A-Za-z]{28})")
_PREFIX = re.compile(rb"[0-9a-z]{1,16}\Z")


def _candidates(data: bytes, depth: int = DEPTH, named: Iterable[int] = ()) -> Iterator[_Candidate]:
    """`named` are places where a value begins that has one of the names."""
    lower = data.lower()
    values = _named_values(lower, named)
    for match in _START.finditer(lower.translate(_ZEROS)):
        if spelled := _SECRET.match(lower, match.start()):
            secret = b"-".join(spelled.groups())
            if is_canonical(secret.decode()):
                why = "next to its name" if match.start() in values else ""
                yield _Candidate(match.start(), digest(secret), why)
    for match in _END_OF_PREFIXED.finditer(data):
        yield from _prefixed(data, match)
    if depth:
        yield from _encoded(data, depth - 1, values)


def _named_values(lower: bytes, begin: Iterable[int]) -> set[int]:
    values = set()
    for place in (*begin, *(match.end() for match in _NAMED.finditer(lower))):
        while value := _ONE.match(lower, place):
            values.add(place)
            if not (another := _ANOTHER.match(lower, value.end())):
                break
            place = another.end()
    return values


def _prefixed(data: bytes, match: re.Match[bytes]) -> Iterator[_Candidate]:
    """What stands before the prefix may look like a part of it: the checksum tells."""
    before = data[max(0, match.start() - 17) : match.start()].removesuffix(b"\\")
    letters = _PREFIX.search(before)
    for length in range(len(letters[0]) if letters else 0, 0, -1):
        spelled = before[-length:] + match[0]
        secret = canonical(spelled)
        if secret != spelled and is_canonical(secret.decode()):
            yield _Candidate(match.start() - length, digest(secret), "prefix and checksum")
            return


# What is encoded. It is decoded from wherever it could begin: where it does not, no key comes out.

_SHORTEST: Final = 30  # characters: a key with a prefix of one letter
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_OTHER = bytes(set(range(256)) - {*_ALPHABET, *b"\t\n\r "})
_KINDS = bytes.maketrans(_ALPHABET + _OTHER, b"x" * len(_ALPHABET) + b"." * len(_OTHER))
# What could hold a key in base64, with the lines that follow, as in mail.
_RUN = re.compile(b"x" * (_SHORTEST // 3 * 4) + rb"x*(?:\r?\n[ \t]*x+)*")
_PIECE = re.compile(rb"x+")
_NO_HEX = bytes(set(range(256)) - {*b"0123456789abcdef"})
_HEX = bytes.maketrans(_NO_HEX, b"f" * len(_NO_HEX))
_NULS = bytes.maketrans(bytes(range(1, 256)), b"x" * 255)


def _encoded(data: bytes, depth: int, values: set[int]) -> Iterator[_Candidate]:
    if b"x\0" * 8 in data.translate(_NULS):  # UTF-16
        for half in (_Decoded(data[first::2], first, 1, 2) for first in range(2)):
            for each in _candidates(half.data, depth):
                yield each._replace(place=half.original(each.place))
    runs = _Runs(data, values)
    for part in _decoded(runs.text):
        for each in _candidates(part.data, depth, part.places(runs.values)):
            yield each._replace(place=runs.original(part.original(each.place)))


@dataclass(frozen=True)
class _Decoded:
    """So many bytes of it come from so many of the text, from the first one on."""

    data: bytes
    first: int
    size: int
    step: int

    def original(self, place: int) -> int:
        return self.first + place // self.size * self.step

    def places(self, originals: Iterable[int]) -> list[int]:
        steps = (divmod(each - self.first, self.step) for each in originals)
        return [step * self.size for step, rest in steps if not rest]


def _decoded(text: bytes) -> Iterator[_Decoded]:
    if not text:
        return
    for first in range(4):
        rest = text[first:]
        yield _Decoded(a2b_base64(rest[: len(rest) // 4 * 4]), first, 3, 4)
    lower = text.lower()
    if b"0" * (2 * _SHORTEST) in lower.translate(_ZEROS):
        for first in range(2):
            rest = lower[first:].translate(_HEX)
            yield _Decoded(a2b_hex(rest[: len(rest) // 2 * 2]), first, 1, 2)


class _Runs:
    """The parts of some data that could be base64, without their line ends, as one text."""

    def __init__(self, data: bytes, values: set[int]) -> None:
        text = bytearray()
        self.values: list[int] = []
        self._begin: list[int] = []  # where each piece does, in the data and in the text
        self._begin_in_text: list[int] = []
        kinds = data.translate(_KINDS)
        for run in _RUN.finditer(kinds):
            # The end of an escape may stand before it.
            near = values.intersection(range(run.start(), run.start() + 6))
            self.values += [len(text) + each - run.start() for each in near]
            for piece in _PIECE.finditer(kinds, *run.span()):
                self._begin.append(piece.start())
                self._begin_in_text.append(len(text))
                text += data[slice(*piece.span())]
            text += b"////"  # with which the last bytes are whole, and no digit
        self.text = bytes(text)

    def original(self, place: int) -> int:
        piece = bisect_right(self._begin_in_text, place) - 1
        return place - self._begin_in_text[piece] + self._begin[piece]
