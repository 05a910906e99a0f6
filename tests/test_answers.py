"""Every answer works, or is refused in one line with nothing left behind."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cookiecutter.exceptions import FailedHookException

from tests.project import Project, run

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
    assert yaml.safe_load(project.read(".pre-commit-config.yaml"))
    assert project.read("README.md").startswith(f"# {as_text(name)}\n")
    project.run("ruff", "check", "--no-cache", ".")
    project.run("ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_works(rendered: Rendered, text: str) -> None:
    name = f"Service {text}"
    answers = {"project_name": name, "description": text, "author_name": text}
    project = rendered({question: literal(answer) for question, answer in answers.items()})
    check(project, name, text, text)


def test_empty_texts_work(rendered: Rendered) -> None:
    project = rendered({"description": "", "author_name": " "})
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
    project = rendered({"project_name": "Acme Gateway", "project_slug": slug})
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


@pytest.mark.parametrize("header", ["api-key", "X-API-Key", "x", "acme-token-2"])
def test_any_proper_header_works(rendered: Rendered, header: str) -> None:
    project = rendered({"api_key_header": header})
    assert f'API_KEY_HEADER: Final = "{header}"' in project.read("app/constants.py")
    assert f'curl -H "{header}: $KEY"' in project.read("README.md")


def test_a_status_that_is_no_choice_is_refused(rendered: Rendered, output: Path) -> None:
    with pytest.raises(ValueError, match="missing_key_status"):
        rendered({"missing_key_status": "404"})
    assert list(output.iterdir()) == []
