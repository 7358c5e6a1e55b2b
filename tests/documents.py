"""The commands, files and Python of README.md and of the pages in docs/, as a reader would type them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "/records/" not in page]
_PATH = r"[\w/]+\.(?:py|yaml)"
_NAMED = re.compile(rf"^`({_PATH})`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HERE = re.compile(r"<<'(\w+)'\n.*?\n\1\n", re.DOTALL)
_ASSIGNED = re.compile(r"^(\w+)=\((.*)\) *(?:#.*)?$")
_COMMAND = re.compile(r"(?:\w+=\S+ )*(ltexp|make|python -m benchmarks)\b(?![-./])")


class Command(NamedTuple):
    """A command line of a page.

    Attributes:
        words: without comments, `"${NAME[@]}"` filled in.
        folder: where the page has gone with `cd` before, relative to the project.
    """

    words: list[str]
    folder: str


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language; "" for those without one, which hold commands."""
    return [text for name, text in _BLOCK.findall((ROOT / page).read_text()) if name == language]


def commands(page: str) -> list[Command]:
    """Those of its blocks, one after the other, and those within its text."""
    found = [command for block in blocks(page, "") for command in _of_block(block)]
    text = _BLOCK.sub("", (ROOT / page).read_text())
    inline = (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text))
    return found + [Command(_words(code), ".") for code in inline if _COMMAND.match(code) and " " in code]


def _of_block(block: str) -> Iterator[Command]:
    variables: dict[str, list[str]] = {}
    folder = "."
    for line in _HERE.sub("\n", block).replace("\\\n", " ").splitlines():
        if assigned := _ASSIGNED.match(line.strip()):
            variables[assigned[1]] = shlex.split(assigned[2])
        elif line.startswith("cd "):
            folder = line.split()[1]
        elif _COMMAND.match(line.strip()):
            yield Command(_words(line, variables), folder)


def _words(line: str, variables: dict[str, list[str]] | None = None) -> list[str]:
    words: list[str] = []
    for word in shlex.split(line, comments=True):
        array = re.fullmatch(r"\$\{(\w+)\[@\]\}", word)
        if array:
            words += (variables or {})[array[1]]
        elif words or not re.fullmatch(r"[A-Z_]+=.*", word):  # not the environment before a command
            words.append(word)
    return words


def files(page: str) -> dict[str, str]:
    """The files that a page shows: blocks of Python and YAML below their path, or that open with it in a comment."""
    shown = dict(_NAMED.findall((ROOT / page).read_text()))
    for language in ("python", "yaml"):
        for text in blocks(page, language):
            head = [line.removeprefix("# ") for line in text.splitlines()[:2] if line.startswith("# ")]
            if path := next((line for line in head if re.fullmatch(_PATH, line)), None):
                shown[path] = text
    return shown
