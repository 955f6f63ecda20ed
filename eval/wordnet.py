"""WordNet for METEOR: where it lies on a machine, read by NLTK, each word looked up once.

NLTK reads WordNet's own files in two layouts: the `wordnet` package of `nltk_data`, and the folder
`dict` of Princeton's release, which Debian's package `wordnet-base` puts into /usr/share/wordnet.
Both hold WordNet 3.0 and give the same synonyms (tested).
"""

from __future__ import annotations

import functools
import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from eval.resources import MissingResource

DEBIAN = Path("/usr/share/wordnet")

_LEXNAMES = """
adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body
noun.cognition noun.communication noun.event noun.feeling noun.food noun.group noun.location
noun.motive noun.object noun.person noun.phenomenon noun.plant noun.possession noun.process
noun.quantity noun.relation noun.shape noun.state noun.substance noun.time verb.body verb.change
verb.cognition verb.communication verb.competition verb.consumption verb.contact verb.creation
verb.emotion verb.motion verb.perception verb.possession verb.social verb.stative verb.weather
adj.ppl
""".split()
"""WordNet's 45 lexicographer files by number (its manual page lexnames(5)); Debian leaves out the
file that lists them."""

FETCH = (
    "`.venv/bin/python -m nltk.downloader wordnet punkt_tab`, or Debian's package wordnet-base, or "
    "set similarity.wordnet_path to a folder with WordNet's data.noun"
)


class Synonyms(Protocol):
    """What METEOR asks of WordNet."""

    def synsets(self, word: str) -> Sequence[Any]: ...


class NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, word: str) -> Sequence[Any]:
        return ()


class _Named:
    """A lemma, and a synset of one: METEOR reads a synset's lemmas and their names only."""

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name

    def lemmas(self) -> Sequence[_Named]:
        return (self,)


class RememberedSynonyms:
    """The synonyms of another WordNet, `source`; each word is looked up there once.

    METEOR looks at all single-word lemmas of all synsets of a word, in no order; so each becomes
    a synset of its own here.
    """

    def __init__(self, source: Synonyms) -> None:
        self.source = source
        self.synsets = functools.lru_cache(maxsize=None)(self._synsets)

    def _synsets(self, word: str) -> Sequence[_Named]:
        names = {lemma.name() for synset in self.source.synsets(word) for lemma in synset.lemmas()}
        # METEOR leaves out the names of more than one word, and knows the word itself.
        return tuple(_Named(name) for name in sorted(names) if "_" not in name and name != word)


def find(path: str | None) -> Path:
    """The folder with WordNet's files: `path`, or one of NLTK's data folders, or Debian's.

    Raises `MissingResource` with what was looked at and how to get WordNet.
    """
    import nltk

    if path is not None:
        candidates = [Path(path)]
    else:
        folders = [Path(folder) / "corpora" / "wordnet" for folder in nltk.data.path]
        candidates = [*folders, DEBIAN]
    for folder in candidates:
        if (folder / "data.noun").is_file():
            return folder
    zipped = [folder for folder in candidates if folder.with_suffix(".zip").is_file()]
    if zipped:
        raise MissingResource(
            f"{zipped[0]}.zip must be unpacked: `unzip {zipped[0]}.zip -d {zipped[0].parent}`"
        )
    raise MissingResource(
        f"METEOR needs WordNet, not found in {', '.join(map(str, candidates))}. Get it with "
        f"{FETCH}; or set similarity.meteor: exact-stem, which gives the column meteor_exact_stem "
        "instead of meteor"
    )


def load(folder: Path) -> RememberedSynonyms:
    """NLTK's reader over the WordNet in `folder` (about 2 s and 150 MB), remembering each word.

    Raises `MissingResource` where NLTK refuses the files: it reads no links, and none that others
    may write. Where they are damaged, it is raised now or by the word that meets the damage.
    """
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader, WordNetError

    # What NLTK's parser raises on damaged lines, beside errors of reading.
    faults = (OSError, ValueError, LookupError, AssertionError, StopIteration, WordNetError)

    def unreadable(fault: str) -> MissingResource:
        return MissingResource(
            f"NLTK cannot read the WordNet in {folder} ({fault}). It wants undamaged plain files "
            f"that only their owner may write; get them again with {FETCH}"
        )

    class Reader(WordNetCorpusReader):
        def open(self, file: str) -> Any:
            if file == "lexnames" and not (folder / file).is_file():
                lines = (f"{number:02d}\t{name}\t0\n" for number, name in enumerate(_LEXNAMES))
                return io.StringIO("".join(lines))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """No mapping between releases: only other languages need one."""

        def synset_from_pos_and_offset(self, pos: str, offset: int) -> Any:
            try:
                synset = super().synset_from_pos_and_offset(pos, offset)
            except faults as error:
                raise unreadable(f"{type(error).__name__}: {error}") from error
            if synset is None:
                raise unreadable(f"no synset at byte {offset} of the part of speech {pos}")
            return synset

    # NLTK reads below its data folders only.
    if str(folder) not in nltk.data.path:
        nltk.data.path.append(str(folder))
    try:
        with warnings.catch_warnings():
            # It has no other languages, and METEOR needs none.
            warnings.filterwarnings("ignore", message="The multilingual functions")
            reader = Reader(nltk.data.FileSystemPathPointer(str(folder)), None)
    except faults as error:
        raise unreadable(f"{type(error).__name__}: {error}") from error
    reader.synsets("word")
    return RememberedSynonyms(reader)


def identity(folder: Path) -> str:
    """What identifies a WordNet: the SHA-256 of its four data files."""
    digest = hashlib.sha256()
    for part in ("adj", "adv", "noun", "verb"):
        digest.update((folder / f"data.{part}").read_bytes())
    return f"sha256:{digest.hexdigest()}"
