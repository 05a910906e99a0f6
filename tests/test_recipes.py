"""The README's chapter of recipes, followed to the letter."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.project import FLAVOURS, render
from tests.reader import Reader

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_chapter_holds(template: Path, flavour: str) -> None:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        project = render(template, Path(folder), {"key_store": flavour})
        reader = Reader(project, "Recipes")
        assert len(reader.blocks) > 5
        for block in reader.blocks:
            reader.follow(*block)
        reader.run("uv", "run", "pytest", "tests/test_live.py", "tests/test_routes.py")
        for command in ("ruff check", "ruff format --check", "mypy"):
            reader.run("uv", "run", *command.split())
