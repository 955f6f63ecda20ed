"""Validate the parameters and `runs.yaml`, and fingerprint the code of every stage.

    python -m stages.fingerprint

Writes `fingerprints/<stage>.json`: each module that `stages.<stage>` imports, directly or not, with
a hash of its syntax tree. Comments, formatting and docstrings leave the hash as it is, so that only
a real change of code that a stage uses re-runs it. YAML files beside a module (the tasks of an
evaluation) count to the package they lie in.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from pathlib import Path

import grimp

from heima import config
from heima.results.files import write_json
from stages import runs

PACKAGES = ("heima", "eval", "reports", "stages")
STAGES = (
    "prepare",
    "rewrite",
    "teach",
    "distill",
    "states",
    "interpret",
    "reconstruct",
    "judge",
    "similarity",
    "predict",
    "score",
    "latency",
    "tables",
    "track",
)


def syntax_hash(source: str) -> str:
    """SHA-256 of a module's syntax tree without docstrings.

    >>> syntax_hash("x = 1  # why") == syntax_hash("'A module.'\\nx = 1")
    True
    """
    tree = ast.parse(source)
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


def module_path(root: Path, module: str) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _packages(module: str) -> set[str]:
    """The packages around a module: `a.b.c` lies in `a.b` and `a`."""
    parts = module.split(".")
    return {".".join(parts[:depth]) for depth in range(1, len(parts))}


def fingerprint(root: Path, stage: str, graph: grimp.ImportGraph) -> dict[str, str]:
    """Module or YAML file -> hash, for everything that `stages.<stage>` imports below `root`."""
    entry = f"stages.{stage}"
    modules = {entry, *graph.find_upstream_modules(entry)}
    # Importing a module runs its packages' __init__ too.
    modules |= {parent for module in modules for parent in _packages(module)}
    hashes = {
        module: syntax_hash(module_path(root, module).read_text(encoding="utf-8"))
        for module in modules
    }
    for package in sorted({module.partition(".")[0] for module in modules}):
        for file in sorted((root / package).rglob("*.yaml")):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            hashes[file.relative_to(root).as_posix()] = content
    return dict(sorted(hashes.items()))


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
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    for stage in STAGES:
        write_json(Path("fingerprints") / f"{stage}.json", fingerprint(Path.cwd(), stage, graph))


if __name__ == "__main__":
    main()
