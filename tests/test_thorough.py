"""The thorough tests, in a project with every part: they pass, and reach every branch."""

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.project import EVERYTHING, FLAVOURS, Project, render, with_tools

pytestmark = pytest.mark.slow

# Servers and databases of their own, so two at a time.
OPTIONS = {"database": ("-n", "2"), "env": ()}


@pytest.fixture(
    scope="module",
    params=[pytest.param(each, marks=pytest.mark.xdist_group(each)) for each in FLAVOURS],
)
def flavour(request: pytest.FixtureRequest) -> str:
    flavour: str = request.param
    return flavour


@pytest.fixture(scope="module")
def project(flavour: str, template: Path) -> Iterator[Project]:
    # Not in pytest's folder: each pytest that starts closes that to the user PostgreSQL runs as.
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        project = render(template, Path(folder), EVERYTHING[flavour])
        project.run("uv", "sync", "--quiet")
        project.lay_thorough(flavour)
        yield project


def test_they_pass(project: Project, flavour: str) -> None:
    coverage = ("--cov", "--cov-config=tests/thorough/coverage.ini")
    tests = with_tools(flavour, "pytest", *OPTIONS[flavour], *coverage, "tests/thorough")
    result = project.run(*tests)
    assert re.search(r"\d+ passed in", result.stdout), result.stdout
    assert "Total coverage: 100.00%" in result.stdout
    assert not re.search(r"skipped|xfailed|deselected|warning", result.stdout.splitlines()[-1])


def test_they_are_typed(project: Project, flavour: str) -> None:
    project.run(*with_tools(flavour, "mypy"))
