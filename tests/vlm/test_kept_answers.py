"""The journal: what is finished is found again, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from PIL import Image

from heima.config import Decoding
from heima.vlm import kept_answers
from heima.vlm.generation import Counts, Generation, Prompt, plan
from heima.vlm.kept_answers import Journal, weights_digest

KEY = {"seed": 1}
DECODING = Decoding(temperature=0, top_k=50, max_new_tokens=8, batch_size=2)


def answers(*texts):
    return [Generation(text, Counts(5, 3, 1, 1, 1), "stop", 0.125) for text in texts]


def test_what_is_appended_is_read(tmp_path):
    first, second = answers("a\nb", "  \u2028 ü"), answers("")
    with Journal(tmp_path, KEY) as one:
        one.append(3, first)
        one.append(0, second)
        assert one.read() == {3: first, 0: second}
    assert Journal(tmp_path, KEY).read() == {3: first, 0: second}
    assert Journal(tmp_path, {"seed": 2}).read() == {}
    assert json.loads((one.folder / "key.json").read_text()) == KEY


def test_processes_read_each_other(tmp_path):
    with (
        Journal(tmp_path, KEY, rank=0, world=2) as one,
        Journal(tmp_path, KEY, rank=1, world=2) as two,
    ):
        one.append(0, answers("a"))
        two.append(1, answers("b"))
        assert one.read() == two.read() == {0: answers("a"), 1: answers("b")}
    assert Journal(tmp_path, KEY).read() == one.read()


@pytest.mark.parametrize("lost", [1, 20, 10_000])
def test_a_torn_last_line_is_dropped(tmp_path, lost):
    """Cut anywhere in the last line, down to its first byte, the lines before it stay."""
    with Journal(tmp_path, KEY) as one:
        one.append(0, answers("a"))
        one.append(1, answers("b"))
    file = next(one.folder.glob("*.jsonl"))
    content = file.read_bytes()
    begin = content.index(b"\n") + 1
    file.write_bytes(content[: max(begin + 1, len(content) - lost)])
    assert one.read() == {0: answers("a")}
    with one:
        one.append(1, answers("c"))
    assert one.read() == {0: answers("a"), 1: answers("c")}
    assert file.read_bytes().count(b"\n") == 2


def test_other_content_is_refused(tmp_path):
    with Journal(tmp_path, KEY) as one:
        one.append(0, answers("a"))
    file = next(one.folder.glob("*.jsonl"))
    file.write_bytes(b'{"batch": 1}\n' + file.read_bytes())
    with pytest.raises(ValueError, match=r"0-of-1.jsonl, line 1, is no finished batch .*--fresh"):
        one.read()
    one.clear()
    assert one.read() == {}


def changed_text(row):
    row["answers"][0]["text"] = "b"


def changed_count(row):
    row["answers"][0]["counts"]["prompt"] += 1


def changed_batch(row):
    row["batch"] = 7


def one_more(row):
    row["answers"].append(row["answers"][0])


def without_hash(row):
    del row["sha256"]


@pytest.mark.parametrize(
    "change", [changed_text, changed_count, changed_batch, one_more, without_hash]
)
def test_a_well_formed_line_that_nobody_wrote_is_refused(tmp_path, change):
    with Journal(tmp_path, KEY) as one:
        one.append(0, answers("a \u2028"))
        one.append(1, answers("a"))
    assert list(kept_answers.faults(tmp_path)) == []
    file = next(one.folder.glob("*.jsonl"))
    first, second = file.read_bytes().splitlines(keepends=True)
    row = json.loads(second)
    change(row)
    file.write_bytes(first + json.dumps(row).encode() + b"\n")
    with pytest.raises(ValueError, match=r"line 2, is no finished batch \(it.* hash"):
        one.read()
    [(found, why)] = kept_answers.faults(tmp_path)
    assert found == file and why.startswith("line 2 is no finished batch")


def test_a_line_of_another_run_is_refused(tmp_path):
    with Journal(tmp_path, KEY) as one, Journal(tmp_path, {"seed": 2}) as two:
        one.append(0, answers("a"))
        two.append(1, answers("b"))
    moved = next(two.folder.glob("*.jsonl"))
    shutil.copy(next(one.folder.glob("*.jsonl")), moved)
    with pytest.raises(ValueError, match="does not have its hash"):
        two.read()
    (two.folder / "key.json").write_text(json.dumps(KEY))
    assert {file for file, _ in kept_answers.faults(tmp_path)} == {moved, two.folder / "key.json"}


def test_one_writer(tmp_path):
    with (
        Journal(tmp_path, KEY) as one,
        pytest.raises(BlockingIOError, match=r"another process is writing .*0-of-1\.jsonl"),
        Journal(tmp_path, KEY),
    ):
        pass
    with one:
        one.append(0, answers("a"))


class TestKey:
    @pytest.fixture
    def arguments(self, params, toy_vocabulary, tmp_path, monkeypatch):
        """What `key` is called with, and what it reads: fingerprints below the current folder."""
        monkeypatch.chdir(tmp_path)

        def make(question="what is at a1", image="x", prefix="", decoding=DECODING, seed=1):
            prompts = [Prompt(question, image, lambda: Image.new("RGB", (1, 1)))]
            return plan(toy_vocabulary, prompts, decoding=decoding, seed=seed, prefix=prefix)

        return make

    def test_same_for_the_same(self, arguments, params):
        first, second = (
            kept_answers.key(arguments(), params, weights="w", prefix="") for _ in range(2)
        )
        assert first == second
        assert json.loads(json.dumps(first)) == first

    def test_everything_counts(self, arguments, params, tmp_path):
        def key(planned=None, params=params, weights="w", prefix=""):
            return kept_answers.key(planned or arguments(), params, weights=weights, prefix=prefix)

        keys = [
            key(),
            key(weights="other"),
            key(prefix="<SUMMARY>"),
            key(arguments(prefix="<SUMMARY>")),
            key(arguments(question="what is at a2")),
            key(arguments(image="y")),
            key(arguments(seed=2)),
            *(
                key(arguments(decoding=DECODING.model_copy(update={name: value})))
                for name, value in [
                    ("temperature", 0.6),
                    ("top_k", 49),
                    ("max_new_tokens", 9),
                    ("batch_size", 3),
                ]
            ),
            key(params=params.model_copy(update={"precision": "bf16"})),
            key(params=params.model_copy(update={"family": "llava-cot-11b"})),
        ]
        (tmp_path / "fingerprints").mkdir()
        (tmp_path / "fingerprints" / "predict.json").write_text("{}")
        keys.append(key())
        assert len({json.dumps(one, sort_keys=True) for one in keys}) == len(keys)


class TestWeights:
    @pytest.fixture
    def models(self, tmp_path):
        for name, content in [("text-cot", "full"), ("recover", "adapter")]:
            (tmp_path / "models" / name).mkdir(parents=True)
            (tmp_path / "models" / name / "model.safetensors").write_text(content)
        return tmp_path / "models"

    def test_an_adapter_changes_with_its_base(self, models):
        before = {name: weights_digest(models, name) for name in ("text-cot", "recover")}
        assert before == {name: weights_digest(models, name) for name in ("text-cot", "recover")}
        (models / "recover" / "model.safetensors").write_text("adapted")
        assert weights_digest(models, "text-cot") == before["text-cot"]
        changed = weights_digest(models, "recover")
        assert changed != before["recover"]
        (models / "text-cot" / "model.safetensors").write_text("fuller")
        assert weights_digest(models, "text-cot") != before["text-cot"]
        assert weights_digest(models, "recover") not in (changed, before["recover"])

    def test_a_name_is_content_too(self, models):
        before = weights_digest(models, "recover")
        file = models / "recover" / "model.safetensors"
        shutil.move(file, file.with_name("other.safetensors"))
        assert weights_digest(models, "recover") != before

    def test_a_pointer_counts_by_revision_or_by_the_files_of_its_folder(self, models, tmp_path):
        folder = models / "text-cot"

        def point(**named):
            (folder / "pretrained.json").write_text(json.dumps(named))
            return weights_digest(models, "text-cot")

        assert point(id="some/model", revision="a") != point(id="some/model", revision="b")
        local = tmp_path / "local"
        local.mkdir()
        (local / "weights").write_text("1")
        first = point(path=str(local))
        (local / "weights").write_text("2")
        assert point(path=str(local)) != first

    def test_missing(self, models):
        with pytest.raises(FileNotFoundError, match="p9 holds no model"):
            weights_digest(models, "p9")


def test_a_seed_changes_nothing_but_the_draws(toy_vocabulary):
    """A plan with another seed has the same batches, and every batch its own random numbers."""
    prompts = [
        Prompt(f"what is at a{i % 3 + 1}", str(i), lambda: Image.new("RGB", (1, 1)))
        for i in range(9)
    ]
    one = plan(toy_vocabulary, prompts, decoding=DECODING, seed=1)
    two = dataclasses.replace(one, seed=2)
    assert sorted(i for batch in one.batches for i in batch) == list(range(9))
    assert one.batches == two.batches
    seeds = [planned.seed_of(batch) for planned in (one, two) for batch in range(5)]
    assert len(set(seeds)) == 10
