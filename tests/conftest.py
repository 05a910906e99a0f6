from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.project import Project, copy_template, keep_home_clean, render


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(autouse=True)
def cookiecutter_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where cookiecutter keeps its replay files, instead of your home."""
    monkeypatch.setenv("COOKIECUTTER_CONFIG", "")  # so that it is put back afterwards
    return keep_home_clean(tmp_path / "cookiecutter-home")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The folder to render into."""
    folder = tmp_path / "inside" / "output"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def rendered(template: Path, output: Path) -> Callable[..., Project]:
    def render_with(answers: Mapping[str, str] | None = None, **options: bool) -> Project:
        return render(template, output, answers, **options)

    return render_with
