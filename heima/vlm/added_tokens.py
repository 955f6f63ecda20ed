"""Thinking tokens for a vocabulary that reserves none: added to it whenever a model is loaded.

Nothing of them is kept on disk. A token's rows in embeddings and lm_head follow from its name and
the pretrained rows alone, and stay frozen like those; what is learnt is in the adapter, which
covers the lm_head. So base model and adapter make the same model in every process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from heima.families.registry import Family

_PARENTS = 4
"""How many pretrained rows are averaged for a new one: near their mean, yet no two alike."""


def equip(tokenizer: PreTrainedTokenizerBase, family: Family) -> None:
    """Give a tokenizer what its family asks for and it does not have, in place: the thinking
    tokens, the family's chat template, and a token for padding (Vicuna's has none).

    Raises `ValueError` where the vocabulary lacks the token for padding.
    """
    if family.added:
        tokenizer.add_tokens(
            [
                AddedToken(token, normalized=False, special=True)
                for token in family.thinking_tokens.values()
            ]
        )
    if family.chat_template is not None:
        tokenizer.chat_template = family.chat_template
    if tokenizer.pad_token is None:
        if family.pad_token not in tokenizer.get_vocab():
            raise ValueError(
                f"the tokenizer names no token for padding and has no {family.pad_token!r}; set "
                "`pad_token` in its tokenizer_config.json"
            )
        tokenizer.pad_token = family.pad_token


def fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: Family) -> None:
    """Give a pretrained model rows for the tokens that `equip` has added, in place.

    Rows that the model has beyond its tokenizer's own tokens are used first; more are added where
    they do not suffice.
    """
    if not family.added:
        return
    tokens = list(family.thinking_tokens.values())
    ids = dict(zip(tokens, tokenizer.convert_tokens_to_ids(tokens), strict=True))
    if max(ids.values()) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(ids.values()) + 1, mean_resizing=False)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        _initialise(table.weight, ids)


@torch.no_grad()
def _initialise(rows: torch.Tensor, ids: Mapping[str, int]) -> None:
    """Set the rows of added tokens; `rows` is (vocabulary, hidden_size).

    A mean over the whole vocabulary would be rounded differently with another number of threads.
    """
    pretrained = min(ids.values())
    for token, row in ids.items():
        digest = hashlib.sha256(token.encode()).digest()
        parents = [
            int.from_bytes(digest[8 * place : 8 * place + 8]) % pretrained
            for place in range(_PARENTS)
        ]
        rows[row] = sum(rows[parent].float() for parent in parents) / _PARENTS


def untie(model: PreTrainedModel) -> None:
    """Give a model whose lm_head *is* its embeddings an lm_head of its own, in place.

    Otherwise an adapter on the lm_head, once merged, would change the embeddings, too.
    """
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
