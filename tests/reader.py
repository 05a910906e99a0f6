"""Does what a chapter of a generated README says, to the letter."""

import re
import shlex

from tests.project import Project


class Reader:
    def __init__(self, project: Project, chapter: str, **variables: str) -> None:
        self.project, self.variables = project, variables
        text = project.read("README.md").partition(f"\n## {chapter}\n")[2].partition("\n## ")[0]
        self.blocks: list[tuple[str, str]] = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)

    def run(self, *command: str) -> str:
        return self.project.run(*command, check=True, **self.variables).stdout

    def follow(self, language: str, text: str) -> None:
        if language == "console":
            for line in text.splitlines():
                self.run(*shlex.split(line))
            return
        name, _, content = text.partition("\n")
        path = self.project.path / name.removeprefix("# ")
        if language == "diff":
            lines = content.splitlines(keepends=True)
            old, new = ("".join(line[1:] for line in lines if line[0] in f" {s}") for s in "-+")
            before = path.read_text("utf-8")
            assert before.count(old) == 1, f"{path} has no {old}"
            content = before.replace(old, new)
        path.write_text(content, "utf-8")
