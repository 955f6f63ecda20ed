"""The everyday commands: `heima COMMAND …` is `python -m` of the module that does it.

    heima                     # list the commands
    heima compare heima one-shot
    heima -C ../other repro   # in another repository

A command runs in a process of its own, in the folder of the repository: the current one, or that of
`-C`. Its own `--help` says what it takes.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MARKS = ("params.yaml", "dvc.yaml")
"""What tells that a folder is a repository of this harness."""


@dataclass(frozen=True)
class Command:
    """A module that `python -m` runs with `arguments` before the user's own.

    `anywhere`: it does not need the repository. `says`: what it does, where its module's first line
    is another's.
    """

    module: str
    arguments: tuple[str, ...] = ()
    anywhere: bool = False
    says: str = ""


COMMANDS = {
    "repro": Command("stages.repro"),
    "plan": Command("stages.plan"),
    "profile": Command("stages.profile"),
    "check": Command("stages.check"),
    "verify": Command("stages.verify"),
    "compare": Command("stages.compare"),
    "show": Command(
        "stages.tables", ("--show",), says="Print a table or the claims: `heima show benchmarks`"
    ),
    "verdicts": Command("stages.tables", ("--verdicts",), says="Print how many claims came out"),
    "page": Command("stages.page", ("--show",), says="Say where the page of results is"),
    "experiments": Command(
        "dvc",
        ("exp", "show", "--only-changed"),
        says="List DVC's experiments with what differs between them",
    ),
    "track": Command("stages.track"),
    "export": Command("stages.export"),
    "score": Command("eval.score", anywhere=True),
    "chat": Command("heima.chat", anywhere=True),
}


def main(words: Sequence[str] | None = None) -> None:
    """Become the command that the words name; ends the process where they name none."""
    given = list(sys.argv[1:] if words is None else words)
    folder = Path()
    if given[:1] == ["-C"]:
        if len(given) < 2 or not Path(given[1]).is_dir():
            sys.exit(f"error: -C {' '.join(given[1:2])}: there is no such folder")
        folder, given = Path(given[1]), given[2:]
    if not given or given[0] in ("-h", "--help", "help"):
        print(listed())
        return
    name, *rest = given
    if name not in COMMANDS:
        sys.exit(f"error: {name!r} is not one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    lacking = [mark for mark in _MARKS if not (folder / mark).is_file()]
    if lacking and not command.anywhere:
        sys.exit(
            f"error: {folder.resolve()} has no {lacking[0]}: run `heima {name}` in the repository, "
            "or say where it is with -C FOLDER"
        )
    os.chdir(folder)
    # Commands of stages say `python`: this one.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", command.module, *command.arguments, *rest])


def listed() -> str:
    """The commands, each with what it does."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {said(command)}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: heima [-C FOLDER] COMMAND …", "", *lines])


def said(command: Command) -> str:
    """What a command does: the first sentence of its module, which is read and not imported."""
    if command.says:
        return command.says
    package, _, name = command.module.partition(".")
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or ()) if found else []
    text = (Path(places[0]) / f"{name}.py").read_text(encoding="utf-8")
    doc = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return doc.partition(": `")[0].rstrip(".")
