"""Does what a page says, to the letter."""

import re
import shlex

from tests.project import ROOT, Project


def page(name: str) -> str:
    """The text of a page in `docs/`."""
    return (ROOT / "docs" / name).read_text("utf-8")


def chapter(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    _, found, rest = f"\n{text}".partition(f"\n## {heading}\n")
    assert found, f"there is no chapter {heading}"
    return rest.partition("\n## ")[0]


def blocks(text: str, language: str = r"\w+") -> list[tuple[str, str]]:
    """The languages and the contents of the blocks of code."""
    return re.findall(rf"```({language})\n(.*?)```", text, re.DOTALL)


class Reader:
    """Follows the blocks of some chapters in a project.

    The first line of a block of code names the file that it is the content of. A diff is a change
    of that file. A console block has a command on each line.
    """

    def __init__(self, project: Project, text: str, *chapters: str, **variables: str) -> None:
        self.project, self.variables = project, variables
        self.blocks = blocks("".join(chapter(text, heading) for heading in chapters))

    def run(self, *command: str) -> str:
        return self.project.run(*command, check=True, **self.variables).stdout

    def follow(self, language: str, text: str) -> str:
        """What its last command says."""
        said = ""
        if language == "console":
            for line in text.splitlines():
                said = self.run(*shlex.split(line, comments=True))
            return said
        name, _, content = text.partition("\n")
        path = self.project.path / name.removeprefix("# ")
        if language == "diff":
            lines = content.splitlines(keepends=True)
            old, new = ("".join(line[1:] for line in lines if line[0] in f" {s}") for s in "-+")
            before = path.read_text("utf-8")
            assert before.count(old) == 1, f"{path} has no {old}"
            content = before.replace(old, new)
        path.write_text(content, "utf-8")
        return said
