"""The stage `prepare`: the toy's bytes, given folders, VLMEvalKit's file, a hub on loopback."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset

from eval.benchmark_data import BenchmarkDataError, folder_of, revision_of, revisions
from eval.benchmark_sources import convert_mmbench, download
from heima import config
from heima.config import DatasetSource
from heima.data import places
from heima.data.images import ImageZip
from heima.results.files import read_json
from heima.toy.benchmarks import write_benchmarks
from stages import prepare, resolve
from tests.conftest import ROOT
from tests.eval.hub_server import TOKEN, Repository
from tests.fabricated_sources import paper_params, paper_yaml, write_source

OLD, NEW, GONE = "a" * 40, "b" * 40, "c" * 40
CHUNK = 1024
SIZES = {"mmstar": 12, "mmbench": 6, "ai2d": 12}


@pytest.fixture(scope="module")
def editions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("editions")
    write_benchmarks(folder, sizes=SIZES, seed=3)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project folder with LLaVA-CoT's two files; the current one."""
    monkeypatch.chdir(tmp_path)
    write_source(Path("source"))
    return tmp_path


@pytest.fixture
def hub(place, hub, monkeypatch, editions):
    """A hub with an empty cache, and MMStar in two commits."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    files = files_of(editions / "mmstar")
    old = {**files, "README.md": files["README.md"] + b"first\n"}
    hub.repositories["Lin-Chen/MMStar"] = Repository(
        {OLD: old, NEW: {**files, "images/1.png": b"x" * 10, "MMStar.tsv": b"y" * 10}}
    )
    return hub


def run_prepare(params: str) -> None:
    Path("params.yaml").write_text(params)
    resolve.write(config.load())
    prepare.main()


def failure_of_prepare(params: str, capsys=None) -> str:
    with pytest.raises(SystemExit) as stop:
        run_prepare(params)
    assert str(stop.value.code).startswith("error: ")
    return str(stop.value.code)


# The toy


def test_the_toys_files_are_those_of_its_writers(place, raw_params):
    """`prepare` adds nothing to what the toy's own functions write, byte for byte."""
    raw_params["source"] |= {"records": 30, "benchmark_sizes": dict.fromkeys(
        raw_params["source"]["benchmark_sizes"], 8)}  # fmt: skip
    run_prepare(yaml.safe_dump(raw_params))
    from heima.toy.source import source_scenes, write_source

    params = config.load("params.yaml")
    drawing = {
        "records": 30,
        "turns": params.source.turns,
        "mix": params.source.mix,
        "seed": params.seed,
    }
    write_source(Path("again"), **drawing)
    write_benchmarks(
        Path("again"),
        sizes=params.source.benchmark_sizes,
        seed=params.seed,
        exclude={scene.key for scene in source_scenes(**drawing)},
    )
    written = {p.relative_to("data/source"): p for p in Path("data/source").rglob("*")}
    written |= {p.relative_to("data/benchmarks"): p for p in Path("data/benchmarks").rglob("*")}
    again = {p.relative_to("again"): p for p in Path("again").rglob("*")}
    assert written.keys() == again.keys()
    assert all(p.is_dir() or p.read_bytes() == written[n].read_bytes() for n, p in again.items())


# The source on the hub


def test_a_source_of_the_hub_is_downloaded_and_found_by_the_stages_after(place, hub, editions):
    shutil.copytree(editions / "mmstar", "given/mmstar")
    records, images = (Path("source", name).read_bytes() for name in ("train.jsonl", "images.zip"))
    parts = {"image.zip.part-aa": images[:50], "image.zip.part-ab": images[50:]}
    hub.repositories["a/cot"] = Repository({NEW: {"train.jsonl": records, **parts}})
    raw = yaml.safe_load(paper_yaml(mmstar={"path": "given/mmstar"}))
    raw["source"] |= {"kind": "hub", "id": "a/cot", "path": "data/cot"}
    for _ in range(2):  # DVC deletes data/source before it runs the stage again
        run_prepare(yaml.safe_dump(raw))
        folder = places.locate("data/source")
        assert folder == Path("data/cot")
        assert ImageZip(folder / "images.zip").read_file("a/1.png") == b"not drawn: a/1.png"
        found = read_json("data/source/source.json")
        assert (found["id"], found["revision"]) == ("a/cot", NEW)
        assert found["train.jsonl"]["sha256"] == hashlib.sha256(records).hexdigest()
        assert set(found["parts"]) == {"train.jsonl", *parts}
        assert found["images"] == {"named": 1, "missing": 0}
        assert len(hub.downloads()) == 3
        shutil.rmtree("data/source")
    raw["source"]["revision"] = GONE
    assert "source: the data set a/cot has moved" in failure_of_prepare(yaml.safe_dump(raw))
    assert not Path("data/source").exists()


def test_benchmarks_are_checked_before_the_source_is_downloaded(place, hub, editions):
    """The source has 160 GB, and the models come after it."""
    shutil.copytree(editions / "mmstar", "given/mmstar")
    (file,) = Path("given/mmstar").glob("*.parquet")
    table = pq.read_table(file).to_pylist()
    table[3]["question"] = ""
    pq.write_table(pa.Table.from_pylist(table, schema=pq.read_schema(file)), file)
    hub.repositories["a/cot"] = Repository({NEW: {"train.jsonl": b"{}", "image.zip": b""}})
    raw = yaml.safe_load(paper_yaml(mmstar={"path": "given/mmstar"}))
    raw["source"] |= {"kind": "hub", "id": "a/cot", "path": "data/cot"}
    assert "row 3: empty question" in failure_of_prepare(yaml.safe_dump(raw))
    assert not hub.downloads() and not Path("data/cot").exists()


# Given folders


def test_given_folders_are_read_where_they_lie(place, editions):
    shutil.copytree(editions / "mmstar", "given/mmstar")
    run_prepare(paper_yaml(mmstar={"path": "given/mmstar"}))
    params = config.load("params.yaml")
    assert folder_of(params, "mmstar") == Path("given/mmstar")
    assert revisions(params) == {"lmms": {"mmstar": revision_of(editions / "mmstar")}}
    entry = read_json("data/benchmarks/source.json")["mmstar"]
    assert entry["path"] == "given/mmstar" and len(entry["files"]) == 2
    assert {p.name for p in Path("data/benchmarks").iterdir()} == {"source.json"}


def test_all_bad_rows_are_listed_and_nothing_is_written(place, editions):
    shutil.copytree(editions / "ai2d", "given/ai2d")
    shutil.copytree(editions / "mmstar", "given/mmstar")
    for name, change in {
        "ai2d": lambda rows: (rows[2].update(answer="7"), rows[9].update(image={"bytes": b"?"})),
        "mmstar": lambda rows: (rows[4].update(answer="Z"), rows[5].update(answer="Y")),
    }.items():
        (file,) = Path("given", name).glob("*.parquet")
        table = pq.read_table(file)
        rows = table.to_pylist()
        change(rows)
        pq.write_table(table.from_pylist(rows, schema=table.schema), file)
    Path("params.yaml").write_text(
        paper_yaml(mmstar={"path": "given/mmstar"}, ai2d={"path": "given/ai2d"})
    )
    resolve.write(config.load())
    done = subprocess.run(
        [sys.executable, "-m", "stages.prepare"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    for line in (
        "mmstar (given/mmstar) has 2 bad rows:",
        "  2 x answer outside the options",
        "  row 4: answer outside the options: 'Z', the options are A, B, C, D",
        "  row 5: answer outside the options: 'Y', the options are A, B, C, D",
        "ai2d (given/ai2d) has 2 bad rows:",
        "  row 2: answer outside the options: '7', the options are 0 to 3",
        "  row 9: broken image: cannot identify image file",
    ):
        assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("data/benchmarks").exists()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"mmstar": {"path": "nowhere"}}, "benchmarks.mmstar.path = nowhere is not a folder"),
        ({"mmstar": {"path": "source"}}, "source.benchmarks.mmstar: source holds no parquet file"),
        ({"mmstar": {"path": "some.tsv"}}, "only MMBench is converted"),
        ({"mmbench": {"path": "some.tsv"}}, "some.tsv is missing"),
        ({"mmstar": {"path": "good"}, "spare": {"path": "good"}}, "spare is read by no protocol"),
    ],
)
def test_a_source_that_cannot_be_used_is_named(place, editions, given, message):
    shutil.copytree(editions / "mmstar", "good")
    raw = yaml.safe_load(paper_yaml(mmstar={"path": "good"}))
    raw["source"]["benchmarks"] = given
    raw["benchmarks"] = [name for name in given if name != "spare"]
    raw["latency"]["benchmark"] = raw["benchmarks"][0]
    assert message in failure_of_prepare(yaml.safe_dump(raw))


# VLMEvalKit's file


def tsv_rows(editions: Path) -> list[dict[str, str]]:
    """The toy's MMBench as VLMEvalKit writes it: the rotations repeat a question's image."""
    (file,) = (editions / "mmbench").glob("*.parquet")
    rows, known = [], {}
    for row in pq.read_table(file).to_pylist():
        index = row["index"]
        image = base64.b64encode(row.pop("image")["bytes"]).decode()
        first = known.setdefault(index % 1_000_000, index)
        plain = {key: "" if value == "nan" else str(value) for key, value in row.items()}
        plain["l2-category"] = plain.pop("L2-category")
        rows.append({**plain, "image": image if first == index else str(first)})
    return rows


def write_tsv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_the_task_reads(folder: Path) -> list[dict]:
    return list(load_dataset(str(folder), name="en", split="dev", cache_dir=str(folder / "cache")))


def test_vlmevalkits_file_becomes_the_same_questions(place, editions):
    rows = tsv_rows(editions)
    rows[1]["question"] = 'Which is "it"?\nThe one\tat a1, or é?'  # quoted in the file
    rows.insert(0, rows.pop(3))  # its image comes later in the file
    assert len(rows[0]["image"]) < 64 < len(rows[1]["image"])
    assert convert_mmbench(write_tsv(place / "m.tsv", rows), place / "mmbench-v11") == []
    converted = as_the_task_reads(place / "mmbench-v11")
    expected = {row["index"]: row for row in as_the_task_reads(editions / "mmbench")}
    assert [row["index"] for row in converted] == [int(row["index"]) for row in rows]
    expected[int(rows[2]["index"])]["question"] = rows[2]["question"]
    for row in converted:
        for column in row.keys() - {"image"}:
            assert row[column] == expected[row["index"]][column], column
        assert row["image"].tobytes() == expected[row["index"]]["image"].tobytes()
    assert expected[0].keys() - converted[0].keys() == {"comment"}


def test_prepare_converts_and_both_editions_stand_side_by_side(place, editions):
    tsv = write_tsv(place / "MMBench.tsv", tsv_rows(editions))
    shutil.copytree(editions / "mmbench", "given")
    text = paper_yaml(mmbench={"path": "given"}, mmbench_v11={"path": tsv.name})
    run_prepare(text)
    params = config.load("params.yaml")
    assert folder_of(params, "mmbench-v11") == Path("data/benchmarks/mmbench-v11")
    found = revisions(params)
    assert found["lmms"]["mmbench"] != found["vlmevalkit"]["mmbench"]
    entry = read_json("data/benchmarks/source.json")["mmbench-v11"]
    assert entry["tsv"]["md5"] == hashlib.md5(tsv.read_bytes()).hexdigest()
    assert entry["tsv"]["bytes"] == tsv.stat().st_size
    first = revisions(params)
    run_prepare(text)
    assert revisions(params) == first
    next(Path("data/benchmarks/mmbench-v11").glob("*.parquet")).unlink()
    with pytest.raises(BenchmarkDataError, match=r"mmbench-v11 has moved"):
        revisions(params)


def test_rows_without_a_readable_image_are_listed(place, editions):
    rows = tsv_rows(editions)
    rows[0]["image"] = rows[0]["image"][:-7] + "~~~"
    rows[4]["image"] = base64.b64encode(b"no image, however long this text goes on " * 3).decode()
    rows[8]["image"] = "123456"
    rows[12]["image"] = ""
    tsv = write_tsv(place / "m.tsv", rows)
    message = failure_of_prepare(paper_yaml(mmbench={"path": "m.tsv"}))
    assert "mmbench (m.tsv) has 16 bad rows:" in message  # and the rotations that repeat them
    for line in (
        "row 0: broken image: Only base64 data is allowed",
        "row 4: broken image: cannot identify image file",
        "row 8: missing image: it repeats that of index 123456, which has none",
        "row 9: missing image: it repeats that of index 2, which has none",
        "row 12: missing image\n",
    ):
        assert line in message
    assert message.count("row 12:") == 1
    assert tsv.exists() and not Path("data/benchmarks").exists()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda text: text[: len(text) // 2].rsplit("\t", 3)[0], r"byte \d+ has \d+ fields"),
        (lambda text: text.replace("answer", "anwser", 1), "lacks the columns answer"),
        (lambda text: text.replace("\n0\t", "\nzero\t", 1), "index 'zero' is not a whole number"),
        (lambda text: "", "lacks the columns index"),
        (lambda text: text.replace("at ", "at \udcff", 1), "damaged .*utf-8"),
    ],
    ids=["cut", "header", "index", "empty", "encoding"],
)
def test_a_damaged_file_is_named(place, editions, damage, message):
    tsv = write_tsv(place / "m.tsv", tsv_rows(editions))
    damaged = damage(tsv.read_text(encoding="utf-8"))
    tsv.write_bytes(damaged.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(BenchmarkDataError, match=message):
        convert_mmbench(tsv, place / "converted")


def test_the_conversion_does_not_hold_the_file(place):
    """Four times the rows take no more memory."""
    image = base64.b64encode(os.urandom(1 << 17)).decode()
    for name, size in (("small", 60), ("large", 300)):
        write_tsv(place / f"{name}.tsv", [
            {"index": str(at), "question": "?", "answer": "A", "A": "1", "B": "2",
             "category": "c", "image": image if at % 2 else str(at + 1)}
            for at in range(size)
        ])  # fmt: skip
    code = (
        "import pathlib, resource; from eval.benchmark_sources import convert_mmbench\n"
        "for name in ('small', 'large'):\n"
        f"    place = pathlib.Path({str(place)!r})\n"
        "    convert_mmbench(place / f'{name}.tsv', place / name)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    small, large = (int(line) / 1024 for line in done.stdout.split())
    assert large - small < 12  # MiB; the file has 20 MiB more, its images 30


# The hub


def test_the_hubs_newest_commit_is_downloaded_and_written_down(place, hub, editions):
    run_prepare(paper_yaml(mmstar={"id": "Lin-Chen/MMStar"}))
    params = config.load("params.yaml")
    entry = read_json("data/benchmarks/source.json")["mmstar"]
    assert (entry["id"], entry["revision"]) == ("Lin-Chen/MMStar", NEW)
    assert str(place) not in Path("data/benchmarks/source.json").read_text()
    assert {Path(path).suffix for path, _ in hub.downloads()} == {".parquet", ".md"}
    hub.down = True  # later stages need no hub
    before = len(hub.log)
    assert revisions(params) == {"lmms": {"mmstar": revision_of(editions / "mmstar")}}
    folder = folder_of(params, "mmstar")
    data = load_dataset(str(folder), split="val", cache_dir=str(place / "arrow"))
    assert len(data) == SIZES["mmstar"] and len(hub.log) == before


def test_a_pinned_commit_that_is_cached_needs_no_network(place, hub):
    text = paper_yaml(mmstar={"id": "Lin-Chen/MMStar", "revision": OLD})
    run_prepare(text)
    assert read_json("data/benchmarks/source.json")["mmstar"]["revision"] == OLD
    hub.log.clear()
    run_prepare(text)
    assert hub.log == []


def test_a_revision_that_moved_is_named_beside_the_hubs(place, hub):
    """As a program: the hub by its environment variables, exit code 1, no traceback."""
    Path("params.yaml").write_text(
        paper_yaml(mmstar={"id": "Lin-Chen/MMStar", "revision": GONE}), encoding="utf-8"
    )
    here = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(place / "home")}
    resolve.write(config.load())
    done = subprocess.run(
        [sys.executable, "-m", "stages.prepare"],
        env={**os.environ, **here, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"Lin-Chen/MMStar has moved: params pin {GONE}" in done.stderr
    assert f"newest commit is {NEW}" in done.stderr and "dvc repro -f prepare" in done.stderr


def test_a_revision_that_moved_while_it_lies_in_the_cache_is_still_that_revision(place, hub):
    text = paper_yaml(mmstar={"id": "Lin-Chen/MMStar", "revision": OLD})
    run_prepare(text)
    del hub.repositories["Lin-Chen/MMStar"].commits[OLD]
    run_prepare(text)
    assert revisions(config.load("params.yaml"))


def test_a_download_that_breaks_off_is_taken_up_where_it_ended(place, hub, editions):
    (parquet,) = (file for file in files_of(editions / "mmstar") if file.endswith(".parquet"))
    hub.cut.add(parquet)
    run_prepare(paper_yaml(mmstar={"id": "Lin-Chen/MMStar", "revision": NEW}))
    size = len((editions / "mmstar" / parquet).read_bytes())
    ranges = [part for path, part in hub.downloads() if path.endswith(parquet)]
    assert ranges == [None, f"bytes={size // 2 // CHUNK * CHUNK}-"]
    assert revisions(config.load("params.yaml"))["lmms"]["mmstar"] == revision_of(
        editions / "mmstar"
    )


def test_a_hub_that_goes_down_keeps_what_was_downloaded(place, hub):
    source = DatasetSource(id="Lin-Chen/MMStar", revision=NEW)
    hub.repositories["Lin-Chen/MMStar"].commits[NEW]["b.parquet"] = b"PAR1"
    hub.repositories["Lin-Chen/MMStar"].state = "open"
    download("mmstar", source)
    done = {path for path, _ in hub.downloads()}
    snapshot = place / "cache" / "datasets--Lin-Chen--MMStar" / "snapshots" / NEW
    (snapshot / "b.parquet").unlink()  # as if the other files had come, and then the hub went down
    (blob,) = [p for p in (snapshot.parents[1] / "blobs").iterdir() if p.read_bytes() == b"PAR1"]
    blob.unlink()
    hub.log.clear()
    download("mmstar", source)
    assert [path for path, _ in hub.downloads()] == [p for p in done if p.endswith("b.parquet")]


@pytest.mark.parametrize(
    "state, token, parts",
    [
        ("gated", None, ["is gated", "accept its licence", "HF_TOKEN"]),
        ("private", None, ["HTTP 401", "HF_TOKEN", "check the id"]),
        ("private", "hf_ofanotheruserofanotheruser", ["HTTP 401", "HF_TOKEN"]),
        ("absent", TOKEN, ["HTTP 404", "check the id"]),
    ],
)
def test_a_data_set_that_is_not_open_says_what_to_do(place, hub, monkeypatch, state, token, parts):
    if state == "absent":
        del hub.repositories["Lin-Chen/MMStar"]
    else:
        hub.repositories["Lin-Chen/MMStar"].state = state
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    message = failure_of_prepare(paper_yaml(mmstar={"id": "Lin-Chen/MMStar"}))
    for part in [
        *parts,
        "source.benchmarks.mmstar",
        "Lin-Chen/MMStar",
        "source.benchmarks.mmstar.path",
    ]:
        assert part in message
    assert "hf_" not in message


def test_a_token_opens_what_is_gated(place, hub, monkeypatch, capfd):
    hub.repositories["Lin-Chen/MMStar"].state = "gated"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run_prepare(paper_yaml(mmstar={"id": "Lin-Chen/MMStar"}))
    written = Path("data/benchmarks/source.json").read_text() + "".join(capfd.readouterr())
    assert NEW in written and TOKEN not in written


@pytest.mark.parametrize("fault", ["no server", "offline", "down"])
def test_without_a_hub_the_way_out_is_named(place, hub, monkeypatch, fault):
    if fault == "no server":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    elif fault == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.down = fault == "down"
    message = failure_of_prepare(paper_yaml(mmstar={"id": "Lin-Chen/MMStar"}))
    assert "source.benchmarks.mmstar.path" in message and "dvc repro -f prepare" in message
    assert ("HTTP 503" if fault == "down" else "HF_HUB_OFFLINE") in message


def test_room_on_the_disk_is_checked_before_the_first_byte(place, hub, editions):
    (parquet,) = (file for file in files_of(editions / "mmstar") if file.endswith(".parquet"))
    hub.sizes[parquet] = 10**18
    message = failure_of_prepare(paper_yaml(mmstar={"id": "Lin-Chen/MMStar"}))
    assert "needs 1000000000.00 GB" in message and "HF_HOME" in message
    assert hub.downloads() == []
    # What the cache holds already needs no room.
    del hub.sizes[parquet]
    source = DatasetSource(id="Lin-Chen/MMStar")
    download("mmstar", source)
    hub.sizes[parquet] = 10**18
    assert download("mmstar", source)[1] == NEW


def test_a_file_damaged_in_the_cache_is_refused(place, hub):
    text = paper_yaml(mmstar={"id": "Lin-Chen/MMStar", "revision": NEW})
    run_prepare(text)
    folder = folder_of(config.load("params.yaml"), "mmstar")
    blob = next(folder.glob("*.parquet")).resolve()
    content = bytearray(blob.read_bytes())
    content[-20] ^= 1
    blob.write_bytes(content)
    with pytest.raises(BenchmarkDataError, match=r"mmstar has moved: .*\.parquet is"):
        revisions(config.load("params.yaml"))
    message = failure_of_prepare(text)
    assert "is damaged in the hub's cache" in message and f"delete {blob}" in message


def test_a_cache_that_was_emptied_is_named(place, hub):
    run_prepare(paper_yaml(mmstar={"id": "Lin-Chen/MMStar"}))
    shutil.rmtree("cache")
    with pytest.raises(BenchmarkDataError, match=f"Lin-Chen/MMStar at {NEW}.* not in the hub's"):
        revisions(paper_params(mmstar={"id": "Lin-Chen/MMStar"}))
