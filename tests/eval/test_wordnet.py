"""WordNet in a miniature edition: both layouts, where it is looked for, what is refused."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import nltk
import pytest
from nltk.translate.meteor_score import single_meteor_score

from eval import lexical, wordnet
from eval.resources import MissingResource
from heima.config import Similarity

pytestmark = pytest.mark.filterwarnings("error:The multilingual functions")

SYNSETS = (
    ("noun", "n", ("disk", "disc", "saucer")),
    ("noun", "n", ("ring", "hoop", "ear-ring")),
    ("noun", "n", ("circle", "round", "traffic_circle")),
    ("noun", "n", ("mouse",)),
    ("noun", "n", ("word", "Bible")),
    ("verb", "v", ("ring", "peal")),
    ("verb", "v", ("draw", "pull", "attract")),
    ("adj", "a", ("red", "crimson(p)")),
    ("adj", "s", ("vivid", "bright")),
    ("adv", "r", ("quickly", "rapidly")),
)
"""File, part of speech and lemmas. The satellite is similar to the head before it."""

EXCEPTIONS = {"noun": ("mice", "mouse"), "verb": ("drew", "draw")}
LICENCE = "  1 WordNet 3.0 Copyright 2006 by Princeton University. A miniature of it.  \n"
FILES = [f"{kind}.{part}" for kind in ("data", "index") for part in ("adj", "adv", "noun", "verb")]

FOUND = {
    "disk": {"disc", "saucer"},
    "ring": {"hoop", "ear-ring", "peal"},
    "circles": {"circle", "round"},
    "mice": {"mouse"},
    "word": {"Bible"},
    "drew": {"draw", "pull", "attract"},
    "red": {"crimson"},
    "bright": {"vivid"},
    "quickly": {"rapidly"},
    "square": set(),
}
"""Word -> its synonyms of one word, as the synsets above say."""


def write_wordnet(folder: Path, *, lexnames: bool) -> Path:
    """Write `SYNSETS` in the format of wndb(5), each file readable by all and written by one."""
    folder.mkdir(parents=True)
    texts = {}
    for part in ("adj", "adv", "noun", "verb"):
        data, index, head = LICENCE, {}, 0
        for place, kind, names in SYNSETS:
            if place != part:
                continue
            offset = len(data)
            lemmas = " ".join(f"{name} 0" for name in names)
            pointers = f"001 & {head:08d} a 0000" if kind == "s" else "000"
            frames = " 01 + 02 00" if kind == "v" else ""
            data += (
                f"{offset:08d} 00 {kind} {len(names):02x} {lemmas} {pointers}{frames} | gloss  \n"
            )
            head = offset
            for name in names:
                index.setdefault(name.split("(")[0].lower(), []).append(offset)
        texts[f"data.{part}"] = data
        texts[f"index.{part}"] = LICENCE + "".join(
            f"{name} {part[0] if part != 'adv' else 'r'} {len(offsets)} 0 {len(offsets)} 0 "
            f"{' '.join(f'{offset:08d}' for offset in offsets)}  \n"
            for name, offsets in sorted(index.items())
        )
        texts[f"{part}.exc"] = " ".join(EXCEPTIONS.get(part, ("best", "well"))) + "\n"
    if lexnames:
        texts["lexnames"] = "".join(f"{i:02d}\t{n}\t0\n" for i, n in enumerate(wordnet._LEXNAMES))
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o644)
    folder.chmod(0o755)
    return folder


@pytest.fixture
def data_path(monkeypatch) -> list[str]:
    """NLTK's data folders: none, until a test adds its own."""
    folders: list[str] = []
    monkeypatch.setattr(nltk.data, "path", folders)
    return folders


@pytest.fixture
def debian(tmp_path, monkeypatch) -> Path:
    """Where Debian's WordNet would lie; nothing is there yet."""
    folder = tmp_path / "usr" / "share" / "wordnet"
    monkeypatch.setattr(wordnet, "DEBIAN", folder)
    return folder


def parameters(**changes) -> Similarity:
    values = {"references": "clean", "bertscore": "minilm-l6", "judged": ()}
    return Similarity(**values, judge_image=False, draws=1, **changes)


def names(synonyms: wordnet.Synonyms, word: str) -> set[str]:
    return {lemma.name() for synset in synonyms.synsets(word) for lemma in synset.lemmas()}


# Layouts


@pytest.mark.parametrize("lexnames", [False, True], ids=["Debian's layout", "NLTK's layout"])
def test_both_layouts_give_the_synonyms_of_the_files(tmp_path, data_path, lexnames):
    folder = write_wordnet(tmp_path / "wordnet", lexnames=lexnames)
    assert (folder / "lexnames").is_file() == lexnames
    loaded = wordnet.load(folder)
    for word, expected in FOUND.items():
        assert names(loaded, word) - {word} == expected, word


def test_a_relative_folder_is_read(tmp_path, data_path, monkeypatch):
    write_wordnet(tmp_path / "here" / "wordnet", lexnames=False)
    monkeypatch.chdir(tmp_path)
    folder = wordnet.find("here/wordnet")
    assert names(wordnet.load(folder), "disk") == {"disc", "saucer"}


def test_the_identity_is_that_of_the_four_data_files(tmp_path):
    one = write_wordnet(tmp_path / "one", lexnames=False)
    other = write_wordnet(tmp_path / "other", lexnames=True)
    assert wordnet.identity(one) == wordnet.identity(other)
    with (other / "data.adv").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert wordnet.identity(one) != wordnet.identity(other)


def test_meteor_over_a_folder_is_nltks_with_its_reader(tmp_path, data_path):
    folder = write_wordnet(tmp_path / "wordnet", lexnames=False)
    meteor, made = lexical.meteor(parameters(meteor="wordnet-no-punkt", wordnet_path=str(folder)))
    assert made == {
        "column": "meteor_no_punkt",
        "sentences": "punkt, untrained",
        "synonyms": f"WordNet {wordnet.identity(folder)}",
    }
    reader = meteor._synonyms.source
    reference = "the red disk and the ring draw a vivid round".split()
    hypotheses = [
        "the crimson disc and the hoop attract a bright circle".split(),
        "saucer peal word quickly pull the round".split(),
        reference,
    ]
    for hypothesis in hypotheses:
        naive = single_meteor_score(reference, hypothesis, wordnet=reader)
        value = meteor(" ".join(reference), " ".join(hypothesis))
        assert value == pytest.approx(naive, abs=1e-9)
    without, _ = lexical.meteor(parameters(meteor="exact-stem"))
    assert meteor("a red disk", "a crimson disc") > 0.9 > without("a red disk", "a crimson disc")


@pytest.mark.skipif(
    not (wordnet.DEBIAN / "data.noun").is_file(), reason="Debian's WordNet is not installed"
)
def test_the_real_wordnet_is_remembered_as_nltk_reads_it(data_path):
    loaded = wordnet.load(wordnet.DEBIAN)
    for word in "car cars red ran better ox disk good New_York zzz 9 'hood".split():
        read = {
            lemma.name()
            for synset in loaded.source.synsets(word)
            for lemma in synset.lemmas()
            if "_" not in lemma.name()
        }
        assert names(loaded, word) == read - {word}, word
    assert {"auto", "automobile"} <= names(loaded, "cars")


# Where it is looked for


def test_wordnet_is_looked_for_at_the_path_then_in_nltks_folders_then_at_debians(
    tmp_path, data_path, debian
):
    given = write_wordnet(tmp_path / "given", lexnames=True)
    data_path += [str(tmp_path / "first"), str(tmp_path / "second")]
    first, second = (Path(folder) / "corpora" / "wordnet" for folder in data_path)
    for place in (first, second, debian):
        write_wordnet(place, lexnames=place != debian)
    assert wordnet.find(str(given)) == given
    for place in (first, second, debian):
        assert wordnet.find(None) == place
        shutil.rmtree(place)
    with pytest.raises(MissingResource) as caught:
        wordnet.find(None)
    message = str(caught.value)
    for place in (first, second, debian):
        assert str(place) in message
    for remedy in (
        "python -m nltk.downloader wordnet",
        "wordnet-base",
        "similarity.wordnet_path",
        "similarity.meteor: exact-stem",
        "meteor_exact_stem",
    ):
        assert remedy in message


def test_a_given_path_is_the_only_place(tmp_path, data_path, debian):
    write_wordnet(debian, lexnames=False)
    with pytest.raises(MissingResource, match=r"not found in \S*nowhere\. Get it"):
        wordnet.find(str(tmp_path / "nowhere"))


def test_a_wordnet_that_is_still_packed_names_the_command(tmp_path, data_path, debian):
    data_path.append(str(tmp_path))
    packed = tmp_path / "corpora" / "wordnet.zip"
    packed.parent.mkdir()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("wordnet/data.noun", LICENCE)
    with pytest.raises(MissingResource, match=f"unzip {packed} -d {packed.parent}"):
        wordnet.find(None)


# What is refused


def move_behind_a_link(folder: Path) -> None:
    shutil.move(folder / "data.noun", folder.parent / "elsewhere")
    (folder / "data.noun").symlink_to(folder.parent / "elsewhere")


def cut(file: Path, length: int) -> None:
    file.write_text(file.read_text(encoding="utf-8")[:length], encoding="utf-8")


DAMAGES = {
    "a symbolic link": move_behind_a_link,
    "a hard link": lambda folder: os.link(folder / "data.noun", folder.parent / "elsewhere"),
    "others may write": lambda folder: (folder / "data.noun").chmod(0o664),
    "no index": lambda folder: (folder / "index.verb").unlink(),
    "no exceptions": lambda folder: (folder / "noun.exc").unlink(),
    "no number in the index": lambda folder: (folder / "index.verb").write_text("ring v x 0\n"),
    "a cut index": lambda folder: cut(folder / "index.noun", len(LICENCE) + 9),
    "bytes that are no text": lambda folder: (folder / "index.adv").write_bytes(b"\xff\xfe\n"),
    "no data": lambda folder: cut(folder / "data.noun", 0),
    "data that lie elsewhere": lambda folder: (folder / "data.noun").write_text(
        "\n" + (folder / "data.noun").read_text(encoding="utf-8")
    ),
}


@pytest.mark.filterwarnings("ignore:No WordNet synset found")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_files_that_nltk_cannot_read_are_a_missing_resource(tmp_path, data_path, damage):
    folder = write_wordnet(tmp_path / "wordnet", lexnames=False)
    damage(folder)
    with pytest.raises(MissingResource, match=f"cannot read the WordNet in {folder}.*get them"):
        wordnet.load(folder)


@pytest.mark.filterwarnings("ignore:No WordNet synset found")
@pytest.mark.parametrize("left", [0, 40], ids=["the whole synset", "half of it"])
def test_damage_that_a_later_word_meets_is_a_missing_resource(tmp_path, data_path, left):
    folder = write_wordnet(tmp_path / "wordnet", lexnames=False)
    # The last line of the verbs is that of `draw`.
    text = (folder / "data.verb").read_text(encoding="utf-8")
    cut(folder / "data.verb", text.rindex("\n", 0, -1) + 1 + left)
    loaded = wordnet.load(folder)
    assert names(loaded, "disk") == {"disc", "saucer"}
    with pytest.raises(MissingResource, match=f"cannot read the WordNet in {folder}"):
        loaded.synsets("draw")
