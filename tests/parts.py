"""What each choice of parts should leave of the template, worked out apart from the hook."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest

from tests.project import EVERYTHING, FLAVOURS, ROOT, TOP

_MARK = re.compile(r"[ \t]*(?:#|//|<!--) part: (.*?)(?: -->)?$")


def _read_paths() -> dict[str, list[str]]:
    """The paths that belong to each part, as the hook lists them."""
    hook = (ROOT / "hooks" / "post_gen_project.py").read_text("utf-8")
    (listed,) = re.findall(r"^PARTS = (\{.*?^\})$", hook, re.MULTILINE | re.DOTALL)
    return {part: paths.split() for part, paths in ast.literal_eval(listed).items()}


PATHS = _read_paths()


@dataclass(frozen=True)
class Choice:
    flavour: str
    parts: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return "-".join((self.flavour, *sorted(self.parts))) if self.parts else self.flavour

    @property
    def answers(self) -> dict[str, str]:
        return {"key_store": self.flavour, **dict.fromkeys(sorted(self.parts), "yes")}

    @property
    def left_out(self) -> list[str]:
        """The paths that go, without those of `flavours/`."""
        chosen = {self.flavour, *self.parts}
        return [path for part in PATHS.keys() - chosen for path in PATHS[part]]

    def has(self, parts: str) -> bool:
        """Whether a line with a mark of these parts stays."""
        return not {self.flavour, *self.parts}.isdisjoint(parts.split(", "))


def choices(flavour: str) -> list[Choice]:
    """Every combination of the parts of the flavour, none of them first, all of them last."""
    parts = [question for question in EVERYTHING[flavour] if question != "key_store"]
    return [
        Choice(flavour, frozenset(some))
        for count in range(len(parts) + 1)
        for some in combinations(parts, count)
    ]


NONE = {flavour: choices(flavour)[0] for flavour in FLAVOURS}
ALL = {flavour: choices(flavour)[-1] for flavour in FLAVOURS}
CHOICES = [choice for flavour in FLAVOURS for choice in choices(flavour)]
# As parameters of a test: any two parts together, and any one left out. The rest is for `make matrix`.
SOME_CHOICES = [
    pytest.param(
        choice,
        id=str(choice),
        marks=[pytest.mark.matrix]
        if 2 < len(choice.parts) < len(ALL[choice.flavour].parts) - 1
        else [],
    )
    for choice in CHOICES
]
VENDORED = frozenset({f"app/docs/static/swagger-ui{end}" for end in (".css", "-bundle.js")})


def files_in(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sources(template: Path, choice: Choice) -> dict[str, Path]:
    """The files of the template that make a project, by the names that they get there."""
    folder = template / TOP
    files = files_in(folder) | files_in(folder / "flavours" / choice.flavour)
    return {
        name: path
        for name, path in files.items()
        if not any(f"{name}/".startswith(f"{gone}/") for gone in ["flavours", *choice.left_out])
    }


def marked_lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Number, parts, and what the line is without its mark, for each line that has one."""
    for number, line in enumerate(text.splitlines(), 1):
        mark = _MARK.search(line)
        if mark:
            yield number, mark[1], line[: mark.start()]


def settled(text: str, choice: Choice) -> list[str]:
    """The lines that stay, without blank ones and without marks."""
    marked = {number: (parts, line) for number, parts, line in marked_lines(text)}
    kept = (
        marked[number][1] if number in marked else line
        for number, line in enumerate(text.splitlines(), 1)
        if number not in marked or choice.has(marked[number][0])
    )
    return [line for line in kept if line.strip()]
