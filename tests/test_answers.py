"""Every answer works, or is refused in one line with nothing left behind."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cookiecutter.exceptions import FailedHookException
from cookiecutter.main import cookiecutter

from tests.parts import Choice, sources
from tests.project import EVERYTHING, Project, render, run

Rendered = Callable[..., Project]

TEXTS = [
    'He said "hello"',
    "O'Brien's service",
    "three \"\"\" and ''' quotes",
    "a \\ backslash, \\n, \\u0041 and one at the end\\",
    "two\nlines\r\nand\ta tab",
    "   spaces   around   ",
    "emoji 🔑 and 👩‍💻",  # the second one is joined by an invisible character
    "Ünïcödé, Кириллица, 中文 and ‘curly’ quotes",
    "{{ braces }}",
    "{% raw %} {# comment #} ${HOME} $(id) `id` %PATH%",
    "# hash: [brackets], {x: 1} & <b>",
    "x" * 300,
    "--help",
]


def as_text(answer: str) -> str:
    return " ".join(answer.split())


def literal(text: str) -> str:
    """As an answer that reaches the template unrendered: without a prompt, Jinja in it would run."""
    return f"{'{{'} {text!r} {'}}'}" if re.search(r"\{[{%#]", text) else text


DEFAULTS = ("A service that answers callers with a valid key", "Acme Gateway team")


def check(project: Project, name: str, description: str, author: str) -> None:
    constants: dict[str, object] = {}
    exec(project.read("app/constants.py"), constants)  # noqa: S102
    metadata = tomllib.loads(project.read("pyproject.toml"))["project"]
    assert constants["TITLE"] == as_text(name)
    assert constants["DESCRIPTION"] == metadata["description"] == as_text(description)
    assert constants["AUTHOR"] == as_text(author)
    assert metadata["authors"] == [{"name": constants["AUTHOR"]}]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", metadata["name"])
    assert project.path.name == metadata["name"] == constants["COMMAND"]
    for file in (".pre-commit-config.yaml", "compose.yaml", "deploy/kubernetes/kustomization.yaml"):
        assert yaml.safe_load(project.read(file))
    assert project.read("README.md").startswith(f"# {as_text(name)}\n")
    project.run("ruff", "check", "--no-cache", ".")
    project.run("ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_works(rendered: Rendered, text: str) -> None:
    name = f"Service {text}"
    answers = {"project_name": name, "description": text, "author_name": text}
    texts = {question: literal(answer) for question, answer in answers.items()}
    project = rendered({**EVERYTHING["database"], **texts})
    check(project, name, text, text)


def test_empty_texts_work(rendered: Rendered) -> None:
    project = rendered({**EVERYTHING["database"], "description": "", "author_name": " "})
    check(project, "My API Service", "", "My API Service team")


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("My API Service", "my-api-service"),
        ("../../evil", "evil"),
        ("/etc/passwd", "etc-passwd"),
        ("C:\\Windows", "c-windows"),
        ("Größe", "grosse"),
        ("7 Wonders", "7-wonders"),
        ("class", "class"),
        ("-rf", "rf"),
        ("y" * 300, "y" * 60),
    ],
)
def test_the_slug_is_derived(rendered: Rendered, output: Path, name: str, slug: str) -> None:
    project = rendered({"project_name": name})
    assert project.path == output / slug
    assert list(output.iterdir()) == [output / slug]
    assert [path.name for path in output.parent.iterdir()] == ["output"]


REFUSED = [
    ("project_name", "", "project_slug '' cannot name .*; try: my-api-service$"),
    ("project_name", "   ", "project_slug '' cannot name .*; try: my-api-service$"),
    ("project_name", "🔑", "project_slug '' cannot name .*; try: my-api-service$"),
    ("project_name", "../..", "project_slug '' cannot name .*; try: my-api-service$"),
    ("project_name", "FastAPI", "'fastapi' is what the service itself needs; try: fastapi-service"),
    ("project_name", "a bell\a", "the control character U\\+0007"),
    ("description", "null\0byte", "the control character U\\+0000"),
    ("author_name", "half an emoji \ud83d", "the control character U\\+D83D"),
    ("api_key_header", "Host", "already has a meaning in HTTP; try: api-key"),
    ("api_key_header", "cookie", "already has a meaning in HTTP; try: api-key"),
    ("api_key_header", "Authorization", "already has a meaning in HTTP; try: api-key"),
    ("api_key_header", "Sec-WebSocket-Key", "already has a meaning in HTTP; try: api-key"),
    ("api_key_header", "", "takes letters, digits and hyphens, for example: api-key"),
    ("api_key_header", "api key", "takes letters, digits and hyphens, for example: api-key"),
    ("api_key_header", "api_key", "takes letters, digits and hyphens, for example: api-key"),
    ("api_key_header", "api-key:", "takes letters, digits and hyphens, for example: api-key"),
    ("api_key_header", "api-key\n", "the control character|takes letters, digits and hyphens"),
    ("api_key_header", "schlüssel", "takes letters, digits and hyphens, for example: api-key"),
    ("api_key_header", "x'; touch pwned; '", "takes letters, digits and hyphens"),
    ("api_key_header", '"""+1', "takes letters, digits and hyphens"),
    ("api_key_header", "'''+1", "takes letters, digits and hyphens"),
]


@pytest.mark.parametrize(("question", "answer", "message"), REFUSED)
def test_what_cannot_work_is_refused(
    rendered: Rendered,
    output: Path,
    capfd: pytest.CaptureFixture[str],
    question: str,
    answer: str,
    message: str,
) -> None:
    with pytest.raises(FailedHookException):
        rendered({question: answer})
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("Refused: ")
    assert re.search(message, said)
    assert nothing_is_left(output)


def nothing_is_left(output: Path) -> bool:
    around = {path.name for path in output.parent.parent.iterdir()}
    return (
        not any(output.iterdir())
        and [path.name for path in output.parent.iterdir()] == ["output"]
        and around == {"inside", "cookiecutter-home"}
    )


# Beside each what the refusal says will work.
SLUGS = [
    ("", "my-api-service"),
    (" ", "my-api-service"),
    (".", "my-api-service"),
    ("..", "my-api-service"),
    ("🔑", "my-api-service"),
    ("../../evil", "evil"),
    ("/abs/olute", "abs-olute"),
    ("{inside}/evil", None),  # an absolute path that could be written to
    ("C:\\evil", "c-evil"),
    ("a/b", "a-b"),
    ("a\\b", "a-b"),
    ("Caps", "caps"),
    ("my_service", "my-service"),
    ("my.service", "my-service"),
    ("my service", "my-service"),
    ("two\nlines", "two-lines"),
    ("-rf", "rf"),
    ("a--b", "a-b"),
    ("größe", "grosse"),
    ("o'brien", "o-brien"),
    ("'''+1", "1"),
    ("y" * 61, "y" * 60),
    *((name, f"{name}-service") for name in ("con", "prn", "aux", "nul", "com1", "lpt9")),
    ("CON", "con-service"),
    *((name, f"{name}-service") for name in ("fastapi", "python", "uv", "pytest")),
    ("FastAPI", "fastapi-service"),
]


@pytest.mark.parametrize(("slug", "usable"), SLUGS)
def test_a_slug_that_cannot_work_is_refused_with_one_that_can(
    rendered: Rendered,
    output: Path,
    capfd: pytest.CaptureFixture[str],
    slug: str,
    usable: str | None,
) -> None:
    with pytest.raises(FailedHookException):
        rendered({"project_slug": slug.replace("{inside}", str(output.parent))})
    (said,) = capfd.readouterr().err.splitlines()
    refusal, _, suggested = said.partition("; try: ")
    assert refusal.startswith("Refused: project_slug ")
    assert nothing_is_left(output)
    assert usable in (None, suggested)
    assert rendered({"project_slug": suggested}).path == output / suggested


# The package that is imported is `app`; a distribution and a command may have any other name.
@pytest.mark.parametrize("slug", ["gateway", "a", "7", "class", "json", "app", "tests", "com"])
def test_any_other_slug_names_folder_distribution_and_command(
    rendered: Rendered, slug: str
) -> None:
    names = {"project_name": "Acme Gateway", "project_slug": slug}
    project = rendered({**EVERYTHING["database"], **names})
    check(project, "Acme Gateway", *DEFAULTS)
    assert project.path.name == slug


def test_a_refusal_leaves_a_project_that_is_there_as_it_is(rendered: Rendered) -> None:
    project = rendered()
    before = project.files()
    for answers in ({"api_key_header": "Host"}, {"project_slug": "My-API-Service"}):
        with pytest.raises(FailedHookException):
            rendered(answers, overwrite_if_exists=True)
    assert project.files() == before


@pytest.mark.slow
def test_an_old_cookiecutter_is_told_the_version_that_is_needed(
    template: Path, output: Path
) -> None:
    for answers in ([], ["project_slug=gateway"]):
        old = ("uvx", "--from", "cookiecutter==1.7.3", "cookiecutter", "--no-input", template)
        result = run(*old, *answers, cwd=output, check=False)
        assert result.returncode == 1
        assert "Refused: this template needs cookiecutter 2.7 or newer\n" in result.stderr
        assert nothing_is_left(output)


YES = ["yes", "YES", "y", "true", "True", "t", "on", "1", " yes "]
NO = ["no", "n", "false", "f", "off", "0"]


@pytest.mark.parametrize("answer", [*YES, True, *NO, False], ids=repr)
def test_a_part_is_chosen_by_yes_or_no(
    rendered: Rendered, template: Path, answer: str | bool
) -> None:
    project = rendered({"limits": answer})
    parts = frozenset({"limits"} if answer in (*YES, True) else ())
    assert project.files().keys() == sources(template, Choice("database", parts)).keys() | {".env"}


def test_on_the_command_line_too(template: Path, output: Path) -> None:
    answers = ("limits=yes", "metrics=true", "deploy=1", "vaults=no")
    run("cookiecutter", "--no-input", template, *answers, cwd=output)
    expected = Choice("database", frozenset({"limits", "metrics", "deploy"}))
    files = Project(output / "my-api-service").files()
    assert files.keys() == sources(template, expected).keys() | {".env"}


@pytest.mark.parametrize("answer", ["yes", "true", "True", "'yes'", '"on"', "no", "'no'"])
def test_defaults_of_the_user_count(
    template: Path, output: Path, cookiecutter_home: Path, answer: str
) -> None:
    config = cookiecutter_home / "config.yaml"
    config.write_text(f"{config.read_text()}default_context:\n  metrics: {answer}\n")
    parts = frozenset({"metrics"} if "no" not in answer else ())
    files = render(template, output).files()
    assert files.keys() == sources(template, Choice("database", parts)).keys() | {".env"}


@pytest.mark.parametrize("answer", ["maybe", "", "2", "yes please"])
def test_what_is_neither_yes_nor_no_is_refused(
    rendered: Rendered, output: Path, answer: str
) -> None:
    with pytest.raises(ValueError, match="limits could not be converted to a boolean"):
        rendered({"limits": answer})
    assert list(output.iterdir()) == []


def replay(template: Path, output: Path, cookiecutter_home: Path, **changed: object) -> Project:
    """Render from the file of answers that the last run has left, changed by hand."""
    (file,) = (cookiecutter_home / "replay").iterdir()
    content = json.loads(file.read_text("utf-8"))
    content["cookiecutter"].update(changed)
    file.write_text(json.dumps(content), "utf-8")
    return Project(Path(cookiecutter(str(template), replay=True, output_dir=str(output))))


def test_a_run_can_be_repeated(
    template: Path, output: Path, rendered: Rendered, cookiecutter_home: Path
) -> None:
    expected = rendered(EVERYTHING["database"]).files()
    project = replay(template, output / "again", cookiecutter_home)
    assert {**project.files(), ".env": b""} == {**expected, ".env": b""}


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ("limits", "yes", "limits takes true or false, not 'yes'"),
        ("vaults", 1, "vaults takes true or false, not 1"),
        ("metrics", None, "metrics takes true or false, not None"),
        ("key_store", "file", "key_store takes database or env, not 'file'"),
        ("missing_key_status", "404", 'missing_key_status takes "403" or "401", not \'404\''),
        ("project_name", None, "project_name takes text, not None"),
        ("api_key_header", 1, "api_key_header takes text, not 1"),
    ],
)
def test_answers_that_were_changed_by_hand_are_checked(
    template: Path,
    output: Path,
    rendered: Rendered,
    cookiecutter_home: Path,
    capfd: pytest.CaptureFixture[str],
    question: str,
    answer: object,
    message: str,
) -> None:
    rendered()
    capfd.readouterr()
    with pytest.raises(FailedHookException):
        replay(template, output / "again", cookiecutter_home, **{question: answer})
    assert capfd.readouterr().err == f"Refused: {message}.\n"
    assert list((output / "again").iterdir()) == []


@pytest.mark.parametrize(
    ("slug", "usable"),
    [(slug, usable) for slug, usable in SLUGS if slug.strip("./ ") and "/" not in slug],
)
def test_a_slug_that_was_changed_by_hand_is_checked(
    template: Path,
    output: Path,
    rendered: Rendered,
    cookiecutter_home: Path,
    capfd: pytest.CaptureFixture[str],
    slug: str,
    usable: str,
) -> None:
    rendered()
    capfd.readouterr()
    with pytest.raises(FailedHookException):
        replay(template, output / "again", cookiecutter_home, project_slug=slug)
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("Refused: project_slug ")
    assert said.endswith(f"; try: {usable}")
    assert list((output / "again").iterdir()) == []


def test_texts_that_were_changed_by_hand_count(
    template: Path, output: Path, rendered: Rendered, cookiecutter_home: Path
) -> None:
    changed = {"project_name": 'The "O\'Brien" \\ Gateway', "project_slug": "gateway"}
    texts = {"description": 'It "is"\n new', "author_name": " "}
    expected = rendered({**EVERYTHING["database"], **changed, **texts}).files()
    rendered({**EVERYTHING["database"], "project_name": "Other", "author_name": "Somebody"})
    again = output / "again"
    project = replay(template, again, cookiecutter_home, **changed, **texts)
    assert {**project.files(), ".env": b""} == {**expected, ".env": b""}


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ("limits", "no limits"),
        ("management", "no management"),
        ("metrics", "no metrics"),
        ("gateway", "no gateway"),
        ("transfer", "no transfer"),
        ("limits metrics deploy", "no limits and no metrics"),
        ("limits management metrics vaults", "no limits and no management and no metrics"),
    ],
)
def test_parts_that_need_a_database_are_refused_without_one(
    rendered: Rendered,
    output: Path,
    capfd: pytest.CaptureFixture[str],
    parts: str,
    named: str,
) -> None:
    with pytest.raises(FailedHookException):
        rendered({"key_store": "env", **dict.fromkeys(parts.split(), "yes")})
    said = f"Refused: key_store=env has {named}; answer no, or take key_store=database.\n"
    assert capfd.readouterr().err == said
    assert nothing_is_left(output)


@pytest.mark.parametrize("header", ["api-key", "X-API-Key", "x", "acme-token-2"])
def test_any_proper_header_works(rendered: Rendered, header: str) -> None:
    project = rendered({"api_key_header": header})
    assert f'API_KEY_HEADER: Final = "{header}"' in project.read("app/constants.py")
    assert f'curl -H "{header}: $KEY"' in project.read("README.md")


def test_a_status_that_is_no_choice_is_refused(rendered: Rendered, output: Path) -> None:
    with pytest.raises(ValueError, match="missing_key_status"):
        rendered({"missing_key_status": "404"})
    assert list(output.iterdir()) == []
