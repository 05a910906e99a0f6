"""The list of mutants fits the template."""

import ast
from collections.abc import Callable

import pytest

from tests.project import EVERYTHING, ROOT, Project
from tools.mutants import SUITES


@pytest.mark.parametrize("flavour", SUITES)
def test_each_changes_one_place_of_its_file(rendered: Callable[..., Project], flavour: str) -> None:
    project = rendered(EVERYTHING[flavour])
    for mutant in SUITES[flavour]:
        text = project.read(mutant.file)
        assert text.count(mutant.old) == 1, f"{mutant.what}: {mutant.old!r} in {mutant.file}"
        assert mutant.new != mutant.old
        ast.parse(text.replace(mutant.old, mutant.new))  # what is no Python proves nothing


@pytest.mark.parametrize("flavour", SUITES)
def test_each_names_tests_that_exist(flavour: str) -> None:
    for mutant in SUITES[flavour]:
        assert mutant.tests
        for name in mutant.tests.split():
            paths = [ROOT / "thorough" / part / f"test_{name}.py" for part in ("common", flavour)]
            assert any(path.exists() for path in paths), f"{mutant.what}: {name}"


@pytest.mark.parametrize("flavour", SUITES)
def test_each_has_a_name_of_its_own(flavour: str) -> None:
    names = [mutant.what for mutant in SUITES[flavour]]
    assert len(names) == len(set(names))
