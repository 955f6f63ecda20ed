"""The toy benchmarks under lmms-eval's own functions: prompts, answers, circularity, pairs."""

from collections import Counter, defaultdict
from pathlib import Path

import lmms_eval.tasks
import numpy as np
import pytest
import yaml
from datasets import load_dataset
from lmms_eval.tasks.ai2d import utils as ai2d
from lmms_eval.tasks.hallusion_bench import evaluate_hb
from lmms_eval.tasks.hallusion_bench import utils as hallusion
from lmms_eval.tasks.mmbench import en_utils as mmbench
from lmms_eval.tasks.mmstar import utils as mmstar

from heima.config.benchmarks import BENCHMARKS
from heima.toy.benchmarks import EDITIONS, write_benchmarks
from heima.toy.source import source_scenes
from heima.toy.world import KINDS, STYLES, ask, compose, draw_scene, prompt_text, render

with pytest.MonkeyPatch.context() as patch:
    # These two build a judge's client when imported; no test here lets it speak.
    patch.setenv("OPENAI_API_KEY", "unused")
    from lmms_eval.tasks.mathvista import utils as mathvista
    from lmms_eval.tasks.mmvet import utils as mmvet

SIZES = {
    "mmstar": 24, "mmbench": 10, "mmvet": 12, "mathvista": 12, "ai2d": 12, "hallusionbench": 24,
}  # fmt: skip
ROTATION = BENCHMARKS["mmbench"].dataset.rotation
TASKS = Path(lmms_eval.tasks.__file__).parent
TASK_FILES = {
    "mmstar": "mmstar/_default_template_yaml",
    "mmbench": "mmbench/_default_template_mmbench_en_yaml",
    "mmvet": "mmvet/mmvet.yaml",
    "mathvista": "mathvista/mathvista_testmini_format.yaml",
    "ai2d": "ai2d/ai2d.yaml",
    "hallusionbench": "hallusion_bench/hallusion_bench_image.yaml",
}
TO_TEXT = {
    "mmstar": mmstar.mmstar_doc_to_text,
    "mmbench": mmbench.mmbench_doc_to_text,
    "mmvet": mmvet.doc_to_text,
    "mathvista": mathvista.mathvista_doc_to_text,
    "ai2d": ai2d.ai2d_doc_to_text,
    "hallusionbench": evaluate_hb.hb_doc_to_text,
}


def task_kwargs(name):
    """`lmms_eval_specific_kwargs` of the task's own yaml."""
    lines = (TASKS / TASK_FILES[name]).read_text().splitlines()
    plain = yaml.safe_load("\n".join(line for line in lines if "!function" not in line))
    return plain["lmms_eval_specific_kwargs"]["default"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    mix = dict.fromkeys(KINDS, 1.0)
    exclude = {s.key for s in source_scenes(records=300, turns=1, mix=mix, seed=0)}
    write_benchmarks(folder, sizes=SIZES, seed=0, exclude=exclude)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    loaded = {}
    for name in EDITIONS:
        dataset = BENCHMARKS[name].dataset
        data = load_dataset(
            str(folder / name),
            name=dataset.configuration,
            split=dataset.split,
            cache_dir=str(folder / "cache"),
        )
        loaded[name] = list(data)
    return loaded


def test_all_are_written(rows):
    sizes = {name: len(found) for name, found in rows.items()}
    assert sizes == SIZES | {"mmbench": 4 * SIZES["mmbench"]}


@pytest.mark.parametrize("name", EDITIONS)
def test_prompts_are_those_of_the_training_questions(rows, name):
    """lmms-eval's doc_to_text of our rows equals `prompt_text`, which words the training data."""
    for row in rows[name]:
        asked = TO_TEXT[name](row, task_kwargs(name))
        if name == "mmstar":
            text, listed = row["question"].split("\nOptions: ")
            options = [item.split(": ")[1] for item in listed.split(", ")]
        else:
            text = row["question"]
            options = row.get("options") or [row[letter] for letter in "ABCD" if letter in row]
        assert asked == prompt_text(name, text, options)


def test_every_style_of_training_is_a_benchmark_or_the_papers():
    styles = {style for styles in STYLES.values() for style in styles}
    assert styles == {*EDITIONS, "paper-choice", "paper-plain"}


@pytest.mark.parametrize("name", EDITIONS)
def test_images_are_32_pixel_pictures(rows, name):
    for row in rows[name]:
        image = row[BENCHMARKS[name].dataset.image]
        assert image.convert("RGB").size == (32, 32)


def picture(row, column="image"):
    return row[column].convert("RGB").tobytes()


def test_scenes_are_disjoint_from_the_source_and_from_each_other(rows):
    mix = dict.fromkeys(KINDS, 1.0)
    source = {render(s).tobytes() for s in source_scenes(records=300, turns=1, mix=mix, seed=0)}
    seen = []
    for name, found in rows.items():
        seen.append({picture(row, BENCHMARKS[name].dataset.image) for row in found})
    assert sum(map(len, seen)) == len(set.union(*seen))
    # HallusionBench asks two questions about each picture.
    assert sum(map(len, seen)) == sum(SIZES.values()) - SIZES["hallusionbench"] // 2
    assert not source & set.union(*seen)


def test_excluded_scenes_never_appear(tmp_path):
    """The same seed with the first run's scenes excluded shows other pictures."""
    first = np.random.default_rng([0, 0])
    key = draw_scene(first).key
    for name, exclude in (("free", ()), ("without", {key})):
        write_benchmarks(tmp_path / name, sizes={"mmvet": 1}, seed=0, exclude=exclude)
    shown = [
        picture(
            load_dataset(
                str(tmp_path / name / "mmvet"), split="test", cache_dir=str(tmp_path / "cache")
            )[0]
        )
        for name in ("free", "without")
    ]
    assert shown[0] != shown[1]


def test_bytes_follow_from_the_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_benchmarks(tmp_path / name, sizes={"ai2d": 3, "mmbench": 2}, seed=seed)
    files = {
        name: {
            file.relative_to(tmp_path / name): file.read_bytes()
            for file in (tmp_path / name).rglob("*.*")
        }
        for name in "abc"
    }
    assert len(files["a"]) == 4
    assert files["a"] == files["b"]
    assert not {v for v in files["a"].values() if v[:4] == b"PAR1"} & set(files["c"].values())


def test_rewriting_leaves_no_stale_rows(tmp_path):
    """`datasets` must not answer from its cache when a folder's content has changed."""
    shown = []
    for seed in (0, 1):
        write_benchmarks(tmp_path, sizes={"mmvet": 2}, seed=seed)
        rows = load_dataset(
            str(tmp_path / "mmvet"), split="test", cache_dir=str(tmp_path / "cache")
        )
        shown.append([picture(row) for row in rows])
    assert not set(shown[0]) & set(shown[1])
    assert len(list((tmp_path / "mmvet").glob("*.parquet"))) == 1


def test_mmstar_scores_bare_letters_in_all_categories(rows):
    assert len({row["category"] for row in rows["mmstar"]}) == 6
    results = [mmstar.mmstar_process_results(row, [row["answer"]]) for row in rows["mmstar"]]
    assert mmstar.mmstar_aggregate_results([result["average"] for result in results]) == 1.0
    for row in rows["mmstar"]:
        assert row["l2_category"] in mmstar.eval_type_dict[row["category"]]
        assert mmstar.mmstar_process_results(row, ["E"])["average"]["score"] == 0.0


def test_ai2d_scores_bare_letters(rows):
    extract = ai2d.MultiChoiceRegexFilter(regex_pattern=r"([A-Z])\.")
    for row in rows["ai2d"]:
        target = ai2d.ai2d_doc_to_target(row, "mcq")
        assert extract.apply([[target]], [row]) == [target]
        assert target == "ABCD"[int(row["answer"])]


def test_mmbench_rotates_and_counts_a_question_once(rows):
    groups = defaultdict(list)
    for row in rows["mmbench"]:
        groups[row["index"] % ROTATION].append(row)
    assert sorted(groups) == list(range(SIZES["mmbench"]))
    for group in groups.values():
        assert {row["answer"] for row in group} == set("ABCD")
        assert len({row[row["answer"]] for row in group}) == 1
        assert len({picture(row) for row in group}) == 1

    def score(predict):
        results = [
            mmbench.mmbench_process_results(row, [predict(row)])["gpt_eval_score"]
            for row in rows["mmbench"]
        ]
        return mmbench.mmbench_evaluator.eval_result(results, eval_method="static")[0]

    assert score(lambda row: row["answer"]) == 1.0
    # One wrong rotation spoils its question and no other.
    spoilt = lambda row: "E" if row["index"] == 2 * ROTATION else row["answer"]  # noqa: E731
    assert score(spoilt) == pytest.approx(1 - 1 / SIZES["mmbench"])


def test_mathvista_takes_integers_without_a_judge(rows):
    results = [
        mathvista.mathvista_process_results(row, [row["answer"]])["llm_as_judge_eval"]
        for row in rows["mathvista"]
    ]
    assert all(result["true_false"] for result in results)
    assert mathvista.mathvista_aggregate_results(results, None) == 100.0


def test_mmvet_rows_carry_its_capabilities(rows):
    known = set(mmvet.cap_columns.squeeze())
    graded = []
    for row in rows["mmvet"]:
        assert set(row["capability"].split(",")) <= known
        graded.append({"score": 1.0, "capabilities": row["capability"]})
    assert mmvet.mmvet_aggregate_results(graded) == 100


def test_hallusionbench_is_balanced_and_has_pairs_and_figures(rows):
    found = rows["hallusionbench"]
    answers = Counter(row["gt_answer"] for row in found)
    assert answers["0"] == answers["1"]
    assert {row["category"] for row in found} == {"VD", "VS"}
    for row in found:
        said = row["gt_answer_details"].lower()
        assert said.startswith("yes," if row["gt_answer"] == "1" else "no,")
    questions = defaultdict(set)
    for row in found:
        questions[row["category"], row["set_id"], row["question_id"]].add(
            (row["question"], row["gt_answer"])
        )
    for pair in questions.values():
        assert len({text for text, _ in pair}) == 1 and {a for _, a in pair} == {"0", "1"}
    graded = [dict(row, gpt4v_output_gpt_check="1") for row in found]
    right = hallusion.assign_correctness(graded, correctness_entry="gpt4v_output_gpt_check")
    figures = hallusion.get_eval_fig(right)
    pairs = hallusion.get_eval_pair_all(right, "gpt4v_output_gpt_check")
    sets = SIZES["hallusionbench"] // 4
    assert (figures["total"], figures["correct"]) == (2 * sets, 2 * sets)
    assert (pairs["total"], pairs["correct"]) == (2 * sets, 2 * sets)
    assert hallusion.get_eval_all(right, "gpt4v_output_gpt_check")["total"] == len(found)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"mmmu": 4}, "unknown 'mmmu'; allowed: mmstar"),
        ({"ai2d": 0}, r"sizes\['ai2d'\]=0 must be at least 1"),
        ({"hallusionbench": 6}, "must be a multiple of 4"),
    ],
)
def test_bad_sizes(tmp_path, sizes, message):
    with pytest.raises(ValueError, match=message):
        write_benchmarks(tmp_path, sizes=sizes, seed=0)


def test_options_of_training_and_benchmarks_come_from_one_function():
    rng = np.random.default_rng(0)
    scene = draw_scene(rng)
    asked = ask(scene, "sum-option", rng, style="ai2d")
    again = compose(scene, asked.kind, asked.cells, style="ai2d", options=asked.options)
    assert again == asked
