"""What killed runs leave is cleared, what they took comes back, and what is held stays held."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stages import leftovers
from tests.conftest import ROOT
from tests.stages.conftest import alive, until

DVC = "import sys, time; print(flush=True); time.sleep(60)"


@pytest.fixture
def process(tmp_path):
    """Start a process with a command line like that of DVC, or of another program."""
    started = []

    def start(name="dvc", folder=tmp_path):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(DVC)
        one = subprocess.Popen(
            [sys.executable, str(script), "repro"], cwd=folder, stdout=subprocess.PIPE
        )
        one.stdout.readline()
        started.append(one)
        return one

    yield start
    for one in started:
        one.kill()
        one.wait()
        one.stdout.close()


def listed(path: Path, *users: tuple[int, str]) -> Path:
    """DVC's list of files in use: each user writes one file and reads another."""
    infos = [{"pid": pid, "cmd": cmd} for pid, cmd in users]
    content = {
        "write": {f"/out/{number}": info for number, info in enumerate(infos)},
        "read": {"/in": infos, "/other": infos[:1]},
    }
    path.write_text(json.dumps(content))
    return path


def kept(path: Path) -> set[int]:
    content = json.loads(path.read_text())
    readers = {user["pid"] for users in content["read"].values() for user in users}
    assert all(content["read"].values())
    assert readers == {user["pid"] for user in content["write"].values()}
    return readers


def test_a_file_in_use_stays_in_use(tmp_path, process):
    one = process()
    command = f"{tmp_path / 'bin' / 'dvc'} repro"
    path = listed(tmp_path / "rwlock", (one.pid, command))
    assert leftovers.forget_the_dead(path, tmp_path) == []
    assert kept(path) == {one.pid}


@pytest.mark.parametrize("why", ["ended", "zombie", "other command", "elsewhere", "later"])
def test_nobody_holds_a_file_whose_user_is_another_now(tmp_path, process, why):
    """A number that lives again after a restart: another program, another folder, a later start."""
    command = f"{tmp_path / 'bin' / 'dvc'} repro"
    (tmp_path / "work").mkdir()
    root = tmp_path / "work"
    one = process(
        "editor" if why == "other command" else "dvc", tmp_path if why == "elsewhere" else root
    )
    path = listed(root / "rwlock", (one.pid, command))
    if why in ("ended", "zombie"):
        one.kill()
        until(lambda: not alive(one.pid))
    if why == "ended":
        one.wait()
    if why == "later":
        earlier = time.time() - 3600
        os.utime(path, (earlier, earlier))
    assert leftovers.forget_the_dead(path, root) == [f"{command} (process {one.pid})"]
    assert kept(path) == set()


@pytest.mark.parametrize("text", ["", '{"write": {"/a', '{"write": {}}', "{}"])
def test_a_list_that_was_cut_short_is_empty(tmp_path, text):
    (tmp_path / "rwlock").write_text(text)
    assert leftovers.forget_the_dead(tmp_path / "rwlock", tmp_path) == []
    assert kept(tmp_path / "rwlock") == set()
    assert leftovers.forget_the_dead(tmp_path / "none", tmp_path) == []


def test_a_run_goes_on_though_a_dead_number_lives_again(new):
    """The number is that of this test, as a restarted container would have given it."""
    repository = new("repository")
    repository.finished(repository.repro("base"))
    used = repository.root / ".dvc" / "tmp" / "rwlock"
    dead = {"pid": os.getpid(), "cmd": "dvc repro -s branch@x"}
    out = str(repository.root / "out" / "x")
    used.write_text(json.dumps({"write": {out: dead}, "read": {out: [dead]}}))
    output = repository.finished(repository.repro("branch@x"))
    assert f"dvc repro -s branch@x (process {os.getpid()})" in output
    assert repository.ran() == ["base", "x"]


def test_temporary_files_go_with_their_process(tmp_path, process):
    one = process()
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / "metrics" / "a").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    mine = [f".x.json.{pid}.tmp" for pid in (one.pid, gone.pid)]
    for name in (*mine, ".tmp", "x.json.12.tmp", ".x.12", ".x.json.tmp"):
        (tmp_path / "metrics" / "a" / name).write_text("x")
    for name in (f"metrics/.model.{gone.pid}.tmp", f".git/.x.{gone.pid}.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f".in.{gone.pid}.tmp").write_text("x")
    assert leftovers.remove_temporaries(tmp_path) == [
        f"metrics/.model.{gone.pid}.tmp",
        f"metrics/a/.x.json.{gone.pid}.tmp",
    ]
    assert len(list((tmp_path / "metrics" / "a").iterdir())) == 5
    assert (tmp_path / ".git" / f".x.{gone.pid}.tmp").exists()


def test_what_a_killed_stage_left_re_runs_nothing(new):
    """In a folder that is a dependency, whether it is cleared first (here) or not (plain DVC)."""
    repository = new("repository")
    root = repository.root
    text = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(text.replace("deps: [out/x, out/y", "deps: [out/x, more, out/y"))
    (root / "more").mkdir()
    (root / "more" / "file").write_text("1")
    shutil.copy(ROOT / ".dvcignore", root)
    repository.finished(repository.repro())
    ran = len(repository.ran())
    left = root / "more" / ".file.999999999.tmp"
    left.write_text("half of it")
    repository.finished(repository.start("dvc", "repro"))
    assert left.exists() and len(repository.ran()) == ran
    assert "removed what a killed stage has left: more/.file.999999999.tmp" in (
        repository.finished(repository.repro())
    )
    assert not left.exists() and len(repository.ran()) == ran


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_results_of_a_stopped_stage_come_back_and_how_to_go_on_is_said(new, number):
    repository = new("repository")
    root = repository.root
    repository.finished(repository.repro("base"))
    assert not list((root / ".dvc" / "tmp" / "stages.before").iterdir())
    (root / "base.json").write_text('{"recorded": 1}')
    (root / "in.txt").write_text("2\n")
    repository.pause(60)
    ran = len(repository.ran())
    process = repository.repro("base")
    until(lambda: len(repository.ran()) > ran)
    assert not (root / "base.json").exists(), "DVC has deleted it"
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.communicate()
        (root / "in.txt").write_text("1\n")
        repository.pause(0)
        repository.finished(repository.repro("risky"))
    else:
        output = repository.finished(process, 128 + number)
        assert "Traceback" not in output
        assert "base stopped" in output and "`make repro` goes on" in output
        assert "dvc checkout base" in output
        assert (root / "base.json").read_text() == '{"recorded": 1}'
        repository.finished(repository.start("dvc", "checkout", "base"))
        assert (root / "out" / "base").read_text() == "1\nbase\n"
    assert not list((root / ".dvc" / "tmp" / "stages.before").iterdir())


def test_a_failed_stage_keeps_its_results_of_before(new):
    repository = new("repository")
    repository.finished(repository.repro("base"))
    before = (repository.root / "base.json").read_bytes()
    (repository.root / "in.txt").write_text("2\n")
    (repository.root / "fail-base").touch()
    repository.finished(repository.repro("base"), status=1)
    assert (repository.root / "base.json").read_bytes() == before


def test_copies_are_whole_or_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a").write_text("1")
    (tmp_path / "m.json").write_text("2")
    before = leftovers.Before(tmp_path / "before")
    outs = [Path("tables"), Path("m.json"), Path("new.json")]
    before.keep("s@1", outs)
    shutil.rmtree(tmp_path / "tables")
    (tmp_path / "m.json").write_text("3")
    (tmp_path / "new.json").write_text("4")
    (tmp_path / "before" / "t.partial").mkdir()
    assert before.names() == ["s@1"]
    assert before.bring_back("s@1") == ["tables", "m.json"]
    assert (tmp_path / "tables" / "a").read_text() == "1"
    assert [(tmp_path / name).read_text() for name in ("m.json", "new.json")] == ["2", "4"]
    assert before.bring_back("s@1") == [] and before.names() == []


def test_a_folder_without_git_gives_the_lock_of_one_with_it(new):
    with_git, without, plain = new("with"), new("without"), new("plain")
    for repository in (without, plain):
        shutil.rmtree(repository.root / ".git")
    with_git.finished(with_git.repro("branch@x"))
    output = without.finished(without.repro("branch@x"))
    assert "no git repository here" in output
    assert without.lock() == with_git.lock() and without.outputs() == with_git.outputs()
    # And from then on plain DVC works there, too.
    without.finished(without.start("dvc", "repro", "branch@x"))
    assert len(without.ran()) == 2
    assert plain.start("dvc", "repro").wait() != 0


def writable_by_others(folder: Path) -> list[Path]:
    return [
        path
        for path in [folder, *folder.rglob("*")]
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ]


@pytest.fixture
def clone(new):
    """The tiny pipeline with this repository's configuration of DVC, as git checks it out."""
    repository = new("repository")
    repository.environment.pop("DVC_SITE_CACHE_DIR", None)
    for name in (".dvc/config", ".gitignore", ".cache/dvc/repo/.gitignore"):
        (repository.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, repository.root / name)
    return repository


@pytest.mark.parametrize("command", ["dvc", "stages.repro"])
def test_the_site_cache_lies_in_the_clone_for_nobody_else(clone, command):
    """However it is started; and git sees nothing of it."""
    place = clone.root / ".cache" / "dvc"
    start = clone.start("dvc", "repro", "base") if command == "dvc" else clone.repro("base")
    clone.finished(start)
    assert list(place.glob("repo/*/cache.db")) or list(place.glob("repo/*/*/cache.db"))
    assert not writable_by_others(place)
    git = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all", ".cache"],
        cwd=clone.root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert git.stdout == ""


def test_a_site_cache_that_others_could_write_is_not_read(clone):
    place = clone.root / ".cache" / "dvc" / "repo"
    clone.finished(clone.repro("base"))
    for folder in [one for one in place.iterdir() if one.is_dir()]:
        (folder / "planted").write_text("x")
    place.chmod(0o777)
    clone.finished(clone.repro("base"))
    assert not list(place.glob("*/planted")) and not writable_by_others(place.parent)
    assert len(clone.ran()) == 1


def test_scratch_folders_of_killed_runs_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    gone = subprocess.Popen(["true"])
    gone.wait()
    kept = [f"stages-{os.getpid()}-a", "stages-a", "other"]
    for name in (f"stages-{gone.pid}-a", *kept):
        (tmp_path / name / "inner").mkdir(parents=True)
    with leftovers.scratch() as folder:
        child = subprocess.run(
            [sys.executable, "-c", "import tempfile; print(tempfile.gettempdir())"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert child.stdout.strip() == str(folder) and folder.parent == tmp_path
        assert psutil.pid_exists(os.getpid())
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(kept)
    assert os.environ["TMPDIR"] == str(tmp_path)


def test_ctrl_c_is_no_traceback_while_it_still_imports(new):
    repository = new("repository")
    process = repository.repro("base")
    # The configuration's library is loaded, and DVC's, which take most of the time, are not yet.
    running = psutil.Process(process.pid)
    until(lambda: any("pydantic_core" in one.path for one in running.memory_maps()))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode and "Traceback" not in output
    assert "`make repro` goes on" in output
