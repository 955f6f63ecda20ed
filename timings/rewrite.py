"""What rewriting costs: `python -m timings.rewrite`

Makes records of LLaVA-CoT's kind (100,000 of about 2.6 turns, sections of 50, 100 and 150 words,
odd spacing as often as the recipe counts it, lost and repeated tags, texts that occur twice, tags
in questions, Unicode, missing images) and times `python -m stages.rewrite` on them as a process of
its own, imports and checksum included, against

- the baseline, the official arrangement's way (docs/recipe.md, section 1), in plain Python: read
  all records, make a sample of each turn whose image's file exists, write them as one indented JSON
  list; read that, look for the sections with a regular expression, replace them by `str.replace`,
  write a list for each of the three phases; read and write each list for filter A, again for filter
  B (which divides answers as Llama 3 does, and merges nothing), and once more to shuffle and split
  it. Expressions are compiled once and every list is read once a step, in its favour; as for ours,
  files are written to the page cache.

Both sides only ask whether an image exists. What verifying it costs is measured on its own, on
photograph-like JPEGs of 640 x 480 pixels.

It fails where the sides keep other turns or write other texts. The last line is a JSON object:

- `ratio`: the baseline's time over ours, with as many processes as the stage uses by itself: it
  needs its processors, so that other work on the machine lowers it;
- `ratio_cpu`: the same of CPU seconds, summed over our processes;
- `peak_mb`: the peak of our resident memory, summed over all processes (what they share counts in
  each); `baseline_peak_mb`: the baseline's;
- `records`, `turns`, `kept`: how many there were, and how many turns both sides keep;
- `header_ms`, `decode_ms`, `read_ms`: milliseconds an image to verify it by its header, by
  decoding it as `rewrite.verify_images: decode` does, and by decoding all its pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import psutil
import yaml
from PIL import Image
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from heima import config
from heima.cot.rendering import render
from heima.cot.sections import COMPRESSIBLE, SECTIONS, tagged, thinking_token
from heima.data.images import ImageZip
from heima.data.official import PHASES, RULE
from heima.data.turns import load_turns

ROOT = Path(__file__).parents[1]
SEED = 42
HELDOUT = 0.02
ROUNDS = 3
TARGETS = {"ratio": ">= 10", "peak_mb": "< 1000"}

# Records


UNICODE = (
    "naïve café",
    "面积是多少",
    "👩‍🔬 ✓",
    "e\u0301t\u0302",
    "line\u2028separator\u2029",
    "π ≈ 3.14",
    "\u00a0",
)


def make_source(folder: Path, records: int) -> int:
    """Write `train.jsonl`, `images.zip`, and `images/` with the same files; return the turns."""
    draw = random.Random(SEED)
    sentences = _sentences()
    turns = 0
    with (
        (folder / "train.jsonl").open("w", encoding="utf-8") as lines,
        zipfile.ZipFile(folder / "images.zip", "w") as images,
    ):
        for index in range(records):
            name = f"set-{index % 10}/train/{index:07d}.jpg"
            if draw.random() > 0.001:
                images.writestr(name, b"-")
                file = folder / "images" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"-")
            messages = []
            for _ in range(draw.choice((1, 1, 2, 2, 2, 3, 3, 3, 4, 5))):
                messages.append({"from": "human", "value": _question(draw, sentences)})
                messages.append({"from": "gpt", "value": _answer(draw, sentences)})
            turns += len(messages) // 2
            record = {"id": f"record-{index}", "image": name, "conversations": messages}
            lines.write(json.dumps(record, ensure_ascii=index % 2 == 0) + "\n")
    return turns


def _sentences() -> list[tuple[str, int]]:
    """Whole sentences of Python's manual without tags, and their numbers of words."""
    split = (re.split(r"(?<=[.?!:])\s+", " ".join(topic.split())) for topic in topics.values())
    return [
        (sentence, len(sentence.split()))
        for sentences in split
        for sentence in sentences
        if "<" not in sentence and 6 <= len(sentence.split()) <= 30
    ]


def _text(draw: random.Random, sentences: Sequence[tuple[str, int]], words: int) -> str:
    parts = []
    wanted = words * draw.uniform(0.7, 1.3)
    while wanted > 0:
        sentence, length = draw.choice(sentences)
        parts.append(sentence)
        wanted -= length
    if draw.random() < 0.02:
        parts.insert(draw.randrange(len(parts)), draw.choice(UNICODE))
    if draw.random() < 0.005:
        parts.append("so 3 < x and x > 2.")
    return " ".join(parts)


def _question(draw: random.Random, sentences: Sequence[tuple[str, int]]) -> str:
    question = _text(draw, sentences, 15)
    return f"{question} Answer in <CONCLUSION> tags." if draw.random() < 0.001 else question


def _answer(draw: random.Random, sentences: Sequence[tuple[str, int]]) -> str:
    lengths = {"summary": 50, "caption": 100, "reasoning": 150, "conclusion": 15}
    sections = {name: _text(draw, sentences, words) for name, words in lengths.items()}
    if draw.random() < 0.0002:
        sections["reasoning"] += " " + sections[draw.choice(("summary", "caption"))]
    answer = str(render(sections, "text-cot"))
    # The recipe's filter B drops 15.6 % of the turns that filter A leaves.
    if draw.random() < 0.156:
        odd = draw.choice(
            (("\n\n", "\n"), ("> ", ">"), (" </", "</"), ("\n\n", "\n \n"), ("> ", ">\n"))
        )
        answer = answer.replace(*odd)
    fault = draw.random()
    if fault < 0.01:
        answer = sections["conclusion"]
    elif fault < 0.012:
        answer = answer.replace(draw.choice(("</SUMMARY>", "<CAPTION>", "</CONCLUSION>")), "")
    elif fault < 0.013:
        answer += "\n\n" + tagged("caption", sections["caption"])
    elif fault < 0.015:
        answer = "Sure. " + answer
    return answer


# The baseline

_SEARCH = re.compile(
    rf"<({'|'.join(section.upper() for section in SECTIONS)})>(.*?)</\1>", re.DOTALL
)
_PIECES = Split(
    Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "isolated",
)
"""How Llama 3 divides a text before it merges."""
_TOKENS = {section: thinking_token(section) for section in COMPRESSIBLE}
_COMPRESSED = {phase: list(_TOKENS.values())[: n + 1] for n, phase in enumerate(PHASES)}


def official_arrangement(source: Path, folder: Path) -> None:
    """Write `{phase}-{train,heldout}.json` as the official arrangement does, step by step."""
    samples = []
    with (source / "train.jsonl").open(encoding="utf-8") as lines:
        for index, record in enumerate(map(json.loads, lines)):
            image = os.path.join(source, "images", record["image"])
            messages = record["conversations"]
            for turn in range(0, len(messages), 2):
                if os.path.exists(image):
                    sample = {
                        "id": f"{record['id']}-{turn + 1}",
                        "image": record["image"],
                        "index": index,
                        "conversations": messages[turn : turn + 2],
                    }
                    samples.append(sample)
    _write(folder / "flat.json", samples)
    del samples

    phases: dict[str, list[dict[str, Any]]] = {phase: [] for phase in PHASES}
    for sample in _read(folder / "flat.json"):
        human, gpt = sample["conversations"]
        answer = original = gpt["value"]
        found = {name.lower(): text.strip() for name, text in _SEARCH.findall(answer)}
        if not found.keys() >= set(COMPRESSIBLE):
            continue
        question = human["value"]
        parts = ["<image>", question] if sample["index"] % 2 == 0 else [question, "<image>"]
        for (section, token), phase in zip(_TOKENS.items(), PHASES, strict=True):
            answer = answer.replace(found[section], token)
            messages = [
                {"from": "human", "value": "\n".join(parts)},
                {"from": "gpt", "value": answer},
            ]
            phases[phase].append({**sample, "conversations": messages, "original": original})
    for phase in PHASES:
        _write(folder / f"{phase}.json", phases.pop(phase))

    for keeps in (_filter_a, _filter_b):
        for phase in PHASES:
            path = folder / f"{phase}.json"
            _write(path, [one for one in _read(path) if keeps(one, phase)])

    lists = {phase: _read(folder / f"{phase}.json") for phase in PHASES}
    common = set.intersection(*({one["id"] for one in each} for each in lists.values()))
    for phase in PHASES:
        kept = [one for one in lists.pop(phase) if one["id"] in common]
        random.Random(SEED).shuffle(kept)
        cut = round((1 - HELDOUT) * len(kept))
        _write(folder / f"{phase}-train.json", kept[:cut])
        _write(folder / f"{phase}-heldout.json", kept[cut:])


def _filter_a(sample: dict[str, Any], phase: str) -> bool:
    answer = sample["conversations"][1]["value"]
    return all(answer.count(token) == 1 for token in _COMPRESSED[phase])


def _filter_b(sample: dict[str, Any], phase: str) -> bool:
    pieces = [piece for piece, _ in _PIECES.pre_tokenize_str(sample["original"])]
    return all(_has_tags(pieces, section.upper()) for section in COMPRESSIBLE)


def _has_tags(pieces: Sequence[str], tag: str) -> bool:
    """Whether a section's tags stand among the pieces of an answer (docs/recipe.md, section 1)."""
    opened = False
    for before, piece, behind in zip(pieces, pieces[1:], [*pieces[2:], ""], strict=False):
        if opened and piece == tag and before.endswith("</"):
            touched = before[:-2]
            if (not touched.strip() or RULE.closes(touched)) and re.fullmatch(
                r">\n\n(\r[\r\n]*)?", behind
            ):
                return True
        if not opened and before == f"<{tag}" and piece.startswith(">"):
            touched = piece[1:]
            opened = not touched or (touched[0] != "\n" and RULE.opens(touched))
    return False


def _write(path: Path, samples: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(samples, file, indent=4)


def _read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return json.load(file)


# What the sides wrote: (id, phase) -> (image, question with the image's place, answer)

Texts = dict[tuple[str, str], tuple[str, str, str]]


def texts_of_baseline(folder: Path) -> Texts:
    return {
        (one["id"], phase): (
            one["image"],
            one["conversations"][0]["value"],
            one["conversations"][1]["value"],
        )
        for phase in PHASES
        for split in ("train", "heldout")
        for one in _read(folder / f"{phase}-{split}.json")
    }


def texts_of_ours(folder: Path) -> Texts:
    texts = {}
    for split in ("train", "heldout"):
        for turn in load_turns(folder / f"{split}.parquet"):
            parts = ["<image>", turn.question] if turn.image_first else [turn.question, "<image>"]
            for phase in PHASES:
                answer = str(turn.written(phase))
                texts[turn.id, phase] = (turn.image, "\n".join(parts), answer)
    return texts


# Measuring


def measured(command: Sequence[str], folder: Path) -> dict[str, float]:
    """Run a command in a folder: wall and CPU seconds, and the peak memory of all its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident(psutil.Process(process.pid)))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - start, "cpu": cpu, "peak_mb": peak / 1e6}


def _resident(process: psutil.Process) -> int:
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        # It ended while it was looked at: the next look counts those that are left.
        pass
    return total


def stage_folder(folder: Path, source: Path, **settings: str) -> Path:
    """A folder to run the stage in, with these settings of `rewrite`."""
    params = yaml.safe_load((ROOT / "profiles" / "toy.yaml").read_text(encoding="utf-8"))
    params["rewrite"].update(
        heldout=HELDOUT,
        image_place="alternate",
        spacing="canonical",
        verify_images="exists",
        **settings,
    )
    (folder / "data" / "source").mkdir(parents=True)
    resolved = config.resolved(config.parse(yaml.safe_dump(params)))
    (folder / config.RESOLVED).write_text(yaml.safe_dump(resolved), encoding="utf-8")
    pointer = folder / "data" / "source" / "source.json"
    pointer.write_text(json.dumps({"folder": str(source)}), encoding="utf-8")
    return folder


def verification(folder: Path, images: int) -> dict[str, float]:
    """Milliseconds an image of three ways to verify it, in one process."""
    noise = np.random.default_rng(SEED).normal(0, 12, (480, 640, 3))
    scene = np.linspace(40, 200, 640)[None, :, None] + noise
    buffer = io.BytesIO()
    Image.fromarray(scene.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    names = [f"{index}.jpg" for index in range(images)]
    with zipfile.ZipFile(folder / "photographs.zip", "w") as archive:
        for name in names:
            archive.writestr(name, buffer.getvalue())
    photographs = ImageZip(folder / "photographs.zip")
    ways: dict[str, Callable[[str], Any]] = {
        "header_ms": lambda name: photographs.verify(name, "header"),
        "decode_ms": lambda name: photographs.verify(name, "decode"),
        "read_ms": photographs.read,
    }
    found = {}
    for key, way in ways.items():
        start = time.process_time()
        for name in names:
            way(name)
        found[key] = round(1000 * (time.process_time() - start) / images, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument(
        "--quick", action="store_true", help="few records: does it run, do the sides agree"
    )
    parser.add_argument("--baseline", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.baseline:
        official_arrangement(*options.baseline)
        return
    if options.quick:
        options.records = 500
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(Path(temporary), options.records, 1 if options.quick else ROUNDS)
        print(json.dumps(result), flush=True)


def compare(folder: Path, records: int, rounds: int) -> dict[str, Any]:
    source, plain = folder / "source", folder / "plain"
    source.mkdir()
    plain.mkdir()
    turns = make_source(source, records)
    stage = [sys.executable, "-m", "stages.rewrite"]
    official = stage_folder(folder / "official", source, compat="official", split="turn")
    corrected = stage_folder(folder / "corrected", source, compat="corrected", split="image")
    # Ours runs before and after the baseline, so that a machine that slows down favours none.
    runs = [measured(stage, official) for _ in range(rounds - rounds // 2)]
    command = [sys.executable, "-m", "timings.rewrite", "--baseline", str(source), str(plain)]
    baseline = measured(command, folder)
    runs += [measured(stage, official) for _ in range(rounds // 2)]
    ours = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    by_position = measured(stage, corrected)
    kept = _compared(plain, official / "data" / "rewritten")
    metrics = json.loads((corrected / "metrics" / "rewrite.json").read_text(encoding="utf-8"))
    result = {
        "benchmark": "rewrite",
        "baseline": "official arrangement",
        "ratio": round(baseline["seconds"] / ours["seconds"], 1),
        "ratio_cpu": round(baseline["cpu"] / ours["cpu"], 1),
        "peak_mb": round(max(run["peak_mb"] for run in [*runs, by_position])),
        "baseline_peak_mb": round(baseline["peak_mb"]),
        "records": records,
        "turns": turns,
        "kept": kept,
        **verification(folder, 10 if rounds == 1 else 300),
    }
    sides = {
        "stages.rewrite, compat: official": ours,
        "  official arrangement": baseline,
        "stages.rewrite, compat: corrected": by_position,
    }
    print(report(result, sides, metrics))
    return result


def _compared(plain: Path, rewritten: Path) -> int:
    """How many turns both sides keep; fails where they differ."""
    theirs, ours = texts_of_baseline(plain), texts_of_ours(rewritten)
    differing = sorted(
        key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)
    )
    if differing:
        raise SystemExit(f"{len(differing)} texts differ, the first that of {differing[0]}")
    return len(ours) // len(PHASES)


# Printing


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def report(
    result: dict[str, Any], sides: dict[str, dict[str, float]], metrics: dict[str, Any]
) -> str:
    rows = [["", "seconds", "CPU seconds", "peak MB"]]
    for name, side in sides.items():
        rows.append(
            [name, *(f"{side[key]:.1f}" for key in ("seconds", "cpu")), f"{side['peak_mb']:.0f}"]
        )
    images = result["records"] / 1000
    return "\n".join(
        [
            f"{result['records']} records, {result['turns']} turns, {result['kept']} kept by both "
            "sides with the same texts.",
            "",
            table(rows),
            "",
            f"ratio {result['ratio']} (target {TARGETS['ratio']}), of CPU seconds "
            f"{result['ratio_cpu']}; peak {result['peak_mb']} MB (target {TARGETS['peak_mb']})",
            "",
            "verifying an image: "
            + ", ".join(
                f"{name} {result[key]} ms ({result[key] * images:.0f} CPU s for all)"
                for name, key in (("header", "header_ms"), ("decode", "decode_ms"))
            )
            + f"; all its pixels {result['read_ms']} ms",
            "",
            "corrected and official, as metrics/rewrite.json tells it:",
            *_differences(metrics),
        ]
    )


def _differences(metrics: dict[str, Any]) -> Iterator[str]:
    for name, one in metrics["arrangements"].items():
        yield f"  {name}: " + ", ".join(f"{key} {value}" for key, value in one.items())
    for key, value in metrics["differences"].items():
        yield f"  {key}: {value}"


if __name__ == "__main__":
    main()
