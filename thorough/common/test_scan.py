"""`keys scan` finds keys in files and leaves everything else alone."""

import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.auth.cli import scan as module
from app.auth.cli.scan import Known, report, scan
from app.auth.key import digest, id_of, with_prefix
from app.cli import main
from app.constants import API_KEY_HEADER as HEADER

EXAMPLE = "1c9a5d3e-70b2-4f68-8e4d-a1b2c3d4e5f6"  # not-a-key
PREFIXED = "acme_0ryKRmPxSsHwqf3ULKlpCQ1lXPnZ"  # not-a-key
OTHER = "6f1e2d3c-4b5a-4978-a695-8c7d6e5f4a3b"  # not-a-key
NIL = "00000000-0000-4000-8000-000000000000"  # not-a-key
DIGEST = digest(EXAMPLE.encode())
ID, OTHER_ID = id_of(DIGEST), id_of(digest(OTHER.encode()))
NAMED, CHECKSUM = "next to its name", "prefix and checksum"


def knowing_one(_: object) -> dict[bytes, str]:
    return {DIGEST: "the-id"}


def knowing_nothing(_: object) -> dict[bytes, str]:
    return {}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def keys_in(
    file: Path, content: str | bytes, known: Known = knowing_nothing
) -> list[tuple[int | None, str | None, str]]:
    """Line, id and reason of each finding."""
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(found.line, found.id, found.why) for found in scan(f"{file}", known)]


SPELLINGS = {
    "canonical": EXAMPLE,
    "upper case": EXAMPLE.upper(),
    "between letters": f"abc{EXAMPLE}def",
    "behind a number": f"{'0123456789abcdef' * 3}{EXAMPLE}",
    "in braces": "{" + EXAMPLE + "}",
    "escaped hyphens": EXAMPLE.replace("-", "\\-"),
    "percent-encoded": EXAMPLE.replace("-", "%2D"),
    "dashes": EXAMPLE.replace("-", "\u2010"),
    "prefixed": PREFIXED,
    "prefixed, behind an escape": rf"\n{PREFIXED}\n",
    "prefixed, behind a word": f"my_{PREFIXED}",
    "prefixed, before letters": f"{PREFIXED}abc",
    "prefixed, in Markdown": PREFIXED.replace("_", "\\_"),
    "prefixed by a letter": with_prefix(EXAMPLE, "a"),
    "prefixed by 16": with_prefix(EXAMPLE, "a" * 16),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_known_key_is_found_in_every_spelling(spelling: str, file: Path) -> None:
    text = f"one\n\u4e0a\u0a0a {spelling}\nthree\n"
    for content in (text.encode(), text.encode("utf-16"), f"\ufeff{text}".encode("utf-16-be")):
        assert keys_in(file, content, knowing_one) == [(2, "the-id", "known")]
    binary = b"\0\xff" + bytes(range(256)) + spelling.encode() + b"\0\xc3"
    assert [id for _, id, _ in keys_in(file, binary, knowing_one)] == ["the-id"]


@pytest.mark.parametrize("spelling", [each for each in SPELLINGS if "prefixed" in each])
def test_a_prefix_with_its_checksum_is_a_key_anywhere(spelling: str, file: Path) -> None:
    assert keys_in(file, SPELLINGS[spelling]) == [(1, ID, CHECKSUM)]


@pytest.mark.parametrize(
    "text",
    [
        *(PREFIXED[:-1] + "0", PREFIXED[:-1], "b" + PREFIXED[1:], PREFIXED[4:], PREFIXED.upper()),
        *(with_prefix(NIL, "acme"), with_prefix(EXAMPLE.replace("-4", "-1"), "acme")),
    ],
)
def test_a_prefix_with_another_checksum_is_none(text: str, file: Path) -> None:
    assert keys_in(file, f"API_KEYS={text}\n", knowing_one) == []


@pytest.mark.parametrize(
    "text",
    [
        *(f"{HEADER}: @@", f"{HEADER.upper()}:@@", f"{HEADER.replace('-', '_')} = @@"),
        f"HTTP_{HEADER.upper().replace('-', '_')}='@@'",
        f"service.{HEADER.lower().replace('-', '.')}=@@",
        f"{HEADER.replace('-', ' ')} is `@@`",
        f'\\"{HEADER}\\": \\"@@\\"',
        f'curl -H "{HEADER}: @@" http://service',
        f"(b'{HEADER}', b'@@')",
        f'"name": "{HEADER}", "value": "@@"',
        *(f"{HEADER}%3A%20@@", f"{HEADER}\\u0022:\\u0022@@", f"{HEADER}:\\r\\n@@"),
        f"{HEADER}:{' ' * 63}@@",
        *("API_KEYS=@@", "export api_keys='@@' # mine", '$env:API_KEYS = "@@"', "ENV API_KEYS @@"),
        *("- name: API_KEYS\n  value: @@", "API_KEYS:\n  - @@", 'api_keys: str = "@@"'),
        '"apiKeys": ["@@"]',
    ],
)
def test_a_key_next_to_its_name_is_one(text: str, file: Path) -> None:
    line = text.partition("@@")[0].count("\n") + 1
    for key in (EXAMPLE, EXAMPLE.upper()):
        assert keys_in(file, text.replace("@@", key)) == [(line, ID, NAMED)]


@pytest.mark.parametrize("between", [",", "%2C", "', '", "',\n  '", f",{NIL},", f" {PREFIXED} "])
def test_each_key_of_a_list_is_one(between: str, file: Path) -> None:
    found = keys_in(file, f"API_KEYS = ['{EXAMPLE}{between}{OTHER.upper()}']")
    assert {id for _, id, _ in found} == {ID, OTHER_ID}


@pytest.mark.parametrize(
    "text",
    [
        *(EXAMPLE, f'"id": "{EXAMPLE}"', f"GET /orders/{EXAMPLE}", f"api: {EXAMPLE}"),
        *(f"API_KEYS=\nORDER={EXAMPLE}", f"API_KEYS={NIL}\nORDER={EXAMPLE}"),
        *(f"API_KEYS=\n{EXAMPLE}", f"API_KEYS={NIL}\n{EXAMPLE}"),
        f"{HEADER} accepted for the order {EXAMPLE}",
        f"{HEADER} required. Order: {EXAMPLE}",
        *(f"{HEADER}:{' ' * 64}{EXAMPLE}", f"{HEADER}{EXAMPLE}", f"{EXAMPLE}: {HEADER}"),
        *(f"{HEADER}: a{EXAMPLE}", f"{HEADER}: {EXAMPLE}a", f"{HEADER}: {EXAMPLE[:-1]}"),
        *(f"{HEADER}: {EXAMPLE.replace('-4', '-1')}", f"{HEADER}: {EXAMPLE.replace('-8', '-c')}"),
    ],
)
def test_any_other_uuid4_is_none(text: str, file: Path) -> None:
    assert keys_in(file, text) == []


def test_a_line_that_says_so_may_have_a_key(file: Path) -> None:
    meant = f"{EXAMPLE} # not-a-key\n# Not-A-Key: {EXAMPLE}\n"
    text = f"{meant}{EXAMPLE}\nnot-a-key\n{EXAMPLE} not a key\n"
    assert [line for line, _, _ in keys_in(file, text, knowing_one)] == [3, 5]


def test_a_key_comes_once_a_line(file: Path) -> None:
    text = f"API_KEYS={OTHER},{EXAMPLE}; {PREFIXED} {OTHER}\n\n{EXAMPLE}"
    assert keys_in(file, text, knowing_one) == [
        *((1, OTHER_ID, NAMED), (1, "the-id", "known"), (3, "the-id", "known"))
    ]


@pytest.mark.parametrize("key", [EXAMPLE, PREFIXED])
def test_nothing_is_lost_between_two_blocks(
    key: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 800)
    monkeypatch.setattr(module, "OVERLAP", 300)
    for size in range(700, 1700, 7):
        lines = f"{'.' * 99}\n" * (size // 100) + "." * (size % 100)
        text = f"{lines}\n{EXAMPLE} {'.' * 200} not-a-key\nAPI_KEYS:\n- {key}\n{' ' * 2000}\n"
        assert keys_in(file, text, knowing_one) == [(size // 100 + 4, "the-id", "known")], size
        if key == EXAMPLE:
            assert keys_in(file, text) == [(size // 100 + 4, ID, NAMED)], size
        line = f"\n{'.' * size}{key}{'.' * size}"  # without an end for several blocks
        assert keys_in(file, line * 2, knowing_one) == [
            (2, "the-id", "known"),
            (3, "the-id", "known"),
        ]


@pytest.mark.parametrize("content", [b"\n", b".", "\ufeff.".encode("utf-16-le")])
def test_memory_does_not_grow_with_the_file(content: bytes) -> None:
    blocks = [*module._blocks(io.BytesIO(content * (5 * module.BLOCK)))]
    assert len(blocks) >= 5
    assert max(map(len, blocks)) <= 2 * module.BLOCK


def test_a_key_in_a_file_name_is_found_and_not_shown(tmp_path: Path) -> None:
    for spelling in (EXAMPLE.upper(), PREFIXED):
        file = tmp_path / f"cache-{spelling}-{OTHER}\udcff.json"
        file.write_text(EXAMPLE)
        shown = f"{tmp_path}/cache-[key]"
        assert [*map(str, scan(f"{file}", knowing_one))] == [
            *(f"{shown}: key the-id (known, in the file's name)", f"{shown}:1: key the-id (known)")
        ]


def test_a_file_name_takes_one_line(tmp_path: Path) -> None:
    file = tmp_path / "two\nlines\u202e"
    file.write_text(f"{EXAMPLE}\n")
    [found] = scan(f"{file}", knowing_one)
    assert f"{found}" == f"'{tmp_path}/two\\nlines\\u202e':1: key the-id (known)"


def test_a_report_is_for_people_or_for_programs(file: Path) -> None:
    def reported(files: list[Path], as_json: bool) -> tuple[bool, list[str]]:
        shown: list[str] = []
        return report(map(str, files), knowing_one, shown.append, as_json=as_json), shown

    file.write_text(f"\n{EXAMPLE}")
    none, folder = file.with_name("none"), file.parent
    missing = "cannot be read: No such file or directory"
    assert reported([file, none, folder], as_json=False) == (
        True,
        [
            *(f"{file}:2: key the-id (known)", f"{none}: {missing}"),
            f"{folder}: cannot be read: Is a directory",
        ],
    )
    found, [shown] = reported([file, none], as_json=True)
    assert found
    assert json.loads(shown) == [
        {"file": f"{file}", "line": 2, "id": "the-id", "why": "known"},
        {"file": f"{none}", "line": None, "id": None, "why": missing},
    ]
    file.write_text("")
    assert reported([file], as_json=False) == (False, [])
    assert reported([file], as_json=True) == (False, ["[]"])


def keys_scan(*arguments: str, input: str | None = None) -> Result:
    command = ["keys", "scan", *arguments]
    return CliRunner(charset="latin-1").invoke(main, command, input, catch_exceptions=False)


def test_the_command_names_file_line_and_id_and_never_the_key(
    tmp_path: Path, secrets: list[str], ids: list[str]
) -> None:
    file = tmp_path / "\u00e9\u0142"  # the second one is none of latin-1
    text = f"\nit is {secrets[1]}!\nAPI_KEYS: {OTHER.upper()}\n{EXAMPLE}\n"
    file.write_text(text)
    for name, shown, input in (f"{file}", f"{tmp_path}/\u00e9\\u0142", None), ("-", "-", text):
        result = keys_scan("--", name, input=input)
        assert result.exit_code == 1
        assert result.stdout.splitlines() == [
            f"{shown}:2: key {ids[1]} (known)",
            f"{shown}:3: key {OTHER_ID} (next to its name)",
        ]
        assert not any(secret in result.output.lower() for secret in (secrets[1], OTHER))
    in_json = keys_scan("--json", f"{file}")
    assert in_json.exit_code == 1
    assert [each["id"] for each in json.loads(in_json.stdout)] == [ids[1], OTHER_ID]


def test_the_command_is_content_with_files_without_a_key(file: Path) -> None:
    file.write_text(f"API_KEYS=\nORDER={NIL}\n")
    result = keys_scan(f"{file}", f"{file}")
    assert (result.exit_code, result.output) == (0, "")
    assert keys_scan("--json", f"{file}").output == "[]\n"
    assert keys_scan(f"{file}", f"{file}.none").exit_code == 1
    assert keys_scan().exit_code == 2
