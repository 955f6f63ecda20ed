"""What is left of a run, here and in git: parameters, hashes of outputs, metrics, tables.

A record is what git holds of a run. That of the profile of `params.yaml` is `dvc.lock` with the
hashes of all outputs, `metrics/`, `params.yaml` and `reports/<profile>/tables/*.csv`. All but the
tables are of one profile at a time; of any other one `reports/<profile>/record.json` has, beside
its tables, what they held when it was run (`stages.keep` writes it).
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from heima.results.files import atomic

NOT_COMPARED = {
    "metrics/latency.json": "measurements of a machine",
    "reports/*/tables/latency.csv": "measurements of a machine",
}
"""Files without a result, as patterns, and why."""

_NO_RESULTS = ("fingerprints/", "metrics/", "reports/", "latency")
"""Outputs of stages that are compared otherwise, or not at all."""

_ROOT = ("dvc.lock", "params.yaml")

_WIDTH = 300
"""A mapping whose JSON is longer than that has a line for each entry: about one a cell."""


class RecordError(ValueError):
    """There is no such record."""


@dataclass(frozen=True)
class Run:
    """What is left of a run: parameters, hashes of outputs by stage, metrics, tables.

    `where` says where that was read; `left_over` names entries of `dvc.lock` and files of
    `metrics/` beside it that none of its stages has made: another profile's, or older ones.
    """

    params: Mapping[str, Any]
    outs: Mapping[str, Mapping[str, str]]
    metrics: Mapping[str, Mapping[str, Any]]
    tables: Mapping[str, str]
    where: str = field(default="", compare=False)
    left_over: tuple[str, ...] = field(default=(), compare=False)

    @property
    def profile(self) -> str:
        """The profile's name."""
        return str(self.params["profile"])

    @property
    def seeds(self) -> list[int]:
        """The training seeds."""
        return list(self.params.get("seeds", [self.params["seed"]]))

    @property
    def told_left_over(self) -> str:
        """The first that are left over, and how many more there are."""
        more = f" and {len(self.left_over) - 3} more" if len(self.left_over) > 3 else ""
        return f"{', '.join(self.left_over[:3])}{more}"

    def provenance(self, name: str) -> dict[str, Any]:
        """File -> that entry of its provenance, where it has one."""
        found = {path: content.get("provenance", {}) for path, content in self.metrics.items()}
        return {path: entry[name] for path, entry in found.items() if name in entry}


class _File(BaseModel):
    """`reports/<profile>/record.json`: a run without its tables."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    params: dict[str, Any]
    outs: dict[str, dict[str, str]]
    metrics: dict[str, dict[str, Any]]


def file_of(profile: str) -> str:
    """Where the record of a profile lies that is not the one of git's `params.yaml`."""
    return f"reports/{profile}/record.json"


def write(root: Path, run: Run) -> Path:
    """Write a run's record below `root`, beside its tables, and return where.

    The same run gives the same bytes: keys are sorted, and no number is rounded.
    """
    content = _File(
        params=dict(run.params),
        outs={stage: dict(outs) for stage, outs in run.outs.items()},
        metrics={path: dict(metrics) for path, metrics in run.metrics.items()},
    )
    path = root / file_of(run.profile)
    with atomic(path) as temporary:
        temporary.write_text(laid_out(content.model_dump()) + "\n", encoding="utf-8")
    return path


def laid_out(value: Any, depth: int = 0) -> str:
    """JSON with sorted keys, for a diff to read: short mappings in a line, others an entry a line.

    >>> print(laid_out({"b": {"value": 0.5, "n": 4}, "a": "x" * 270}).replace("x" * 270, "x..."))
    {
     "a": "x...",
     "b": {"n": 4, "value": 0.5}
    }
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)
    if not isinstance(value, dict) or depth + len(line) <= _WIDTH:
        return line
    indent = " " * (depth + 1)
    rows = [
        f"{indent}{json.dumps(key, ensure_ascii=False)}: {laid_out(one, depth + 1)}"
        for key, one in sorted(value.items())
    ]
    return "{\n" + ",\n".join(rows) + "\n" + " " * depth + "}"


def in_folder(root: Path, stages: Collection[str]) -> Run:
    """The run whose results lie below `root`: what `stages`, those of its pipeline, have made.

    Raises `RecordError` where there are no results.
    """
    names = [*_ROOT]
    names += [path.relative_to(root).as_posix() for path in root.glob("metrics/**/*.json")]
    names += [path.relative_to(root).as_posix() for path in root.glob("reports/*/tables/*.csv")]
    files = {name: (root / name).read_bytes() for name in names if (root / name).exists()}
    for name in _ROOT:
        if name not in files:
            raise RecordError(f"{root} has no {name}, so no results")
    entries = _entries(files)
    made = {out["path"] for stage in stages for out in entries.get(stage, {}).get("outs", [])}
    others = {name for name in files if name.startswith("metrics/") and name not in made}
    run = _run({name: content for name, content in files.items() if name not in others}, str(root))
    return replace(
        run,
        outs={stage: outs for stage, outs in run.outs.items() if stage in stages},
        left_over=(
            *(f"dvc.lock: {stage}" for stage in sorted(entries.keys() - {*stages})),
            *sorted(others),
        ),
    )


def at_revision(root: Path, revision: str, profile: str) -> Run:
    """The run of a profile whose results git holds at `revision`. Raises `RecordError`."""
    packed = subprocess.run(
        ["git", "-C", str(root), "archive", "--format=tar", revision], capture_output=True
    )
    if packed.returncode:
        raise RecordError(f"git has no {revision!r}: {packed.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        files = {
            member.name: file.read()
            for member in archive
            if member.isfile()
            and _is_record(member.name)
            and (file := archive.extractfile(member)) is not None
        }
    if _of_root(files) == profile:
        return _run(files, revision)
    if file_of(profile) in files:
        return _from_file(files, profile, f"{revision}:{file_of(profile)}")
    raise RecordError(_none(files, revision, profile))


def in_root(root: Path, revision: str) -> str | None:
    """The profile of git's `params.yaml` at `revision`, whose record is no file of its own."""
    shown = subprocess.run(
        ["git", "-C", str(root), "show", f"{revision}:./params.yaml"], capture_output=True
    )
    if shown.returncode:
        return None
    return str(_yaml(shown.stdout)["profile"])


def _is_record(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        name in _ROOT
        or (path.parts[0] == "metrics" and path.suffix == ".json")
        or (path.match("reports/*/tables/*.csv") and len(path.parts) == 4)
        or (path.match(file_of("*")) and len(path.parts) == 3)
    )


def _of_root(files: Mapping[str, bytes]) -> str | None:
    """The profile whose record lies at the root, if there is one."""
    if all(name in files for name in _ROOT):
        return str(_yaml(files["params.yaml"])["profile"])
    return None


def _none(files: Mapping[str, bytes], revision: str, profile: str) -> str:
    """In a sentence: no record of this profile, which have one, what to do."""
    others = {PurePosixPath(name).parts[1] for name in files if name.endswith("/record.json")}
    if (own := _of_root(files)) is not None:
        others.add(own)
    only = f", only of {', '.join(sorted(others))}" if others else ""
    return (
        f"{revision} has no recorded results of the profile {profile}{only}: run a profile that is "
        f"recorded (`python -m stages.profile NAME`), name a revision that has this one "
        f"(`make check AGAINST=REVISION`), or keep these results (`python -m stages.keep` "
        f"writes {file_of(profile)}) and commit them"
    )


def _yaml(text: bytes) -> Any:
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _entries(files: Mapping[str, bytes]) -> Mapping[str, Any]:
    """Stage -> its entry in `dvc.lock`."""
    return _yaml(files["dvc.lock"]).get("stages") or {}


def _run(files: Mapping[str, bytes], where: str) -> Run:
    params = _yaml(files["params.yaml"])
    return Run(
        params=params,
        outs={
            stage: {out["path"]: out["md5"] for out in entry.get("outs", []) if _is_result(out)}
            for stage, entry in _entries(files).items()
        },
        metrics={
            name: json.loads(content)
            for name, content in files.items()
            if name.startswith("metrics/") and _is_compared(name)
        },
        tables=_tables(files, params["profile"]),
        where=where,
    )


def _from_file(files: Mapping[str, bytes], profile: str, where: str) -> Run:
    try:
        content = _File.model_validate(json.loads(files[file_of(profile)]))
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"])) or "the file"
        raise RecordError(f"{where} is no record ({key}: {fault['msg']})") from error
    except ValueError as error:
        raise RecordError(f"{where} is no record ({error})") from error
    if (found := content.params.get("profile")) != profile:
        raise RecordError(f"{where} is of the profile {found}, not of {profile}")
    tables = _tables(files, profile)
    return Run(content.params, content.outs, content.metrics, tables, where)


def _tables(files: Mapping[str, bytes], profile: str) -> dict[str, str]:
    return {
        name: content.decode("utf-8")
        for name, content in files.items()
        if name.startswith(f"reports/{profile}/tables/") and _is_compared(name)
    }


def _is_compared(name: str) -> bool:
    return not any(fnmatch(name, pattern) for pattern in NOT_COMPARED)


def _is_result(out: Mapping[str, Any]) -> bool:
    return not out["path"].startswith(_NO_RESULTS)
