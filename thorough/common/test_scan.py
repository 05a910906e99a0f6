"""Keys are found in files, however they are spelled; what is none is left alone."""

import io
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import pytest
from typer.testing import CliRunner, Result

from app.auth.cli import scan as module
from app.auth.cli.scan import Known, report, scan
from app.auth.errors import SettingsError, StoreUnavailableError
from app.auth.key import digest, id_of, with_prefix
from app.cli import main
from app.constants import API_KEY_HEADER

EXAMPLE = "1c9a5d3e-70b2-4f68-8e4d-a1b2c3d4e5f6"  # not-a-key
PREFIXED = "acme_0ryKRmPxSsHwqf3ULKlpCQ1lXPnZ"  # not-a-key
OTHER = "6f1e2d3c-4b5a-4978-a695-8c7d6e5f4a3b"  # not-a-key
NIL = "00000000-0000-4000-8000-000000000000"  # not-a-key
BARE = EXAMPLE.replace("-", "")
DIGEST = digest(EXAMPLE.encode())
ID = id_of(DIGEST)
OTHER_ID = id_of(digest(OTHER.encode()))

KNOWN = Known([lambda _: {DIGEST: "the-id"}], pytest.fail)
UNKNOWN = Known([], pytest.fail)
NAMED, CHECKSUM = "next to its name", "prefix and checksum"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def keys_in(
    file: Path, content: str | bytes, known: Known = UNKNOWN
) -> list[tuple[int | None, str | None, str]]:
    """Line, id and reason of each finding."""
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    findings = list(scan(f"{file}", known))
    assert {finding.file for finding in findings} <= {f"{file}"}
    return [(finding.line, finding.id, finding.why) for finding in findings]


def ids_in(file: Path, content: str | bytes, known: Known = UNKNOWN) -> list[str | None]:
    return [id for _, id, _ in keys_in(file, content, known)]


def base64(text: str | bytes) -> str:
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


def in_lines(text: str, width: int, between: str) -> str:
    return between.join(wrap(text, width))


# Spellings.

SPELLINGS = {
    "canonical": EXAMPLE,
    "upper case": EXAMPLE.upper(),
    "mixed case": EXAMPLE[:20].upper() + EXAMPLE[20:],
    "braces": "{" + EXAMPLE + "}",
    "urn": f"urn:uuid:{EXAMPLE}",
    "between letters": f"abc{EXAMPLE}def",
    "behind a number": f"{'0123456789abcdef' * 3}{EXAMPLE}",
    "like": f"LIKE '%{EXAMPLE}%'",
    "no hyphens": BARE,
    "no hyphens, upper case": BARE.upper(),
    "no hyphens, behind %22": f"%22{BARE}%22",
    "no hyphens, behind %2522": f"%2522{BARE}%2522",
    "no hyphens, behind =3D": f"=3D{BARE}",
    "no hyphens, behind x22": rf"\x22{BARE}\x22",
    "no hyphens, behind u0022": rf"\u0022{BARE}\u0022",
    "underscores": EXAMPLE.replace("-", "_"),
    "dashes": EXAMPLE.replace("-", "\u2010"),
    "longer dashes": EXAMPLE.replace("-", "\u2015"),
    "escaped hyphens": EXAMPLE.replace("-", "\\-"),
    "percent-encoded": EXAMPLE.replace("-", "%2D"),
    "percent-encoded, twice": EXAMPLE.replace("-", "%252d"),
    "percent-encoded, three times": EXAMPLE.replace("-", "%25252D"),
    "quoted-printable": EXAMPLE.replace("-", "=2D"),
    "json": EXAMPLE.replace("-", "\\u002D"),
    "a string's escape": EXAMPLE.replace("-", "\\x2d"),
    "html": EXAMPLE.replace("-", "&#45;"),
    "html, in hex": EXAMPLE.replace("-", "&#x2D;"),
    "prefixed": PREFIXED,
    "prefixed, between escapes": rf"\n{PREFIXED}\n",
    "prefixed, behind a word": f"my_{PREFIXED}",
    "prefixed, before letters": f"{PREFIXED}abc",
    "prefixed, in markdown": PREFIXED.replace("_", "\\_"),
    "prefixed by one letter": with_prefix(EXAMPLE, "a"),
    "prefixed by 16": with_prefix(EXAMPLE, "a" * 16),
    "prefixed by 16, in markdown": with_prefix(EXAMPLE, "a" * 16).replace("_", "\\_"),
    "base64": base64(EXAMPLE),
    "base64, upper case": base64(EXAMPLE.upper()),
    "base64, no hyphens": base64(BARE).rstrip("="),
    "base64, prefixed": base64(with_prefix(EXAMPLE, "a")),
    "base64, basic authentication": f"Basic {base64(f'user:{EXAMPLE}')}",
    "base64, of json": base64(json.dumps({"one": EXAMPLE, "two": "?>~"})),
    "base64, between others": base64(f"\u00ff??>>{EXAMPLE}>>??\u00ff"),
    "base64, for urls": urlsafe_b64encode(f"\u00ff??>>{EXAMPLE}>>??\u00ff".encode()).decode(),
    "base64, in a path": f"/a/b/{base64(EXAMPLE)}/c",
    "base64, in base64": base64(json.dumps({"auth": base64(f"user:{EXAMPLE}")})),
    "base64, of utf-16": base64(EXAMPLE.encode("utf-16-le")),
    "base64, of utf-16, in base64": base64(base64(EXAMPLE.encode("utf-16-be"))),
    "base64, in lines": in_lines(base64("A" * 45 + EXAMPLE + "B" * 90), 76, "\n"),
    "base64, in lines of windows": in_lines(base64("A" * 45 + EXAMPLE + "B" * 90), 64, "\r\n"),
    "base64, in lines of yaml": in_lines(base64("A" * 45 + EXAMPLE + "B" * 90), 76, "\n \t "),
    "base64, in lines with /": in_lines(base64("?" * 45 + EXAMPLE), 76, "\n"),
    "base64, in lines with +": in_lines(base64(">" * 45 + EXAMPLE), 76, "\n"),
    "hex": EXAMPLE.encode().hex(),
    "hex, upper case": PREFIXED.encode().hex().upper(),
    "hex, prefixed": with_prefix(EXAMPLE, "a").encode().hex(),
    "hex, no hyphens": f"\\x{BARE.encode().hex()}g",
    "hex, no hyphens, behind 3x": f"3x{BARE.encode().hex()}x3",
    "hex, in lines": in_lines((b"A" * 20 + EXAMPLE.encode()).hex(), 60, "\n"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_known_key_is_found_in_every_spelling(spelling: str, file: Path) -> None:
    for shift in range(5):
        text = f"one\n{'x' * shift}{SPELLINGS[spelling]}\nthree\n"
        assert [each[:2] for each in keys_in(file, text, KNOWN)] == [(2, "the-id")]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_known_key_is_found_in_utf_16(spelling: str, file: Path) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        text = f"one\n{SPELLINGS[spelling]}\nthree\n".encode(encoding)
        assert [each[:2] for each in keys_in(file, text, KNOWN)] == [(2, "the-id")]
        # Wherever it begins, as in a dump of memory.
        assert ids_in(file, b"\x7fELF." + text, KNOWN) == ["the-id"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_line_of_utf_16_ends_where_it_does(encoding: str, file: Path) -> None:
    """Half of some other character looks like the end of one."""
    text = f"\ufeff\u0a05\u4e0a\u0a0a\n\u4e0a{EXAMPLE}\n"
    assert keys_in(file, text.encode(encoding), KNOWN) == [(2, "the-id", "known")]


def test_a_key_is_found_in_binary_data(file: Path) -> None:
    row = b"\0\1\2" + bytes(range(256)) + b"1" + EXAMPLE.encode() + b"fa\0" * 40 + b"\xff\xff"
    assert ids_in(file, row, KNOWN) == ["the-id"]
    environment = f"HOME=/\0API_KEYS={EXAMPLE}\0FOO=1\0"
    assert keys_in(file, environment) == [(1, ID, NAMED)]


def test_encodings_are_undone_four_deep(file: Path) -> None:
    text = EXAMPLE
    for _ in range(4):
        text = base64(f"{text}.")
        assert ids_in(file, text, KNOWN) == ["the-id"]
    assert ids_in(file, base64(text), KNOWN) == []


# Keys of which this service does not know.


@pytest.mark.parametrize("spelling", [each for each in SPELLINGS if "prefixed" in each])
def test_a_prefix_with_its_checksum_is_a_key_anywhere(spelling: str, file: Path) -> None:
    assert keys_in(file, SPELLINGS[spelling]) == [(1, ID, CHECKSUM)]


@pytest.mark.parametrize(
    "text",
    [
        PREFIXED[:-1] + "0",
        PREFIXED[:-1],
        "b" + PREFIXED[1:],
        PREFIXED[4:],
        PREFIXED.upper(),
        PREFIXED.replace("_", "\\\\_"),
        with_prefix(NIL, "acme"),
        with_prefix(EXAMPLE.replace("-4", "-1"), "acme"),
    ],
)
def test_a_prefix_with_another_checksum_is_none(text: str, file: Path) -> None:
    assert keys_in(file, f"API_KEYS={text}\n", KNOWN) == []


H = API_KEY_HEADER
NEXT_TO_A_NAME = [
    f"{H}: @@",
    f"{H.upper()}:@@",
    f"{H.lower()}=@@",
    f"{H.replace('-', '_')} = @@",
    f"HTTP_{H.upper().replace('-', '_')}='@@'",
    f"{H.title().replace('-', '')}: @@",
    f"{H.title().replace('-', '')}Header: @@",
    f"service.{H.lower().replace('-', '.')}=@@",
    f"{H.replace('-', ' ')} is `@@`",
    f'"{H}": "@@"',
    f'\\"{H}\\": \\"@@\\"',
    f'curl -H "{H}: @@" http://service',
    f"('{H}', '@@')",
    f"(b'{H}', b'@@')",
    f'"name": "{H}", "value": "@@"',
    f"<{H}>@@</{H}>",
    f"{H.replace('-', '_').upper()}_HEADER: '@@'",
    f"{H}_headers = @@",
    f"{H}%3A%20@@",
    f"{H}%253A%2520@@",
    f"{H}=3D@@",
    f"{H}&quot;:&#34;@@",
    f"{H}\\u0022:\\u0022@@",
    f"{H}\\x22:\\x22@@",
    f"{H}:\\r\\n\\t@@",
    f"\x1b[1m{H}\x1b[m: \x1b[33;1m@@",
    f"{H} = '%@@'",
    f"{H}: urn:uuid:@@",
    f"{H}:{' ' * 63}@@",
    "API_KEYS=@@",
    "API_KEYS=   @@ # mine",
    "export api_keys='@@'",
    '$env:API_KEYS = "@@"',
    "ENV API_KEYS @@",
    "- name: API_KEYS\n  value: @@",
    "API_KEYS:\n  - @@",
    'api_keys: Final[str] = "@@"',
    'api_keys: SecretStr = SecretStr("@@")',
    'api_keys: UUID4 = UUID("@@")',
    'api_keys: string = "@@"',
    'os.getenv("API_KEYS", default="@@")',
    '"apiKeys": ["@@"]',
]


@pytest.mark.parametrize("text", NEXT_TO_A_NAME)
def test_a_key_next_to_its_name_is_one(text: str, file: Path) -> None:
    line = text.partition("@@")[0].count("\n") + 1
    for key in (EXAMPLE, EXAMPLE.upper(), BARE, base64(EXAMPLE), base64(BARE).rstrip("=")):
        assert keys_in(file, text.replace("@@", key)) == [(line, ID, NAMED)]


@pytest.mark.parametrize(
    "text",
    [
        f"API_KEYS={EXAMPLE},{OTHER}",
        f"API_KEYS = [\n  '{BARE}',\n  '{OTHER}'\n]",
        f"API_KEYS={EXAMPLE}%2C%20{OTHER}",
        f"API_KEYS={NIL},{EXAMPLE},{OTHER.upper()},,",
        f"API_KEYS={base64(EXAMPLE)} {base64(OTHER)}",
        f"API_KEYS={base64(f'{EXAMPLE},{OTHER}')}",
        f"API_KEYS={in_lines(base64(f'{EXAMPLE},{OTHER}'), 60, chr(10))}",
        base64(base64(f"'env': 'API_KEYS': '{EXAMPLE},{OTHER}'")),
        f"API_KEYS={PREFIXED},{OTHER}",
    ],
)
def test_each_key_of_a_list_is_one(text: str, file: Path) -> None:
    assert {*ids_in(file, text)} == {ID, OTHER_ID}


@pytest.mark.parametrize(
    "text",
    [
        *(EXAMPLE, f'"id": "{EXAMPLE}"', f"GET /orders/{EXAMPLE}", base64(f"order {EXAMPLE}")),
        *("API_KEYS=\n", f"API_KEYS=\nORDER={EXAMPLE}", f"API_KEYS={NIL}\nORDER={EXAMPLE}"),
        *(f"API_KEYS=\n{EXAMPLE}", f"API_KEYS={NIL}\n{EXAMPLE}"),
        f"{H} accepted for the order {EXAMPLE}",
        f"{H} required. Order: {EXAMPLE}",
        f"{H} is a string value: {EXAMPLE}",
        f"{H}: str = str(str({EXAMPLE}))",
        f"{H}:{' ' * 64}{EXAMPLE}",
        f"{H}{EXAMPLE}",
        f"{EXAMPLE}: {H}",
        f"api: {EXAMPLE}",
        f"{H}: {BARE}{BARE}",
        f"{H}: a{BARE}",
        f"{H}: {EXAMPLE}a",
        f"{H}: {EXAMPLE.replace('-4', '-1')}",
        f"{H}: {EXAMPLE.replace('-8e', '-7e')}",
        f"{H}: {EXAMPLE.replace('-8e', '-ce')}",
        f"{H}: {EXAMPLE[:-1]}",
        f"{H}: {EXAMPLE.replace('-', '--')}",
        f"{H}: {'0123456789abcdef' * 4}",
    ],
)
def test_any_other_uuid4_is_none(text: str, file: Path) -> None:
    assert keys_in(file, text) == []


@pytest.mark.parametrize(
    "text", [f"{BARE}{BARE}", f"a{BARE}", f"{BARE}0", f"0x1f{BARE}", f"%2{BARE}", f"u0022{BARE}"]
)
def test_a_part_of_a_longer_number_is_none(text: str, file: Path) -> None:
    assert keys_in(file, text, KNOWN) == []


# Lines.


def test_a_line_that_says_so_may_have_a_key(file: Path) -> None:
    meant = f"{EXAMPLE} # not-a-key\n# Not-A-Key: {EXAMPLE}\n"
    text = f"{meant}{EXAMPLE}\nnot-a-key\n{EXAMPLE} not a key\n"
    for encoding in ("utf-8", "utf-16"):
        found = keys_in(file, text.encode(encoding), KNOWN)
        assert [line for line, _, _ in found] == [3, 5]


def test_a_key_comes_once_a_line(file: Path) -> None:
    text = f"API_KEYS={EXAMPLE},{OTHER}; {PREFIXED} {base64(EXAMPLE)} {OTHER}\n\n{EXAMPLE}"
    assert keys_in(file, text, KNOWN) == [
        *((1, OTHER_ID, NAMED), (1, "the-id", "known"), (3, "the-id", "known"))
    ]


@pytest.mark.parametrize("spelling", ["canonical", "prefixed", "base64, of json", "hex"])
def test_a_long_file_is_read_in_pieces_and_nothing_is_lost_between_them(
    spelling: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 800)
    monkeypatch.setattr(module, "MARGIN", 300)
    key = SPELLINGS[spelling]
    for size in range(500, 1500, 7):
        before = "\n" * (size % 7) + f"{'.' * 99}\n" * (size // 100) + "." * (size % 100)
        line = before.count("\n")
        text = f"{before}\n{EXAMPLE} {'.' * 200} not-a-key\nAPI_KEYS:\n- {key}\n{' ' * 2000}\n"
        assert keys_in(file, text, KNOWN) == [(line + 4, "the-id", "known")], size
        if spelling == "canonical":
            assert keys_in(file, text) == [(line + 4, ID, NAMED)]


def test_base64_goes_on_from_piece_to_piece(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 800)
    monkeypatch.setattr(module, "MARGIN", 300)
    for size in range(1000, 2000, 41):
        text = base64(f"{'.' * size}{EXAMPLE}{'.' * 2000}")
        assert keys_in(file, text, KNOWN) == [(1, "the-id", "known")]
        line = (size // 3 * 4) // 76 + 1
        assert keys_in(file, in_lines(text, 76, "\n"), KNOWN) == [(line, "the-id", "known")]


def test_a_long_line_is_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 800)
    monkeypatch.setattr(module, "MARGIN", 300)
    text = f"\n{f'{EXAMPLE} ' * 100}\n{EXAMPLE}\n"
    assert keys_in(file, text, KNOWN) == [(2, "the-id", "known"), (3, "the-id", "known")]
    text = f"{'.' * 5000}\n".join(f"{number}{EXAMPLE}" for number in range(5))
    assert [line for line, _, _ in keys_in(file, text, KNOWN)] == [1, 2, 3, 4, 5]


def test_memory_does_not_grow_with_the_file() -> None:
    file = io.BytesIO(b"\n" * (module.BLOCK * 5))
    sizes = [len(window) for window, *_ in module._windows(file)]
    assert len(sizes) > 3
    assert max(sizes) <= 2 * module.BLOCK


# Files.


def test_a_key_in_a_file_name_is_found_and_not_shown(tmp_path: Path) -> None:
    for spelling in ("canonical", "no hyphens, upper case", "prefixed", "base64", "hex"):
        file = tmp_path / f"cache-{SPELLINGS[spelling]}-{OTHER}.json"
        file.write_text(EXAMPLE)
        shown = f"{tmp_path}/cache-[key]"
        found = [*map(str, scan(f"{file}", KNOWN))]
        assert found == [
            *(f"{shown}: key the-id (known, in the file's name)", f"{shown}:1: key the-id (known)")
        ]
    both = Known([lambda _: {DIGEST: "the-id", digest(OTHER.encode()): "another"}], pytest.fail)
    assert [each.id for each in scan(f"{file}", both)] == ["the-id", "another", "the-id"]


def test_a_file_name_takes_one_line(tmp_path: Path) -> None:
    file = tmp_path / "two\nlines\u202e"
    file.write_text(f"{EXAMPLE}\n")
    [found] = scan(f"{file}", KNOWN)
    assert f"{found}" == f"'{tmp_path}/two\\nlines\\u202e':1: key the-id (known)"


def test_what_cannot_be_read_is_not_clean(tmp_path: Path) -> None:
    for path, why in {"none": "No such file or directory", ".": "Is a directory"}.items():
        [found] = scan(f"{tmp_path / path}", KNOWN)
        assert f"{found}" == f"{tmp_path / path}: cannot be read: {why}"


# What is known.


def test_sources_are_asked_in_turn_for_what_is_not_known_yet(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    secrets = [f"{number:08x}{EXAMPLE[8:]}" for number in range(5)]
    digests = [digest(each.encode()) for each in secrets]
    asked: list[list[Sequence[bytes]]] = [[], []]

    def first(some: Sequence[bytes]) -> dict[bytes, str]:
        asked[0].append(some)
        return {digests[0]: "first", digests[1]: "first"}

    def second(some: Sequence[bytes]) -> dict[bytes, str]:
        asked[1].append(some)
        return {each: "second" for each in some if each == digests[4]}

    known = Known([first, second], pytest.fail)
    text = "\n".join([*secrets, secrets[2], secrets[4]])
    assert keys_in(file, text, known) == [
        *((line, "first", "known") for line in (1, 2)),
        *((line, "second", "known") for line in (5, 7)),
    ]
    assert [sorted(map(len, each)) for each in asked] == [[1, 2, 2], [1, 2]]
    assert {each for some in asked[1] for each in some} == {*digests[2:]}
    asked[:] = [[], []]
    assert keys_in(file, "nothing", known) == []
    assert asked == [[], []]


@pytest.mark.parametrize("error", [SettingsError, StoreUnavailableError])
def test_a_source_that_fails_is_noted_once_and_the_others_go_on(
    error: type[Exception], file: Path
) -> None:
    def failing(_: Sequence[bytes]) -> dict[bytes, str]:
        raise error("the source has gone")

    notes: list[str] = []
    known = Known([failing, lambda _: {DIGEST: "the-id"}], notes.append)
    text = f"{EXAMPLE}\n{OTHER}\nAPI_KEYS={OTHER}\n"
    for _ in range(2):
        assert keys_in(file, text, known) == [(1, "the-id", "known"), (3, OTHER_ID, NAMED)]
    assert notes == ["Not every key is known here: the source has gone"]


def test_a_report_is_for_people_or_for_programs(file: Path) -> None:
    shown: list[str] = []

    def reported(content: str, as_json: bool) -> bool:
        shown.clear()
        file.write_text(content)
        sources = [lambda _: {DIGEST: "the-id"}]
        files = [f"{file}", f"{file}.none"][: 2 if content else 1]
        return report(files, sources, show=shown.append, note=pytest.fail, as_json=as_json)

    assert reported(f"\n{EXAMPLE}", as_json=False)
    missing = "cannot be read: No such file or directory"
    assert shown == [f"{file}:2: key the-id (known)", f"{file}.none: {missing}"]
    assert reported(f"\n{EXAMPLE}", as_json=True)
    assert [json.loads(each) for each in shown] == [
        [
            {"file": f"{file}", "line": 2, "id": "the-id", "why": "known"},
            {"file": f"{file}.none", "line": None, "id": None, "why": missing},
        ]
    ]
    assert not reported("", as_json=False)
    assert shown == []
    assert not reported("", as_json=True)
    assert shown == ["[]"]


# The command.


def keys_scan(*arguments: str) -> Result:
    command = ["keys", "scan", *arguments]
    return CliRunner(charset="latin-1").invoke(main, command, catch_exceptions=False)


def test_the_command_names_file_line_and_id_and_never_the_key(
    tmp_path: Path, secrets: list[str], ids: list[str]
) -> None:
    file = tmp_path / "\u00e9\u0142"  # the second one is none of latin-1
    file.write_text(f"\nit is {secrets[1]}!\nAPI_KEYS: {OTHER.upper()}\n{EXAMPLE}\n")
    shown = f"{tmp_path}/\u00e9\\u0142"
    result = keys_scan("--", f"{file}")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{shown}:2: key {ids[1]} (known)",
        f"{shown}:3: key {OTHER_ID} (next to its name)",
    ]
    in_json = keys_scan("--json", f"{file}")
    assert in_json.exit_code == 1
    assert [each["id"] for each in json.loads(in_json.stdout)] == [ids[1], OTHER_ID]
    for secret in (secrets[1], OTHER):
        assert secret not in (result.output + in_json.output).lower()


def test_the_command_is_content_with_files_without_a_key(file: Path) -> None:
    file.write_text(f"API_KEYS=\nORDER={NIL}\n")
    result = keys_scan(f"{file}", f"{file}")
    assert (result.exit_code, result.output) == (0, "")
    assert keys_scan("--json", f"{file}").output == "[]\n"
    assert keys_scan(f"{file}", f"{file}.none").exit_code == 1
    assert keys_scan().exit_code == 2
