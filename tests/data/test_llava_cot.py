"""LLaVA-CoT's data from a hub on loopback: stopped anywhere, damaged, moved, incomplete, given."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import string
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

from heima.config import HubSource
from heima.data import hub, llava_cot
from heima.data.hub import HubError
from heima.data.llava_cot import SourceError, download, in_order, inspect
from heima.results.files import read_json
from tests.eval.hub_server import Repository
from tests.fabricated_sources import write_source

OLD, NEW = "a" * 40, "b" * 40
ID = "Xkev/LLaVA-CoT-100k"
FOLDER = Path("data/llava-cot")
PART = 40_000
SPLIT = [f"i.zip.part-{one}{two}" for one in "ab" for two in string.ascii_lowercase]
PARTS = [f"image.zip.part-{suffix}" for suffix in ("aa", "ab", "ac")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the records, and with images whose zip has two parts and a bit."""
    folder = tmp_path_factory.mktemp("made") / "source"
    write_source(folder, [f"images/{place}.png" for place in range(3)])
    with zipfile.ZipFile(folder / "images.zip", "a") as archive:
        archive.writestr("images/noise.png", random.Random(1).randbytes(2 * PART))
    return folder


@pytest.fixture
def files(made):
    """The repository's files by name, its zip in parts."""
    images = (made / "images.zip").read_bytes()
    parts = {name: images[place * PART :][:PART] for place, name in enumerate(PARTS)}
    records = (made / "train.jsonl").read_bytes()
    return {"README.md": b"read me", "train.jsonl": records, **parts}


@pytest.fixture
def served(tmp_path, hub, files, monkeypatch):
    """A hub with the data set; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.repositories[ID] = Repository({NEW: files})
    return hub


def source(**changes) -> HubSource:
    given = {"kind": "hub", "id": ID, "path": str(FOLDER), "benchmarks": {"ai2d": {"path": "x"}}}
    return HubSource(**given | changes)


def is_whole(made: Path) -> bool:
    """Whether what was downloaded has the bytes that were put on the hub, and nothing is left."""
    names = {file.name for file in FOLDER.iterdir()}
    assert names == {"train.jsonl", "images.zip", "download.json"}
    return all(
        (FOLDER / name).read_bytes() == (made / name).read_bytes()
        for name in ("train.jsonl", "images.zip")
    )


def fetched(hub) -> list[tuple[str, str | None]]:
    """Name and Range of each download so far."""
    return [(path.rpartition("/")[2], part) for path, part in hub.downloads()]


def in_a_process(work) -> int:
    """Run `work` in a forked process and return its exit code, negative if a signal ended it."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


def killed_at(hub, stopped: str, size: int) -> Path:
    """Kill a download whose file `stopped` stalls, once the partial file has `size` bytes."""
    hub.stall.add(stopped)
    process = multiprocessing.get_context("fork").Process(target=download, args=(source(),))
    process.start()
    name = "train.jsonl" if stopped == "train.jsonl" else "images.zip"
    partial = FOLDER / f"{name}.partial"
    deadline = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_size >= size):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    hub.stall.clear()
    return partial


def kill_here(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_parts_become_one_zip(served, made):
    state = download(source())
    assert is_whole(made)
    assert (state["id"], state["revision"]) == (ID, NEW)
    assert state == read_json(FOLDER / "download.json")
    assert [part["name"] for part in state["images.zip"]["parts"]] == PARTS
    # Everything once, nothing but what is needed.
    assert fetched(served) == [(name, None) for name in ("train.jsonl", *PARTS)]


def test_what_is_there_is_not_fetched_again(served, made):
    download(source())
    served.log.clear()
    download(source())
    assert fetched(served) == []
    served.log.clear()
    served.down = True
    assert download(source(revision=NEW))["revision"] == NEW
    assert served.log == []
    with pytest.raises(HubError, match="HTTP 503"):
        download(source())


@pytest.mark.parametrize("stopped", ["train.jsonl", *PARTS])
def test_killed_while_a_file_comes_it_goes_on_at_that_byte(served, made, files, stopped):
    start = PARTS.index(stopped) * PART if stopped in PARTS else 0
    # Chunks are read whole, and Python holds some bytes back before it writes.
    come = start + max(0, len(files[stopped]) // 2 // 1024 * 1024 - 8192)
    reached = killed_at(served, stopped, come).stat().st_size
    assert reached < start + len(files[stopped])
    served.log.clear()
    download(source())
    assert is_whole(made)
    assert fetched(served)[0] == (stopped, f"bytes={reached - start}-" if reached > start else None)


@pytest.mark.parametrize(
    "place",
    ["heima.data.hub.checksum", "heima.data.llava_cot.write_json", "pathlib.Path.rename"],
)
@pytest.mark.parametrize("time_of", [1, 2, 3])
def test_killed_between_two_steps_it_ends_with_the_same_bytes(served, made, files, place, time_of):
    """Before a checksum is taken, before it is written down, before the file gets its name."""
    owner, _, name = place.rpartition(".")
    target = {
        "heima.data.hub": llava_cot.hub,
        "heima.data.llava_cot": llava_cot,
        "pathlib.Path": Path,
    }[owner]
    real, calls = getattr(target, name), iter(range(1, 99))

    def stop(*arguments, **named):
        if next(calls) == time_of:
            kill_here()
        return real(*arguments, **named)

    def work():
        setattr(target, name, stop)
        download(source())

    code = in_a_process(work)
    assert code == (0 if name == "rename" and time_of == 3 else -signal.SIGKILL)
    reached = sum(
        file.stat().st_size
        for file in FOLDER.glob("*")
        if file.name.startswith(("train.jsonl", "images.zip"))
    )
    served.log.clear()
    download(source())
    assert is_whole(made)
    # What was there is verified where it lies, not fetched again.
    rest = sum(len(files[name]) for name, _ in fetched(served))
    assert {part for _, part in fetched(served)} <= {None}
    assert reached + rest == sum(map(len, files.values())) - len(files["README.md"])


def test_a_part_that_arrives_damaged_is_thrown_away(served, made, files):
    served.sums[PARTS[1]] = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(HubError, match=r"part-ab arrived damaged.*dvc repro -f prepare"):
        download(source())
    assert (FOLDER / "images.zip.partial").stat().st_size == PART
    assert read_json(FOLDER / "download.json")["images.zip"]["verified"] == 1
    with pytest.raises(HubError, match="arrived damaged"):
        download(source())  # for the hub still says so


def test_bytes_that_changed_on_the_disk_are_fetched_again(served, made):
    partial = killed_at(served, PARTS[1], PART + 1)
    with partial.open("r+b") as file:
        file.seek(PART)
        file.write(b"\xff\x00" * 8)
    with pytest.raises(HubError, match="part-ab arrived damaged"):
        download(source())
    download(source())
    assert is_whole(made)


def test_a_connection_that_breaks_is_taken_up(served, made):
    served.cut.add(PARTS[0])
    download(source())
    assert is_whole(made)
    assert [name for name, _ in fetched(served)].count(PARTS[0]) == 2


def test_what_killed_runs_left_of_the_state_is_removed(served, made):
    FOLDER.mkdir(parents=True)
    (FOLDER / ".download.json.123.tmp").write_text("{")
    download(source())
    assert is_whole(made)


def test_room_for_all_that_is_lacking_is_checked_before_the_first_byte(
    served, made, files, monkeypatch
):
    def free(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))

    needed = sum((made / name).stat().st_size for name in ("train.jsonl", "images.zip"))
    free(needed - 1)
    with pytest.raises(HubError, match=r"needs 0\.00 GB, .* GB free: make room.*source\.path"):
        download(source())
    assert served.downloads() == [] and not FOLDER.exists()
    free(needed)
    partial = killed_at(served, PARTS[2], 2 * PART)
    lacking = 2 * PART + len(files[PARTS[2]]) - partial.stat().st_size
    free(lacking - 1)
    with pytest.raises(HubError, match="make room"):
        download(source())
    free(lacking)
    download(source())
    assert is_whole(made)


def test_a_part_that_is_missing_is_named_before_the_first_byte(served, files):
    del files[PARTS[1]]
    with pytest.raises(HubError, match=r"image\.zip\.part-ab is missing.*part-ac"):
        download(source())
    assert served.downloads() == []


def test_without_its_last_part_the_zip_does_not_open(served, files):
    del files[PARTS[2]]
    download(source())
    with pytest.raises(SourceError, match=r"not a whole zip.*the last may be missing"):
        inspect(FOLDER)


@pytest.mark.parametrize(
    "names, order",
    [
        (["x.zip.part-ab", "x.zip.part-aa", "train.jsonl"], ["x.zip.part-aa", "x.zip.part-ab"]),
        (["images.zip", "README.md"], ["images.zip"]),
        (SPLIT[::-1], SPLIT),
        ([name for name in SPLIT if name != "i.zip.part-ba"], "part-ba is missing"),
        (["x.zip.part-ab"], "part-aa is missing"),
        (["x.zip.part-aa", "y.zip.part-ab"], "more than one zip"),
        (["x.zip", "x.zip.part-aa"], "more than one zip"),
        (["train.jsonl", "sub/x.zip"], "no .zip"),
    ],
)
def test_the_order_of_parts(names, order):
    if isinstance(order, list):
        assert in_order(names) == order
    else:
        with pytest.raises(ValueError, match=order):
            in_order(names)


def test_a_commit_with_other_files_replaces_nothing(served, made, files):
    download(source())
    other = {**files, "train.jsonl": files["train.jsonl"] + b"{}\n"}
    served.repositories[ID].commits[OLD] = other
    with pytest.raises(HubError, match=f"at {OLD} has other files.*at {NEW}: pin that commit"):
        download(source())
    assert is_whole(made)
    # Another commit of the same files is one.
    served.repositories[ID].commits[OLD] = {**files, "README.md": b"new"}
    assert download(source())["revision"] == OLD
    assert is_whole(made)


def test_a_revision_that_is_gone_names_the_newest(served):
    with pytest.raises(HubError, match=rf"pin {OLD}, the hub's newest commit is {NEW}; set source"):
        download(source(revision=OLD))


def test_a_gated_data_set_says_licence_page_and_token(served):
    served.repositories[ID].state = "not granted"
    with pytest.raises(HubError) as caught:
        download(source())
    for part in ("is gated", f"{served.url}/datasets/{ID}", "Apache-2.0", "HF_TOKEN"):
        assert part in str(caught.value)


def test_files_of_somebody_else_are_not_touched(served, made):
    shutil.copytree(made, FOLDER)
    with pytest.raises(HubError, match=r"train\.jsonl and images\.zip already.*kind = folder"):
        download(source())
    (FOLDER / "images.zip").unlink()
    with pytest.raises(HubError, match=r"holds train\.jsonl already"):
        download(source())
    assert served.log == []


def test_a_file_that_was_cut_afterwards_is_named(served):
    download(source())
    os.truncate(FOLDER / "images.zip", PART)
    with pytest.raises(HubError, match=rf"images\.zip has {PART} bytes, not \d+: delete it"):
        download(source(revision=NEW))


def test_two_downloads_at_once_do_not_mix(served, made):
    import fcntl

    FOLDER.mkdir(parents=True)
    with (FOLDER / "train.jsonl.partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(HubError, match="another process is downloading"):
            download(source())
    download(source())
    assert is_whole(made)


# What lies in a folder, wherever it comes from


def test_a_folder_is_described(tmp_path, capsys):
    names = [f"a/{place}.png" for place in range(9)]
    write_source(tmp_path / "s", [*names, "a/0.png"])
    with (tmp_path / "s" / "train.jsonl").open("a") as file:
        file.write('{"id": "x", "image": "b/absent.png", "conversations": []}\nno json\n')
    found = inspect(tmp_path / "s")
    assert found["images"] == {"named": 10, "missing": 1}
    assert found["train.jsonl"]["records"] == 12 and found["train.jsonl"]["unreadable"] == 1
    assert found["images.zip"]["members"] == 9
    assert "1 of 10 images are not in" in capsys.readouterr().out


def test_a_zip_of_other_images_is_refused(tmp_path):
    write_source(tmp_path / "s", ["a/1.png"])
    write_source(tmp_path / "other", ["train/b/1.png"])
    shutil.copy(tmp_path / "other" / "images.zip", tmp_path / "s")
    with pytest.raises(SourceError, match=r"none of the 1 images.*'a/1\.png'.*'train/b/1\.png'"):
        inspect(tmp_path / "s")


def test_a_zip_may_have_a_folder_around_its_images(tmp_path):
    write_source(tmp_path / "s", ["a/1.png", "b/1.png"])
    write_source(tmp_path / "other", ["image_files/a/1.png", "image_files/b/1.png"])
    shutil.copy(tmp_path / "other" / "images.zip", tmp_path / "s")
    assert inspect(tmp_path / "s")["images"] == {"named": 2, "missing": 0}


def test_parts_in_a_given_folder_are_for_its_owner_to_join(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=r"lacks images\.zip.*cat .*/\*\.zip\.part-\* > "):
        inspect(tmp_path)


def test_a_hub_that_names_no_commit_is_an_error():
    repository = hub.Repository("dataset", "a/cot", None, key="source", again="", instead="or so")
    with pytest.raises(HubError, match=r"source: the data set a/cot: the hub names no commit"):
        repository.commit(SimpleNamespace(sha=None))
