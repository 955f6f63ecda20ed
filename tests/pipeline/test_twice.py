"""Nothing that depends on a path, a clock, an address or the order of a set is in an output."""

from __future__ import annotations

import os
import sys

import pytest

from tests import kills
from tests.pipeline import comparing
from tests.pipeline.conftest import check_out


@pytest.mark.slow
def test_another_folder_another_hash_seed_and_other_temporary_files_give_the_same_bytes(
    reproduction, tmp_path, monkeypatch
):
    # Tests have run some of its stages again, and not what shows their seconds.
    reproduction.checkout.restore()
    (tmp_path / "temporary files").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary files"))
    # The toy's stages overrule it (heima.results.machine.PINS), the run itself does not.
    monkeypatch.setenv("PYTHONHASHSEED", "12345")
    monkeypatch.setenv("LANG", "C")
    other = check_out(tmp_path / "another folder with a longer name")
    other.run(sys.executable, "-m", "stages.repro", "--no-live", "--jobs", "1")
    assert len(comparing.outputs(other.root)) > 100
    assert comparing.differing(reproduction.root, other.root) == []
    assert os.listdir(tmp_path / "temporary files") == []


@pytest.mark.slow
def test_a_pipeline_killed_at_random_moments_ends_as_an_undisturbed_one(tmp_path, capfd):
    """KILLS=100 for more of them (`python -m tests.kills`)."""
    faults = kills.main(int(os.environ.get("KILLS", "8")), 1, tmp_path)
    assert faults == 0, capfd.readouterr().out
