"""Finds keys in files: logs, dumps, settings.

It finds the keys that the service knows, those with a prefix and a correct checksum, and each UUID4
next to the name of the header or API_KEYS. Keys in base64 and other encodings are left to
scanners such as gitleaks and trufflehog.
"""

import json
import re
import sys
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, getincrementaldecoder
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from math import inf
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from app.auth.key import canonical, digest, id_of, imported_in, is_canonical
from app.constants import API_KEY_HEADER

BLOCK: Final = 1 << 18  # bytes a read
OVERLAP: Final = 1 << 12  # characters that are searched again together with the next block

# Returns the ids of known keys by digest, at least for those of the given digests.
Known = Callable[[Collection[bytes]], Mapping[bytes, str]]

_MARKED = re.compile("^.*not-a-key.*", re.IGNORECASE | re.MULTILINE)
# Markdown and URLs escape a hyphen; a word processor makes it a dash.
_HYPHEN = r"(?:-|\\-|%2d|[\u2010-\u2015])"
_FOUR = "([0-9a-f]{4})"
_UUID = re.compile(
    _HYPHEN.join(["([0-9a-f]{8})", _FOUR, _FOUR, _FOUR, "([0-9a-f]{12})"]), re.IGNORECASE
)
_PREFIXED = re.compile("_[0-9A-Za-z]{28}")
# A name and its values, as shells, HTTP, JSON, YAML, Python and URLs write them.
_NAME = "|".join(re.sub("[-_]", "[-_. ]?", name) for name in (API_KEY_HEADER, "API_KEYS"))
_BETWEEN = r"(?:[^0-9a-z]|%[0-9a-f]{2}|\\(?:[nrt]|u[0-9a-f]{4})|\b(?:b|is|str|value)\b){1,64}"
_VALUE = rf"(?<!\n)(?:{_UUID.pattern}|[0-9a-z]+{_PREFIXED.pattern})(?![0-9a-z])"
_NAMED = re.compile(f"(?:{_NAME})(?:{_BETWEEN}{_VALUE})+", re.IGNORECASE)


class Finding(NamedTuple):
    """A key, or a file that cannot be read."""

    file: str
    line: int | None  # None for a key in the file's name
    id: str | None
    why: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.why}" if self.id is None else f"{place}: key {self.id} ({self.why})"


def report(
    files: Iterable[str], known: Known, show: Callable[[str], None], *, as_json: bool
) -> bool:
    """Show the findings. Returns whether there are any."""
    findings: list[dict[str, object]] = []
    for finding in (finding for file in files for finding in scan(file, known)):
        findings.append(finding._asdict())
        if not as_json:
            show(f"{finding}")
    if as_json:
        show(json.dumps(findings))
    return bool(findings)


def scan(file: str, known: Known) -> Iterator[Finding]:
    """The keys in a file and in its name, each once a line. It skips lines with `not-a-key`."""
    in_name = _keys(file, known)
    shown = f"{file[: in_name[0][0]]}[key]" if in_name else file
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
    text, line, found = "", 1, set()
    for block in _blocks(file):
        text += _MARKED.sub("", block)
        for place, id, why in _keys(text, known):
            number = line + text.count("\n", 0, place)
            if (number, id) not in found:
                found.add((number, id))
                yield number, id, why
        line += text.count("\n", 0, -OVERLAP)
        text = text[-OVERLAP:]


def _blocks(file: BinaryIO) -> Iterator[str]:
    """The text in blocks of whole lines. A line longer than BLOCK is cut."""
    more = file.read(BLOCK)
    is_utf16 = more.startswith((BOM_UTF16_LE, BOM_UTF16_BE))  # as PowerShell writes
    decoder = getincrementaldecoder("utf-16" if is_utf16 else "utf-8")("replace")
    text = ""
    while more:
        text += decoder.decode(more)
        more = file.read(BLOCK)
        end = text.rfind("\n") + 1 if more else 0
        yield text[: end or len(text)]
        text = text[end or len(text) :]


def _keys(text: str, known: Known) -> list[tuple[int, str, str]]:
    """Where each key begins, its id, and why it is one."""
    candidates = [
        (place, digest(secret.encode()), why)
        for place, secret, why in _secrets(text)
        if is_canonical(secret)
    ]
    imported = imported_in(text, inf)
    candidates += [(start, digest(text[start:end].encode()), "") for start, end in imported]
    ids = known({hashed for _, hashed, _ in candidates}) if candidates else {}
    return sorted(
        (place, ids.get(hashed) or id_of(hashed), "known" if hashed in ids else why)
        for place, hashed, why in candidates
        if why or hashed in ids
    )


def _secrets(text: str) -> Iterator[tuple[int, str, str]]:
    """Candidates: where each begins, its spelling, and why it is a key if no source knows it."""
    named = {
        uuid.start()
        for match in _NAMED.finditer(text)
        for uuid in _UUID.finditer(text, *match.span())
    }
    for uuid in _UUID.finditer(text):
        why = "next to its name" if uuid.start() in named else ""
        yield uuid.start(), "-".join(uuid.groups()).lower(), why
    for match in _PREFIXED.finditer(text):
        before = text[max(match.start() - 17, 0) : match.start()].removesuffix("\\")
        for length in range(1, len(before) + 1):  # only the right prefix fits the checksum
            spelled = (before[-length:] + match[0]).encode(errors="replace")
            yield match.start() - length, canonical(spelled).decode(), "prefix and checksum"
