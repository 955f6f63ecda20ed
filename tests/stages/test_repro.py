"""`stages.repro` on a tiny DVC repository: real processes, real kills, DVC's own lock file."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psutil
import pytest
import yaml

from stages import gpus, handover, progress, repro, schedule, warm
from stages.schedule import Needs, Slots
from tests.conftest import ROOT
from tests.stages.conftest import PIPELINE, STAGES, Repository, alive, until


def test_any_number_of_jobs_gives_the_lock_and_the_files_of_dvc_repro(new):
    plain, one, two = new("plain"), new("one"), new("two")
    plain.finished(plain.start("dvc", "repro"))
    for repository, jobs in ((one, "1"), (two, "2")):
        repository.finished(repository.repro("--jobs", jobs))
        assert sorted(repository.ran()) == sorted(plain.ran())
        assert repository.lock() == plain.lock()
        assert repository.outputs() == plain.outputs()
    # Both go on from each other: nothing is left to do.
    assert "8 of 8 stages are up to date" in plain.finished(plain.repro())
    two.finished(two.start("dvc", "repro"))
    for repository in (plain, two):
        assert len(repository.ran()) == 8
        assert repository.lock() == plain.lock()


def test_a_change_runs_what_it_touches_and_no_more(new):
    repository = new("repository")
    repository.finished(repository.repro("branch@y", "after"))
    assert set(repository.ran()) == {"base", "y", "risky", "after"}
    repository.finished(repository.repro())
    assert len(repository.ran()) == 8
    lock = repository.lock()

    # What has vanished, and was run before, comes from DVC's cache.
    (repository.root / "out" / "y").unlink()
    output = repository.finished(repository.repro())
    assert "branch@y restored" in output and len(repository.ran()) == 8
    assert repository.lock() == lock

    # The same output again: what follows is left alone.
    commands = PIPELINE.replace("cmd: sh work.sh risky", "cmd: sh work.sh  risky")
    (repository.root / "dvc.yaml").write_text(commands)
    repository.finished(repository.repro())
    assert repository.ran()[8:] == ["risky"]


def test_independent_stages_run_at_once_and_a_measurement_alone(new):
    repository = new("repository")
    repository.pause(0.6)
    repository.finished(repository.repro("--jobs", "3"))
    running: set[str] = set()
    together = 0
    for word, name, _ in repository.journal():
        running = running | {name} if word == "start" else running - {name}
        together = max(together, len(running))
        assert "measure" not in running or running == {"measure"}
    assert 2 <= together <= 3


def test_a_failure_stops_only_what_depends_on_it(new):
    repository = new("repository")
    (repository.root / "fail-risky").touch()
    output = repository.finished(repository.repro("--jobs", "2"), status=1)
    assert "about to sleep" in output, "the end of the failed stage's log"
    assert ".cache/logs/risky.log" in output
    assert "failed: risky" in output and "1 not run, for want of them: after" in output
    assert set(repository.ran()) == {"base", "x", "y", "z", "measure", "risky", "last"}
    other = repository.repro("--may-fail", "after")
    repository.finished(other, status=1)
    output = repository.finished(repository.repro("--may-fail", "risky"))
    assert "failed: risky" in output and "1 not run, for want of them: after" in output
    (repository.root / "fail-risky").unlink()
    repository.finished(repository.repro("--jobs", "2"))
    assert repository.ran()[7:] == ["risky", "risky", "risky", "after"]


@pytest.mark.parametrize(
    "number",
    # tests/stages/test_leftovers.py sends SIGINT, too.
    [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM, signal.SIGKILL],
)
def test_a_run_that_is_ended_ends_its_stages_and_goes_on(new, number):
    repository = new("repository")
    repository.pause(60)
    repository.pause(0, "base")
    process = repository.repro("--jobs", "2")
    until(lambda: len(repository.ran()) == 3)
    process.send_signal(number)
    status = -number if number == signal.SIGKILL else 128 + number
    output = repository.finished(process, status)
    assert "python -m stages.repro --jobs 2" in output or number == signal.SIGKILL
    until(lambda: not any(alive(pid) for _, _, pid in repository.journal()))
    begun = repository.ran()
    # DVC's list of files in use, should it have been killed while it wrote it.
    used = repository.root / ".dvc" / "tmp" / "rwlock"
    if number == signal.SIGKILL:
        used.write_text(used.read_text()[:9])
    repository.pause(0)
    repository.finished(repository.repro("--jobs", "2"))
    # What was finished is not run again, what was not is. A killed run has not written dvc.lock.
    assert repository.ran().count("base") == 1
    assert sorted(repository.ran()[3:]) == sorted(
        {"x", "y", "z", "measure", "risky", "after", "last"}
    )
    assert set(begun[1:]) < set(repository.ran()[3:])


def test_two_runs_take_turns(new):
    repository = new("repository")
    repository.pause(60)
    first = repository.repro("base")
    until(repository.journal)
    second = repository.repro("base")
    assert "another stages.repro runs here" in second.stdout.readline()
    repository.pause(0)
    first.kill()
    first.communicate()
    repository.finished(second)
    assert repository.ran() == ["base", "base"]


def test_a_killed_stage_fails_and_the_same_command_runs_it(new):
    repository = new("repository")
    repository.finished(repository.repro("base"))
    repository.pause(2)
    process = repository.repro("--jobs", "3", "branch@x", "branch@y")
    until(lambda: {"x", "y"} < set(repository.ran()))
    for _, name, pid in repository.journal():
        if name == "x":
            os.kill(pid, signal.SIGKILL)
    assert "failed: branch@x" in repository.finished(process, status=1)
    repository.finished(repository.repro("branch@x", "branch@y"))
    assert repository.ran() == ["base", *repository.ran()[1:3], "x"]


def test_what_a_dying_child_has_started_ends_with_it(new):
    repository = new("repository")
    repository.pause(60)
    process = repository.repro("base")
    until(repository.journal)
    (_, _, stage) = repository.journal()[0]
    os.kill(psutil.Process(stage).ppid(), signal.SIGKILL)
    assert "base failed" in repository.finished(process, status=1)
    assert not alive(stage)


def test_wrong_words_are_named(new):
    repository = new("repository")
    (repository.root / "dvc.yaml").write_text(PIPELINE.replace("machine", "everything"))
    output = repository.finished(repository.repro(), status=1)
    assert "measure: meta: needs: 'everything' is none of cpu, gpu, machine" in output
    assert "'nothing'" in repository.finished(repository.repro("nothing"), status=1)
    (repository.root / "dvc.yaml").write_text(PIPELINE)
    output = repository.finished(repository.repro("--may-fail", "nothing"), status=2)
    assert "--may-fail: not among the stages to run: nothing" in output


def test_what_stages_took_is_told_and_kept(new):
    repository = new("repository")
    output = repository.finished(repository.repro())
    *lines, blank, time_, energy, dollars = output.splitlines()
    assert not blank and time_.startswith("time: ") and " of CPU time" in time_
    assert energy.startswith("energy: ") and dollars.startswith("dollars: none")
    table = lines[-11:]
    assert [line.split()[0] for line in table] == [
        "stage", "-----------", *progress_order(), "all",
    ]  # fmt: skip
    kept = json.loads((repository.root / progress.DURATIONS).read_text())
    assert set(kept) == STAGES
    assert all(set(taken) == {"wall", "cpu", "peak_mb"} for taken in kept.values())
    (repository.root / "in.txt").write_text("2\n")
    assert ", about " in repository.finished(repository.repro()), "an estimate from the last run"


def progress_order() -> list[str]:
    return ["base", "branch@x", "branch@y", "branch@z", "measure", "risky", "after", "last"]


# The server

PROBE = "import os, signal, subprocess, sys, time\nexec(sys.argv[1])\n"


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[repro.WarmServer]:
    """A server of a package `stages` that has a module for tests: `probe` runs its argument."""
    (tmp_path / "stages").mkdir()
    for name in ("__init__", "handover", "parent_death", "warm"):
        shutil.copy(ROOT / "stages" / f"{name}.py", tmp_path / "stages")
    (tmp_path / "stages" / "probe.py").write_text(PROBE)
    monkeypatch.chdir(tmp_path)
    # What `stages` and the server set has to reach a child as it reaches a plain stage.
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    progress.LOGS.mkdir(parents=True)
    server = repro.WarmServer(["stages.probe"])
    yield server
    server.close()


def probe(code: str, *arguments: str, plain: bool = False, **options) -> subprocess.Popen[str]:
    environment = dict(os.environ) | options.pop("environment", {})
    if plain:
        del environment[handover.ADDRESS]
    return subprocess.Popen(
        [sys.executable, "-m", "stages.probe", code, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


FACTS = """
print(sys.argv[2:], os.getcwd(), ascii(os.environ.get("WORD")), __name__, sys.stdin.read())
print(os.path.basename(sys.argv[0]), sys.path[0], file=sys.stderr)
print(os.environ["OMP_NUM_THREADS"], os.environ.get("HF_HUB_OFFLINE"), file=sys.stderr)
"""


def test_a_command_is_the_same_with_the_server_and_without(served, tmp_path):
    (tmp_path / "folder").mkdir()
    results = []
    for plain in (True, False):
        process = probe(
            FACTS, "a b", "ü", plain=plain, cwd="folder", environment={"WORD": "\udcff é"}
        )
        out, error = process.communicate("read", timeout=60)
        results.append((out, error, process.returncode))
    assert results[0] == results[1]
    assert "read" in results[0][0] and results[0][2] == 0


@pytest.mark.parametrize(
    "code",
    [
        "sys.exit(7)",
        "sys.exit('a message')",
        "print('said'); raise ValueError('no')",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os.execv(sys.executable, [sys.executable, '-c', 'print(5); exit(4)'])",
    ],
)
def test_a_command_ends_as_its_child_ends(served, code):
    plain, by_server = probe(code, plain=True), probe(code)
    expected, found = (one.communicate(timeout=60) for one in (plain, by_server))
    assert by_server.returncode == plain.returncode
    assert found[0] == expected[0]
    assert found[1].splitlines()[-1:] == expected[1].splitlines()[-1:]


SLEEPER = """
child = subprocess.Popen(["sleep", "60"])
print(os.getpid(), child.pid, os.getppid(), len(os.listdir("/proc/self/task")), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("killed", ["command", "server"])
def test_a_child_ends_with_its_command_and_with_the_server(served, killed):
    process = probe(SLEEPER)
    child, grandchild, server, _ = map(int, process.stdout.readline().split())
    assert server != process.pid and psutil.Process(server).num_threads() == 1
    os.kill(process.pid if killed == "command" else server, signal.SIGKILL)
    until(lambda: not alive(child), seconds=5)
    if killed == "command":
        until(lambda: not alive(grandchild), seconds=5)
    else:
        os.kill(grandchild, signal.SIGKILL)
        assert process.wait(timeout=10) == 1
        # The next one runs by itself, and says so.
        out, error = probe("print('alone')").communicate(timeout=60)
        assert out == "alone\n" and "the warm server has gone" in error
    process.communicate()


def test_the_server_tells_what_a_child_took_and_ends_with_the_run(served):
    code = "end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    assert probe(code, environment={"DVC_STAGE": "distill@p1"}).wait(timeout=60) == 0
    (report,) = served.reports()
    assert report["stage"] == "distill@p1" and report["cpu"] >= 0.3 and report["peak_mb"] > 1
    process = probe(SLEEPER)
    child = int(process.stdout.readline().split()[0])
    served.close()
    assert process.wait(timeout=10) == 1 and not alive(child)
    process.communicate()


# Slots


def test_every_stage_gets_its_turn_and_no_gpu_is_shared():
    """Random graphs on random machines, run by a clock of whole seconds."""
    for seed in range(60):
        draw = random.Random(seed)
        names = [f"s{i}" for i in range(draw.randrange(1, 15))]
        upstream = {
            name: {other for other in names[:i] if draw.random() < 0.2}
            for i, name in enumerate(names)
        }
        needs = {name: draw.choice(list(Needs)) for name in names}
        gpus = tuple("abcd"[: draw.randrange(5)])
        wanted = {name: draw.randrange(1, 6) for name in names}
        slots = Slots(draw.randrange(1, 5), gpus)
        running: dict[str, tuple[str, ...]] = {}
        finished: set[str] = set()
        while len(finished) < len(names):
            ready = [
                name
                for name in names
                if upstream[name] <= finished and name not in running and name not in finished
            ]
            running |= schedule.admitted(ready, running, needs, slots, wanted.get)
            assert 0 < len(running) <= slots.jobs
            taken = [gpu for held in running.values() for gpu in held]
            assert len(taken) == len(set(taken)) and set(taken) <= set(gpus)
            for name, held in running.items():
                if needs[name] is Needs.MACHINE:
                    assert len(running) == 1 and held == gpus
                elif needs[name] is Needs.GPU and gpus:
                    assert len(held) == min(wanted[name], len(gpus))
                else:
                    assert not held
            ends = draw.choice(sorted(running))
            del running[ends]
            finished.add(ends)


def test_a_stage_of_all_gpus_is_not_starved_by_those_of_one():
    needs = dict.fromkeys("abc", Needs.GPU)
    slots = Slots(8, ("0", "1"))
    # `b` wants both: once it comes first, `c` waits behind it.
    wanted = {"a": 1, "b": 8, "c": 1}.get
    assert schedule.admitted(["b", "c"], {"a": ("0",)}, needs, slots, wanted) == {}
    assert schedule.admitted(["b", "c"], {}, needs, slots, wanted) == {"b": ("0", "1")}


def test_the_longest_chain_comes_first():
    dependents = {"a": ["b"], "b": ["d"], "c": ["d"], "d": []}
    chains = schedule.priorities(dependents, ["a", "b", "c", "d"], {"a": 1, "b": 5, "c": 3})
    assert chains == {"a": 7, "b": 6, "c": 4, "d": 1}
    # No run is shorter than its longest chain, nor than its work shared out.
    assert schedule.remaining({"a": 1, "b": 5, "c": 3, "d": 1}, chains, jobs=4) == (7, 0)
    assert schedule.remaining({"a": 1, "b": 5, "c": 3, "d": 1}, chains, jobs=1) == (10, 0)
    assert schedule.remaining({"c": 3, "d": None}, chains, jobs=1) == (4, 1)


@pytest.mark.parametrize("chosen, names", [(None, ["0", "1"]), ("1", ["1"]), ("", [])])
def test_gpus_are_those_that_cuda_may_see(tmp_path, monkeypatch, chosen, names):
    fake_gpus(tmp_path, 2)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert list(gpus.visible()) == names


@pytest.mark.parametrize(
    ("hardware", "engine", "expected"),
    [
        ({}, "transformers", {"teach@base": 1, "distill@p1-42": 4, "predict@heima": 4}),
        (
            {"processes": 1},
            "transformers",
            {"distill@p1-42": 1, "predict@heima": 1},
        ),
        ({"processes": 2}, "transformers", {"teach@base": 1, "distill@p1-42": 2, "states@42": 2}),
        ({}, "vllm", {"predict@heima": 1, "reconstruct@caption-42": 4}),
    ],
)
def test_a_stage_gets_a_gpu_for_each_of_its_processes(
    tmp_path, monkeypatch, hardware, engine, expected
):
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["family"] = "toy-idefics3"  # which vLLM serves
    raw["hardware"] = hardware
    raw["predict"]["engine"] = engine
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    wanted = gpus.wanted("abcd")
    assert {name: wanted(name) for name in expected} == expected


def test_on_a_cluster_the_gpus_here_are_not_shared_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not gpus.on_a_cluster(), "a pipeline without parameters"
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for slurm, asked in ((None, False), ({"nodes": 2}, True)):
        raw["hardware"]["slurm"] = slurm
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
        assert gpus.on_a_cluster() is asked
    raw["hardware"]["slurm"] = {"gpus": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"hardware\.slurm\.gpus = 2: unknown key"):
        gpus.on_a_cluster()


def fake_gpus(folder: Path, count: int) -> None:
    """An `nvidia-smi` that lists so many."""
    tool = folder / "nvidia-smi"
    lines = "".join(f"echo '{number}, GPU-{number:02}'\n" for number in range(count))
    tool.write_text(f"#!/bin/sh\n{lines}")
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("processes", "at_once"),
    [(1, 3), *(pytest.param(count, 1, marks=pytest.mark.slow) for count in (2, None))],
)
def test_variants_run_side_by_side_each_on_its_gpu(tmp_path, processes, at_once):
    """Three cards that are not there, and what each command sees of them."""
    commands = Repository(tmp_path)
    commands.finished(commands.start("git", "init", "--quiet"))
    commands.finished(commands.start("dvc", "init", "--quiet"))
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["hardware"]["processes"] = processes
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    work = 'echo "start $1 $CUDA_VISIBLE_DEVICES" >> journal; sleep 1; echo "end $1 x" >> journal'
    (tmp_path / "work.sh").write_text(work)
    variant = {"cmd": "sh work.sh ${item}", "meta": {"needs": "gpu"}}
    stages = {"predict": {"foreach": ["a", "b", "c"], "do": variant}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    tools = tmp_path / "tools"
    tools.mkdir()
    fake_gpus(tools, 3)
    commands.environment["PATH"] = f"{tools}{os.pathsep}{commands.environment['PATH']}"
    commands.environment.pop("CUDA_VISIBLE_DEVICES", None)
    commands.finished(commands.repro())
    held: dict[str, set[str]] = {}
    most = 0
    for word, name, devices in map(str.split, (tmp_path / "journal").read_text().splitlines()):
        if word == "end":
            del held[name]
            continue
        seen = set(devices.split(","))
        assert len(seen) == (processes or 3) and seen <= {"0", "1", "2"}
        assert not any(seen & others for others in held.values())
        held[name] = seen
        most = max(most, len(held))
    assert most == at_once


def test_the_server_knows_every_module_that_it_is_to_import():
    for stage, modules in warm.LATER.items():
        for name in (stage, *modules):
            if name.partition(".")[0] in ("stages", "eval", "heima"):
                assert (ROOT / name.replace(".", "/")).with_suffix(".py").exists(), name


def test_a_log_shows_the_last_state_of_a_bar(tmp_path):
    log = tmp_path / "log"
    log.write_text("start\n\n 10%\r 20%\r\x1b[2K 30%\r\nstep 4/8\n", encoding="utf-8")
    assert progress.last_lines(log, 2) == [" 30%", "step 4/8"]
    assert progress.last_lines(tmp_path / "none", 1) == []


def test_a_lock_released_twice_closes_no_other_file(tmp_path):
    from stages.pipeline import _Turns

    lock = _Turns(mock.MagicMock(), str(tmp_path / "lock"))
    lock.lock()
    lock.unlock()
    with (tmp_path / "other").open("wb") as other:
        lock.unlock()
        other.write(b"still open")
