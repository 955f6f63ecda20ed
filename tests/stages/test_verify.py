"""Whatever is altered is named, though its size and its time are those of before."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from eval.judge.cache import Reply, ReplyCache
from heima.vlm.generation import Counts, Generation
from heima.vlm.kept_answers import ROOT as JOURNALS
from heima.vlm.kept_answers import Journal
from stages import verify
from tests.conftest import ROOT


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=root, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished pipeline of two stages, with answers and grades in their caches."""
    root = tmp_path_factory.mktemp("whole")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    assert run(root, "dvc", "init", "--quiet").returncode == 0
    for name in (".dvc/config", "params.yaml"):
        shutil.copy(ROOT / name, root / name)
    (root / "in.txt").write_text("1")
    make = "mkdir out && echo a > out/a && echo b > out/b && echo 1 > m.json"
    pipeline = {
        "stages": {
            "make": {
                "cmd": make,
                "deps": ["in.txt"],
                "outs": ["out", {"m.json": {"cache": False}}],
            },
            "read": {"cmd": "cat out/* > all", "deps": ["out"], "outs": ["all"]},
        }
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    ended = run(root, "stages.repro")
    assert ended.returncode == 0, ended.stderr
    with Journal(root / JOURNALS, {"seed": 1}) as journal:
        journal.append(0, [Generation("yes", Counts(5, 3, 1, 1, 1), "stop", 0.125)])
    with ReplyCache(root / ".cache" / "judge.sqlite") as cache:
        cache.add("k", "server", Reply("4", "m"), 0.25)
    return root


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy", symlinks=True))


@pytest.fixture
def verified(monkeypatch, capsys):
    """Verify a folder in this process; the exit code and the lines."""

    def verify_there(root: Path) -> tuple[int, list[str]]:
        monkeypatch.chdir(root)
        code = 0
        try:
            verify.main()
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr().out.splitlines()

    return verify_there


def flip(path: Path) -> None:
    """Another byte in the middle, at the same time of the same size."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_is_whole_is_whole(whole):
    ended = run(whole, "stages.verify")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "different: 0; named by dvc.lock and not here: 0" in ended.stdout
    assert len(ended.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("in.txt", "in.txt: is not what make read"),
        ("out/b", "out/b: is not what make made"),
        ("m.json", "m.json: is not what make made"),
        ("all", "all: is not what read made"),
        (".dvc/cache/files/md5/??/*[0-9a-f]", "DVC's cache does not have its hash"),
        (".dvc/cache/files/md5/??/*.dir", "DVC's cache does not have its hash"),
        (".dvc/cache/runs/??/*/*", "DVC's run cache does not have its hash"),
        (".cache/predictions/*/0-of-1.jsonl", "line 1 is no finished batch"),
        (".cache/predictions/*/key.json", "is not the key"),
    ],
)
def test_a_flipped_byte_is_named(copy, verified, pattern, named):
    file = min(copy.glob(pattern))
    flip(file)
    code, lines = verified(copy)
    assert code == 1
    name = str(file.relative_to(copy))
    assert len(lines) == 2 and name in lines[0] and named in lines[0], lines
    assert "different: 1" in lines[1]


def test_more_and_fewer_files_and_grades_are_named(copy, verified):
    (copy / "out" / "a").unlink()
    (copy / "out" / "c").write_text("c")
    with closing(sqlite3.connect(copy / ".cache" / "judge.sqlite")) as database, database:
        database.execute("UPDATE replies SET content = '5'")
    _, lines = verified(copy)
    assert lines[:-1] == [
        "out/a: is missing of what make made",
        "out/c: is not among what make made",
        ".cache/judge.sqlite: the reply k is not what was kept",
    ]


def test_what_was_never_here_is_no_fault(copy, verified):
    for name in ("out", ".dvc/cache"):
        shutil.rmtree(copy / name)
    code, lines = verified(copy)
    assert code == 0 and len(lines) == 1 and "not here: 1" in lines[0]
