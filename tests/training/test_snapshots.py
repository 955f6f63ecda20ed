"""Snapshots: the newest whole one is found, whatever happened to the others."""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from torch import nn

from heima.training import snapshots
from heima.training.snapshots import Resume


def tiny() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(run: Resume, steps: int) -> tuple[nn.Module, int]:
    """A run of so many updates with a snapshot after each; also the step that it began after."""
    model, optimizer = tiny()
    found = run.load(model, optimizer) or {"step": 0}
    for step in range(found["step"] + 1, steps + 1):
        optimizer.zero_grad()
        model(torch.full((1, 3), float(step))).square().sum().backward()
        optimizer.step()
        run.save(model, optimizer, {"step": step})
    return model, found["step"]


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_two_snapshots_are_kept(tmp_path):
    run = Resume(tmp_path / "run")
    train(run, 4)
    assert [one.name for one in run.snapshots()] == ["step-00000004", "step-00000003"]
    (tmp_path / "run" / "step-00000005.partial").mkdir()
    train(run, 5)
    assert [one.name for one in (tmp_path / "run").iterdir() if one.suffix] == []
    assert len(run.snapshots()) == 2


def emptied(file):
    file.write_bytes(b"")


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file):
    """Of the same size: only its hash tells."""
    content = bytearray(file.read_bytes())
    content[random.Random(len(content)).randrange(len(content))] ^= 1
    file.write_bytes(content)


def lost(file):
    file.unlink()


@pytest.mark.parametrize("damage", [emptied, cut, flipped, lost])
def test_a_run_goes_on_from_the_snapshot_before_a_damaged_one(tmp_path, capsys, damage):
    """Whichever file it is, and it ends with the bits of an undisturbed run."""
    undisturbed, _ = train(Resume(tmp_path / "undisturbed"), 5)
    train(Resume(tmp_path / "run"), 3)
    names = [file.name for file in (tmp_path / "run" / "step-00000003").iterdir()]
    assert {"hashes.json", "progress.json", ".metadata"} < set(names)
    for name in names:
        copy = Resume(tmp_path / f"copy-{name}")
        shutil.copytree(tmp_path / "run", copy.folder)
        damage(copy.folder / "step-00000003" / name)
        model, since = train(copy, 5)
        assert since == 2 and equal(model, undisturbed), name
        said = capsys.readouterr().out
        assert "step-00000003 is damaged" in said and name in said and "goes on" in said


def test_with_both_damaged_a_run_begins_anew(tmp_path, capsys):
    run = Resume(tmp_path / "run")
    undisturbed, _ = train(run, 3)
    for snapshot in run.snapshots():
        emptied(snapshot / ".metadata")
    model, since = train(run, 3)
    assert since == 0 and equal(model, undisturbed)
    assert capsys.readouterr().out.count("is damaged") == 2


def test_a_finished_run_forgets_those_of_its_stage_and_no_others(tmp_path, params, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = params.model_copy(update={"precision": "bf16"})
    one, two = (snapshots.of("distill@a", p, "precision", inputs=()) for p in (params, changed))
    other = snapshots.of("distill@b", params, "precision", inputs=())
    assert len({one.folder, two.folder, other.folder}) == 3
    for run in (one, two, other):
        train(run, 1)
    two.discard()
    assert not one.folder.exists() and not two.folder.exists() and other.newest()
