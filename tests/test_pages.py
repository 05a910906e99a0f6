"""The pages: they are short, and everything that they name exists."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.parts import ALL, NONE, PATHS, Choice, marked_lines, sources
from tests.project import FLAVOURS, ROOT, TOP, Project
from tests.reader import chapter, page

Rendered = Callable[..., Project]

CHOICES = [*NONE.values(), *ALL.values()]

REPOSITORY = "https://github.com/org/fastapi-apikey-template/blob/main/"
PAGES = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")) + [ROOT / "benchmarks/README.md"]
README = {"database": 200, "env": 130}  # lines
OF_TEMPLATE = {"README.md": 110, "CONTRIBUTING.md": 110}
OF_PART = 60
ADD_ONS = ("add_ons.py", "test_add_ons.py")
SUITES = (
    ROOT / "tests",
    ROOT / "thorough",
    ROOT / TOP / "tests",
    ROOT / TOP / "flavours/env/tests",
)
# What backticks around a path of the project or of the template look like.
NAMED = re.compile(r"`((?:app|tests|deploy|docs|thorough|tools|hooks|findings|\.github)/[\w./-]*)`")


def functions(place: Path) -> set[str]:
    """The names of those in a module, or in all modules of a folder."""
    return {
        node.name
        for path in ([place] if place.is_file() else place.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def rows(text: str) -> Iterator[list[str]]:
    """Of all tables in it, without their heads."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        for row in table.splitlines()[2:]:
            yield [cell.strip() for cell in row.strip("|").split(" | ")]


# Length.


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_readme_of_a_project_is_short(rendered: Rendered, choice: Choice) -> None:
    project = rendered(choice.answers)
    assert len(project.read("README.md").splitlines()) <= README[choice.flavour]
    readmes = list(project.path.glob("app/*/README.md"))
    assert {path.parent.name for path in readmes} == choice.parts - {"deploy"}
    for path in readmes:
        assert len(path.read_text("utf-8").splitlines()) <= OF_PART, path


def test_what_the_template_says_of_itself_is_short() -> None:
    for name, most in OF_TEMPLATE.items():
        assert len((ROOT / name).read_text("utf-8").splitlines()) <= most, name


# What they name.


def missing_links(text: str, folder: Path) -> list[str]:
    """Links to files that are not there, and to pages of the template that it does not have."""
    links = re.findall(r"\]\(([^)\s]+)\)|<(https?://[^>]+)>", text)
    targets = [(link or bare).partition("#")[0] for link, bare in links]
    return [
        target
        for target in targets
        if not (
            (ROOT / target.removeprefix(REPOSITORY)).exists()
            if target.startswith(REPOSITORY)
            else target.startswith(("http://", "https://")) or (folder / target).exists()
        )
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_of_the_template_lead_somewhere(path: Path) -> None:
    assert missing_links(path.read_text("utf-8"), path.parent) == []


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_links_and_names_of_a_project_lead_somewhere(rendered: Rendered, choice: Choice) -> None:
    project = rendered(choice.answers)
    for path in project.path.rglob("*.md"):
        text = path.read_text("utf-8")
        assert missing_links(text, path.parent) == [], path
        named = set(NAMED.findall(text))
        assert [name for name in sorted(named) if not (project.path / name).exists()] == [], path


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_readme_names_no_part_that_was_not_chosen(rendered: Rendered, flavour: str) -> None:
    text = rendered(NONE[flavour].answers).read("README.md")
    for part in ALL["database"].parts:
        assert f"app/{part}" not in text


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_readme_names_all_that_there_is(rendered: Rendered, choice: Choice) -> None:
    """Each file and folder in `app/`, and each package of the machinery."""
    project = rendered(choice.answers)
    text = project.read("README.md")
    for path in project.path.glob("app/*"):
        if "__" not in path.name:
            assert f"`app/{path.name}{'/' * path.is_dir()}`" in text
    packages = {path.name for path in project.path.glob("app/auth/*/")}
    table = text.partition("| `app/auth/` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)/`", table, re.MULTILINE)) == packages - {"__pycache__"}


def test_names_of_the_pages_lead_somewhere(rendered: Rendered) -> None:
    project = rendered(ALL["database"].answers)
    for path in PAGES:
        if path.name in ("CHANGELOG.md", "UPGRADING.md"):  # they tell of what was
            continue
        text = path.read_text("utf-8")
        made = set(re.findall(r"^# (app/\S+|tests/\S+)$", text, re.MULTILINE))
        for name in set(NAMED.findall(text)) - made:
            places = (ROOT / name, project.path / name, ROOT / TOP / "flavours/env" / name)
            assert any(place.exists() for place in places), f"{path}: {name}"


@pytest.mark.parametrize(
    ("flavour", "part"),
    [(each, part) for each in FLAVOURS for part in sorted(ALL[each].parts - {"deploy"})],
)
def test_a_part_tells_all_that_goes_with_it(
    rendered: Rendered, template: Path, flavour: str, part: str
) -> None:
    """Its paths, and the files that have lines of it."""
    choice = ALL[flavour]
    told = chapter(rendered(choice.answers).read(f"app/{part}/README.md"), "Take it out")
    named = {name.rstrip("/") for name in re.findall(r"`([^`]+)`", told)}
    files = sources(template, choice)
    paths = {
        path for path in PATHS[part] if any(f"{name}/".startswith(f"{path}/") for name in files)
    }
    assert paths <= named
    for name, source in files.items():
        is_of_a_part = name.startswith("app/") and name.endswith("/README.md")
        if is_of_a_part or any(f"{name}/".startswith(f"{path}/") for path in paths):
            continue
        marked = [parts for _, parts, _ in marked_lines(source.read_text("utf-8"))]
        assert part not in marked or name in named, f"{name} has lines of {part}"


# What they promise.


def named_in(cell: str) -> set[str]:
    return set(re.findall(r"`((?:\w+\.py::)?test_\w+)`", cell))


def test_each_promise_names_its_tests() -> None:
    lean = functions(ROOT / TOP / "tests") | functions(ROOT / TOP / "flavours/env/tests")
    thorough = functions(ROOT / "thorough")
    for path in (ROOT / "tests").glob("test_*.py"):
        thorough |= {f"{path.name}::{name}" for name in functions(path)}
    told = list(rows(page("promises.md")))
    numbers = [row[0] for row in told if row[0]]
    assert list(dict.fromkeys(numbers)) == [f"G{number}" for number in range(1, 36)]
    for number, promise, flavour, *cells in told:
        assert promise.endswith(".")
        assert set(re.findall(r"`(\w+)`", flavour)) <= {*FLAVOURS, *ALL["database"].parts}
        for cell, defined in zip(cells, (lean, thorough), strict=True):
            named = named_in(cell)
            assert named <= defined, f"{number} {promise} {named - defined}"
            assert named or cell.startswith("none: "), f"{number} {promise}"


# What they work with.


def test_each_row_of_works_with_says_what_shows_it() -> None:
    """What it tells to write for a test of add-ons is what that test runs."""
    ran = "".join((ROOT / "tests" / name).read_text("utf-8") for name in ADD_ONS)
    tests = {name for folder in SUITES for name in functions(folder)}
    told = list(rows(page("works-with.md")))
    assert len(told) > 20
    for program, guess, happens, remedy, shown in told:
        assert all((guess, happens, remedy)), program
        assert re.search(r"`[^`]+`|\w/\w+#\d+|https://", shown), f"{program}: nothing shows it"
        named = set(re.findall(r"`(test_\w+)`", shown))
        assert named <= tests, program
        if named & functions(ROOT / "tests" / "test_add_ons.py"):
            written = re.findall("`([^`]+)`", remedy)
            assert [each for each in written if each not in ran] == [], program


# Settings.


def fields_in(path: Path) -> dict[str, ast.expr | None]:
    """The settings of the classes in a module, with what they are by default."""
    return {
        item.target.id.upper(): item.value
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and "Settings" in node.name
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and item.target.id[0].isalpha()
        and item.target.id != "model_config"
    }


def test_every_setting_is_told_with_its_default() -> None:
    fields: dict[str, ast.expr | None] = {}
    for path in (ROOT / TOP).rglob("settings.py"):
        fields |= fields_in(path)
    told = {row[0].strip("`"): row for row in rows(page("settings.md"))}
    code = "".join(path.read_text("utf-8") for path in (ROOT / TOP / "app").rglob("*.py"))
    elsewhere = {name for name in told if name not in fields}
    assert elsewhere == {
        *("SECRETS_DIR", "SECRETS_VAULT", "PROMETHEUS_MULTIPROC_DIR", "FORWARDED_ALLOW_IPS")
    }
    assert all(name in code for name in elsewhere - {"FORWARDED_ALLOW_IPS"})  # uvicorn's
    assert fields.keys() <= told.keys()
    for name, value in fields.items():
        default = value.value if isinstance(value, ast.Constant) else None
        if default not in (None, ""):
            written = f"{default:g}" if isinstance(default, float) else str(default)
            assert told[name][2].strip("`").lower() == written.lower(), name


def test_the_grants_that_are_told_are_those_that_were_tried() -> None:
    tried = (ROOT / "thorough" / "database" / "test_restore.py").read_text("utf-8")
    grants = re.findall(r'GRANTS\w* = """\n(.*?)"""', tried, re.DOTALL)
    assert re.findall(r"```sql\n(.*?)```", page("settings.md"), re.DOTALL) == grants


# The map of the machinery.


def imports_of(folder: Path) -> dict[str, set[str]]:
    """Of each package of the machinery the others that it imports, wherever in its modules."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        package = path.relative_to(folder).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                parts = name.split(".")
                if parts[:2] == ["app", "auth"] and len(parts) > 2 and parts[2] != package:
                    found.setdefault(package, set()).add(parts[2])
    return found


def test_the_map_tells_who_imports_whom() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    folder = ROOT / TOP / "app/auth"
    imports = imports_of(folder)
    for name, names in imports_of(ROOT / TOP / "flavours/env/app/auth").items():
        imports.setdefault(name, set()).update(names)
    _, _, table = text.partition("| `app/auth/` |")
    told: dict[str, set[str]] = {}
    for name, _, imported in rows(f"| `app/auth/` |{table}".partition("\n\n")[0] + "\n"):
        package = name.strip("`/")
        imported_packages = set(re.findall(r"`(\w+)`", imported))
        assert not imported_packages & told.keys(), f"{package} imports what lies above it"
        told[package] = imported_packages
    assert told.keys() == {
        path.name for path in folder.iterdir() if (path / "__init__.py").exists()
    }
    leaves = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    for package, packages in told.items():
        assert packages == imports.get(package, set()) - leaves, package
    assert not {name for leaf in leaves for name in imports.get(leaf, ())} - leaves
