"""Bad rows of each benchmark are found, the toy editions have none; data that moved is refused."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

from eval import benchmark_data
from eval.benchmark_check import check, check_folder
from eval.benchmark_data import BenchmarkDataError, inspect, revision_of, revisions
from heima.config.benchmarks import BENCHMARKS
from heima.results.files import write_json
from heima.toy.benchmarks import EDITIONS, write_benchmarks
from tests.conftest import ROOT
from tests.fabricated_sources import paper_params


@pytest.fixture(scope="module")
def folder(tmp_path_factory, params):
    folder = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(folder, sizes=params.source.benchmark_sizes, seed=params.seed)
    return folder


def rows_of(folder: Path, name: str) -> list[dict]:
    (file,) = (folder / name).glob("*.parquet")
    return pq.read_table(file).to_pylist()


@pytest.mark.parametrize("name", EDITIONS)
def test_the_toy_editions_are_clean(folder, name):
    assert check_folder(name, folder / name) == []
    assert set(BENCHMARKS[name].dataset.columns) <= set(rows_of(folder, name)[0])


def test_the_check_needs_no_torch_and_no_lmms_eval(folder):
    code = (
        "import sys, pathlib, stages.prepare, eval.benchmark_sources;"
        "from eval.benchmark_check import check_folder;"
        f"check_folder('ai2d', pathlib.Path({str(folder / 'ai2d')!r}));"
        "print([name for name in ('torch', 'lmms_eval') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


PICTURE = io.BytesIO()
Image.effect_noise((64, 64), 90).save(PICTURE, "JPEG")
CUT = PICTURE.getvalue()[: len(PICTURE.getvalue()) // 2]

BAD_ROWS = [
    # Images, for whatever benchmark.
    ("mmvet", "image", None, "missing image"),
    ("ai2d", "image", "no bytes", "missing image"),
    ("mmstar", "image", b"not an image", "broken image"),
    ("mmbench", "image", CUT, "broken image"),
    ("mathvista", "decoded_image", b"\x89PNG\r\n\x1a\n rest", "broken image"),
    # Questions.
    ("mmvet", "question", "  ", "empty question"),
    ("hallusionbench", "question", None, "empty question"),
    # Options.
    ("mmbench", "B", "", "empty option"),
    ("mmbench", "A", "nan", "empty option"),
    ("mmbench", "C", None, "empty option"),
    ("mmbench", "B", float("nan"), "empty option"),
    ("mmbench", ("B", "C", "D"), "nan", "too few options"),
    ("ai2d", "options", ["ribosome", " "], "empty option"),
    ("ai2d", "options", ["ribosome"], "too few options"),
    ("ai2d", "options", None, "too few options"),
    ("mmstar", "question", "What is it? a cat or a dog", "unreadable options"),
    (
        "mmstar",
        "question",
        "What?\nOptions: A: a cat, B: , C: nan",
        "unreadable options",
    ),
    # Answers.
    ("mmbench", "answer", "E", "answer outside the options"),
    ("mmbench", "answer", None, "answer outside the options"),
    ("mmstar", "answer", "E", "answer outside the options"),
    ("mmstar", "answer", "", "answer outside the options"),
    ("ai2d", "answer", "9", "answer outside the options"),
    ("ai2d", "answer", "-1", "answer outside the options"),
    ("ai2d", "answer", "a cat", "answer outside the options"),
    ("hallusionbench", "gt_answer", "2", "answer is neither 0 nor 1"),
    ("hallusionbench", "gt_answer", None, "answer is neither 0 nor 1"),
    ("mmvet", "answer", "", "no answer"),
    ("mathvista", "answer", None, "no answer"),
]


@pytest.mark.parametrize(
    "benchmark, column, value, reason",
    BAD_ROWS,
    ids=[f"{benchmark}-{column}-{reason}" for benchmark, column, _, reason in BAD_ROWS],
)
def test_a_bad_row_is_found_where_it_stands(folder, benchmark, column, value, reason):
    rows = rows_of(folder, benchmark)[:8]
    for name in (column,) if isinstance(column, str) else column:
        if "image" not in name:
            rows[5][name] = value
        else:
            rows[5][name] = (
                {"bytes": None, "path": "elsewhere.png"}
                if value == "no bytes"
                else value and {"bytes": value, "path": None}
            )
    found = check(benchmark, rows)
    assert {place for place, _ in found} == {5}
    assert reason in [text.partition(":")[0] for _, text in found]


def test_a_choice_of_mathvista_is_among_its_choices(folder):
    rows = rows_of(folder, "mathvista")[:4]
    rows[1] |= {"question_type": "multi_choice", "choices": ["low", "high"], "answer": "high"}
    assert check("mathvista", rows) == []
    rows[1]["answer"] = "B"
    rows[2] |= {"question_type": "multi_choice", "choices": ["low", ""], "answer": "low"}
    rows[3] |= {"question_type": "multi_choice", "choices": None, "answer": "low"}
    assert [(place, text.partition(":")[0]) for place, text in check("mathvista", rows)] == [
        (1, "answer outside the options"),
        (2, "empty option"),
        (3, "too few options"),
        (3, "answer outside the options"),
    ]


@pytest.mark.parametrize("benchmark", sorted(set(EDITIONS) - {"ai2d"}))
def test_an_identity_stands_once(folder, benchmark):
    rows = rows_of(folder, benchmark)[:8]
    assert check(benchmark, rows) == []  # rotations of MMBench among them
    found = check(benchmark, [*rows, rows[3]])
    assert [place for place, _ in found] == [8]
    assert "duplicate index" in found[0][1] and "is row 3 too" in found[0][1]


def test_fewer_options_than_letters_are_no_fault(folder):
    row = rows_of(folder, "mmbench")[0] | {"C": "nan", "D": None, "E": "", "answer": "B"}
    assert check("mmbench", [row]) == []


def test_damaged_images_never_stop_the_check(monkeypatch):
    # As lmms-eval leaves it: Pillow would fill up what is missing.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    draw = random.Random(5)
    row = {"question": "?", "options": ["a", "b"], "answer": "0"}
    rows = []
    for _ in range(300):
        damaged = bytearray(PICTURE.getvalue())
        for _ in range(draw.randrange(1, 20)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        rows.append({**row, "image": {"bytes": bytes(damaged[: draw.randrange(1, 9000)])}})
    found = check("ai2d", rows)
    assert len(found) > 100 and {text.partition(":")[0] for _, text in found} == {"broken image"}


def test_a_folder_without_the_tasks_configuration_split_or_columns_is_named(folder, tmp_path):
    with pytest.raises(BenchmarkDataError, match="'en'"):
        check_folder("mmbench", folder / "mmstar")
    with pytest.raises(BenchmarkDataError, match=r"no split 'test'; it has .*val"):
        check_folder("ai2d", folder / "mmstar")
    pq.write_table(pa.table({"question": ["?"]}), tmp_path / "test.parquet")
    with pytest.raises(BenchmarkDataError, match="lacks the columns options, answer, image"):
        check_folder("ai2d", tmp_path)
    rows = [{"question": "?", "options": ["a", "b"], "answer": "0", "image": PICTURE.getvalue()}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    with pytest.raises(BenchmarkDataError, match="does not type its column image as an image"):
        check_folder("ai2d", tmp_path)
    # The hub's MMStar stores bare bytes, and its README says that they are an image.
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: question\n    dtype: string\n"
        "  - name: options\n    list: string\n  - name: answer\n    dtype: string\n"
        "  - name: image\n    dtype: image\n---\n"
    )
    assert check_folder("ai2d", tmp_path) == []
    (tmp_path / "test.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(BenchmarkDataError, match="is not a readable parquet file"):
        check_folder("ai2d", tmp_path)


def test_memory_does_not_grow_with_the_data(tmp_path):
    """Four times the rows in one row group: the check holds pages of it, not all of it."""
    noise = random.Random(1).randbytes(1 << 18)
    schema = EDITIONS["ai2d"].features.arrow_schema
    for name, size in (("small", 60), ("large", 240)):
        rows = [
            {
                "question": "?",
                "options": ["a", "b"],
                "answer": "0",
                "image": {"bytes": PICTURE.getvalue() + bytes([place]) + noise, "path": None},
            }
            for place in range(size)
        ]
        (tmp_path / name).mkdir()
        pq.write_table(
            pa.Table.from_pylist(rows, schema=schema),
            tmp_path / name / "test.parquet",
            row_group_size=size,
            write_batch_size=4,
            use_dictionary=False,
        )
    code = (
        "import pathlib, pyarrow as pa; from eval.benchmark_check import check_folder\n"
        "for name in ('small', 'large'):\n"
        f"    assert not check_folder('ai2d', pathlib.Path({str(tmp_path)!r}) / name)\n"
        "    print(pa.default_memory_pool().max_memory())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    small, large = map(int, done.stdout.split())
    assert large < 1.5 * small


def test_the_toy_edition_is_the_hash_of_its_files(folder, monkeypatch, params):
    monkeypatch.setattr(benchmark_data, "FOLDER", folder)
    found = revisions(params)
    assert found["lmms"] == found["vlmevalkit"]
    assert found["lmms"]["mmstar"] == revision_of(folder / "mmstar")
    assert len(set(found["lmms"].values())) == len(params.benchmarks)
    with pytest.raises(FileNotFoundError, match="no parquet"):
        revision_of(folder / "nowhere")


@pytest.fixture
def given(folder, tmp_path, monkeypatch):
    """A folder of MMStar's data, as `prepare` found it."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "given"
    data.mkdir()
    for file in (folder / "mmstar").iterdir():
        (data / file.name).write_bytes(file.read_bytes())
    params = paper_params(mmstar={"path": "given"})
    edition, files = inspect(data)
    entry = {"path": "given", "edition": edition, "files": files}
    write_json("data/benchmarks/source.json", {"mmstar": entry})
    return params


def test_given_data_has_the_edition_of_its_bytes(given, folder):
    assert revisions(given) == {"lmms": {"mmstar": revision_of(folder / "mmstar")}}


def test_data_that_changed_is_named_with_both_values(given):
    (file,) = Path("given").glob("*.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    recorded = inspect(Path("given"))[1][file.name]["sha256"]
    file.write_bytes(content)
    with pytest.raises(BenchmarkDataError, match="mmstar has moved") as error:
        revisions(given)
    now = inspect(Path("given"))[1][file.name]["sha256"]
    assert recorded in str(error.value) and now in str(error.value)
    assert "dvc repro -f prepare" in str(error.value)
    file.rename("given/other.parquet")
    with pytest.raises(BenchmarkDataError, match=r"other\.parquet is \d+ bytes .*found not there"):
        revisions(given)
    Path("given/other.parquet").unlink()
    with pytest.raises(BenchmarkDataError, match="mmstar has moved: given holds no parquet"):
        revisions(given)


def test_a_changed_readme_counts_too(given):
    readme = Path("given/README.md")
    readme.write_text(readme.read_text().replace("split: val", "split: test"))
    with pytest.raises(BenchmarkDataError, match=r"mmstar has moved: given/README.md"):
        revisions(given)


def test_params_that_prepare_has_not_seen_are_named(given):
    with pytest.raises(BenchmarkDataError, match=r"'other'}, `prepare` found {'path': 'given'}"):
        Path("other").symlink_to("given")
        revisions(paper_params(mmstar={"path": "other"}))
    Path("data/benchmarks/source.json").unlink()
    with pytest.raises(BenchmarkDataError, match=r"source\.json is missing"):
        revisions(given)
