"""The rooms of a generated project: who imports whom, how long a module is, how large it all is."""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from operator import le
from pathlib import Path

import pytest

from tests.parts import (
    ALL,
    NONE,
    PATHS,
    SOME_CHOICES,
    VENDORED,
    Choice,
    marked_lines,
    sources,
)
from tests.project import FLAVOURS, Project

Chosen = Callable[[Choice], Project]

# What a project may hold at most: files, and lines but for the two vendored files of Swagger UI.
BUDGETS = {
    NONE["database"]: (86, 8_300),
    NONE["env"]: (60, 4_600),
    Choice("database", ALL["database"].parts - {"gateway", "transfer"}): (140, 13_700),
    ALL["database"]: (152, 14_900),
}
LONGEST_MODULE = 350
# What is imported by the name of a module, and which distribution brings it.
DISTRIBUTIONS = {
    "alembic": "alembic",
    "anyio": "fastapi",
    "azure": "azure-identity",
    "boto3": "boto3",
    "botocore": "boto3",
    "click": "typer",
    "dotenv": "python-dotenv",
    "fastapi": "fastapi",
    "google": "google-cloud-secret-manager",
    "httpx": "httpx",
    "hvac": "hvac",
    "opentelemetry": "opentelemetry-api",
    "prometheus_client": "prometheus-client",
    "psycopg": "psycopg",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "pydantic_settings": "pydantic-settings",
    "pytest": "pytest",
    "pythonjsonlogger": "python-json-logger",
    "requests": "hvac",
    "sqlalchemy": "sqlalchemy",
    "starlette": "starlette",
    "typer": "typer",
    "uvicorn": "uvicorn",
    "valkey": "valkey",
}


@dataclass(frozen=True)
class Imported:
    """One name, or a whole module where `name` is empty."""

    module: str
    name: str
    line: int


@cache
def imports_of(source: bytes, package: str) -> tuple[Imported, ...]:
    """What a module of this package imports, in functions too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Imported(alias.name, "", node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) - node.level + 1]
            parts = [*(around if node.level else []), *([node.module] if node.module else [])]
            found += [Imported(".".join(parts), alias.name, alias.lineno) for alias in node.names]
    return tuple(found)


@cache
def names_in(source: bytes) -> frozenset[str]:
    """What a module has at its top, within `if` and `try` too."""
    names: set[str] = set()

    def collect(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names.update((each.asname or each.name).split(".")[0] for each in node.names)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                names.update(
                    each.id
                    for each in ast.walk(node)
                    if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
                )
            elif isinstance(node, ast.If | ast.Try):
                collect([*node.body, *node.orelse])

    collect(ast.parse(source).body)
    return frozenset(names)


@dataclass(frozen=True)
class Modules:
    """The Python modules of a project by their full names."""

    sources: Mapping[str, bytes]
    packages: frozenset[str]

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> "Modules":
        found: dict[str, bytes] = {}
        packages: set[str] = set()
        for name in files:
            if name.endswith(".py"):
                parts = name.removesuffix(".py").split("/")
                packages.update(".".join(parts[:end]) for end in range(1, len(parts)))
                module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                found[module] = files[name]
        return cls(found, frozenset(packages))

    def imports(self, module: str) -> tuple[Imported, ...]:
        package = module if module in self.packages else module.rpartition(".")[0]
        return imports_of(self.sources[module], package)

    def target(self, imported: Imported) -> str:
        """The module that is meant. What is no module of the project stays as it is."""
        submodule = f"{imported.module}.{imported.name}"
        return submodule if submodule in self.sources else imported.module

    def edges(self, module: str) -> set[str]:
        """The modules of the project that it imports."""
        targets = {self.target(imported) for imported in self.imports(module)}
        return {target for target in targets if target in self.sources and target != module}


@pytest.mark.parametrize("choice", SOME_CHOICES)
def test_all_that_is_imported_is_there(chosen: Chosen, choice: Choice) -> None:
    files = chosen(choice).files()
    modules = Modules.of(files)
    pyproject = tomllib.loads(files["pyproject.toml"].decode())
    extras = pyproject["project"].get("optional-dependencies", {}).values()
    groups = [pyproject["project"]["dependencies"], pyproject["dependency-groups"]["dev"], *extras]
    installed = {re.split(r"[\[<>=]", each)[0] for group in groups for each in group}
    missing = []
    for module, source in modules.sources.items():
        compile(source, module, "exec")
        for each in modules.imports(module):
            top = each.module.partition(".")[0]
            if top in ("app", "tests"):
                there = modules.target(each) != each.module or (
                    each.module in modules.sources
                    and each.name in {"", *names_in(modules.sources[each.module])}
                )
                if not there and f"{each.module}.{each.name}" not in modules.packages:
                    missing.append(f"{module}:{each.line}: {each.module} {each.name}")
            elif top not in sys.stdlib_module_names and DISTRIBUTIONS.get(top) not in installed:
                missing.append(f"{module}:{each.line}: {each.module} is not in pyproject.toml")
    assert not missing, "\n".join(missing)


# What is started by name, or is there for endpoints of the owner.
ROOTS = ("app.main", "app.cli", "app.__main__", "app.dependencies", "app.migrations.env")


@pytest.mark.parametrize("choice", SOME_CHOICES)
def test_no_module_is_there_that_nothing_imports(chosen: Chosen, choice: Choice) -> None:
    modules = Modules.of(chosen(choice).files())
    needed: set[str] = set()
    named = ("tests", *ROOTS)
    more = {each for each in modules.sources if each.startswith(named)}
    while more:
        needed |= more
        packages = {each.rpartition(".")[0] for each in more} & modules.sources.keys()
        more = packages.union(*map(modules.edges, more)) - needed
    unneeded = sorted(modules.sources.keys() - needed)
    assert not unneeded


# Who may import whom, in a project with everything on.


@pytest.fixture(params=ALL.values(), ids=str)
def modules(request: pytest.FixtureRequest, chosen: Chosen) -> Modules:
    return Modules.of(chosen(request.param).files())


def test_no_module_imports_itself_by_way_of_others(modules: Modules) -> None:
    graph = {module: modules.edges(module) for module in modules.sources}
    while True:
        imported = set().union(*graph.values())
        around = {
            module: edges & graph.keys()
            for module, edges in graph.items()
            if module in imported and edges & graph.keys()
        }
        if around == graph:
            break
        graph = around
    assert not graph, "\n".join(f"{module} -> {sorted(edges)}" for module, edges in graph.items())


def test_the_machinery_knows_the_constants_alone_of_what_is_the_owners(modules: Modules) -> None:
    for module in modules.sources:
        if module.startswith("app.auth"):
            known = {each for each in modules.edges(module) if not each.startswith("app.auth")}
            assert known <= {"app.constants"}, f"{module}: {known}"


def part_of(name: str) -> str | None:
    """The part that a file is of."""
    for part in sorted(ALL["database"].parts):
        if any(f"{name}/".startswith(f"{path}/") for path in PATHS.get(part, [])):
            return part
    return None


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_part_is_imported_by_itself_and_by_marked_lines(template: Path, flavour: str) -> None:
    files = {name: path.read_bytes() for name, path in sources(template, ALL[flavour]).items()}
    modules = Modules.of(files)
    names = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in files
    }
    unmarked = []
    for module in modules.sources:
        name = names[module]
        marks = {number: parts for number, parts, _ in marked_lines(files[name].decode())}
        for each in modules.imports(module):
            target = modules.target(each)
            part = part_of(names[target]) if target in names else None
            if part and part != part_of(name) and part not in marks.get(each.line, "").split(", "):
                unmarked.append(f"{name}:{each.line}: {target}")
    assert not unmarked, "\n".join(unmarked)


def test_no_module_is_long(modules: Modules) -> None:
    lengths = {module: source.count(b"\n") for module, source in modules.sources.items()}
    assert not {module for module, length in lengths.items() if length > LONGEST_MODULE}


@pytest.mark.parametrize("choice", BUDGETS, ids=str)
def test_the_project_is_no_larger_than_it_may_be(chosen: Chosen, choice: Choice) -> None:
    files = chosen(choice).files()
    lines = sum(files[name].count(b"\n") for name in files.keys() - VENDORED)
    size = len(files), lines
    assert all(map(le, size, BUDGETS[choice])), size
