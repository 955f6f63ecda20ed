"""Validate the parameters, write them out in full, and fingerprint the code of every stage.

    python -m stages.resolve

Writes `resolved.yaml`, from which all other stages read their parameters, and
`fingerprints/<stage>.json`: each module that `stages.<stage>` imports, directly or not, with a hash
of its syntax tree. Comments, formatting, docstrings and the words of errors leave the hash as it
is, and modules of `DECIDES_NOTHING` are left out, so that only a real change of code that makes a
stage's result re-runs it. YAML files (the tasks of an evaluation) count to the package
that they lie in, and what they name to the stages of `NAMED_IN_YAML`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
from pathlib import Path

import grimp
import yaml

from heima import config
from heima.results.files import atomic, sha256, write_json
from stages import arguments, other_profiles, runs

PACKAGES = ("heima", "eval", "reports", "stages")
_HEADER = "# Follows from params.yaml: the stage `resolve` writes it (see stages/resolve.py).\n"
NAMED_IN_YAML = {
    "predict": ("eval.vlmevalkit.asking",),
    "latency": ("eval.vlmevalkit.asking",),
    "score": ("eval.vlmevalkit.lmms",),
}
"""What the tasks of a stage name in YAML files, where no import shows it. A rule of scoring is not
among those of `predict`: it decodes no answer again."""

DRAWS_THE_PIPELINE = ("page",)
"""Stages that read dvc.yaml, which DVC lets no stage depend on: its stages are in their
fingerprint."""

DECIDES_NOTHING = {
    "heima.config": "what it makes of the parameters stands in resolved.yaml, which stages read",
    "heima.data.licences": "words",
    "heima.results.bars": "says how far a stage is",
    "stages.arguments": "checks names, and makes nothing",
    "stages.slurm": "starts the same elsewhere: what a node computes, it would compute here",
    "heima.data.hub": "fetches a commit's files, whose checksums `prepare` and `teach` write down",
}
"""Modules, and packages with all that lies in them, that no fingerprint holds, and why."""


@functools.cache
def syntax_hash(source: str) -> str:
    """SHA-256 of a module's syntax tree without docstrings and the words of errors.

    Kept, because most modules count to many stages.

    >>> syntax_hash("x = 1  # why") == syntax_hash("'A module.'\\nx = 1")
    True
    >>> syntax_hash("raise ValueError(f'no {x}')") == syntax_hash("raise ValueError('none')")
    True
    """
    tree = _Wordless().visit(ast.parse(source))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            # A lone string is a docstring, or documents the attribute above it.
            node.body = [
                child
                for child in node.body
                if not (
                    isinstance(child, ast.Expr)
                    and isinstance(child.value, ast.Constant)
                    and isinstance(child.value.value, str)
                )
            ]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


class _Wordless(ast.NodeTransformer):
    """Takes the message from each `raise Error(…)`: its last argument, if that is a text.

    What else an error carries (a reason that is counted, an exit code) decides, and stays.
    """

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        if isinstance(node.exc, ast.Call) and node.exc.args and _is_text(node.exc.args[-1]):
            node.exc = ast.Call(node.exc.func, node.exc.args[:-1], node.exc.keywords)
        return node


def _is_text(node: ast.expr) -> bool:
    literal = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return literal or isinstance(node, ast.JoinedStr)


def module_path(root: Path, module: str) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _packages(module: str) -> set[str]:
    """The packages around a module: `a.b.c` lies in `a.b` and `a`."""
    parts = module.split(".")
    return {".".join(parts[:depth]) for depth in range(1, len(parts))}


def _owner(root: Path, file: Path) -> str:
    """The package that a file lies in, below folders that are none."""
    folder = next(one for one in file.parents if (one / "__init__.py").exists())
    return ".".join(folder.relative_to(root).parts)


def fingerprint(root: Path, stage: str, graph: grimp.ImportGraph) -> dict[str, str]:
    """Module or YAML file -> hash, for what decides and `stages.<stage>` imports below `root`.

    `graph` must have lost `DECIDES_NOTHING` (`code_graph`).
    """
    entries = (f"stages.{stage}", *NAMED_IN_YAML.get(stage, ()))
    modules = {one for entry in entries for one in (entry, *graph.find_upstream_modules(entry))}
    # Importing a module runs its packages' __init__ too.
    modules |= {parent for module in modules for parent in _packages(module)}
    hashes = {
        module: syntax_hash(module_path(root, module).read_text(encoding="utf-8"))
        for module in modules
    }
    for package in sorted({module.partition(".")[0] for module in modules}):
        for file in sorted((root / package).rglob("*.yaml")):
            if _owner(root, file) in modules:
                hashes[file.relative_to(root).as_posix()] = sha256(file)
    if stage in DRAWS_THE_PIPELINE:
        pipeline = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))
        hashes["dvc.yaml"] = hashlib.sha256(json.dumps(pipeline).encode()).hexdigest()
    return dict(sorted(hashes.items()))


def code_graph() -> grimp.ImportGraph:
    """Who imports whom, without the modules that decide nothing."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    for module in DECIDES_NOTHING:
        for one in {module, *graph.find_descendants(module)}:
            graph.remove_module(one)
    return graph


def names(pipeline: Path) -> list[str]:
    """The stages of a `dvc.yaml` that have a fingerprint: all but this one."""
    stages = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"]
    return [stage for stage in stages if stage != "resolve"]


def write(params: config.Params) -> None:
    """Write `resolved.yaml`."""
    text = yaml.safe_dump(config.resolved(params), sort_keys=False)
    with atomic(config.RESOLVED) as temporary:
        temporary.write_text(_HEADER + text, encoding="utf-8")


def main() -> None:
    try:
        params = config.load()
    except config.ConfigError as error:
        sys.exit(f"error: {error}")
    if runs.write(params):
        sys.exit(
            f"error: {runs.FILE} did not list the runs of params.yaml and is written anew; run "
            "`dvc repro` again (`python -m stages.repro` does it at once)"
        )
    if found := other_profiles.left_over(params):
        sys.exit(f"error: {other_profiles.refusal(found, params)}")
    write(params)
    graph = code_graph()
    for stage in names(Path("dvc.yaml")):
        write_json(Path("fingerprints") / f"{stage}.json", fingerprint(Path.cwd(), stage, graph))


if __name__ == "__main__":
    arguments.parser_of(__doc__).parse_args()
    main()
