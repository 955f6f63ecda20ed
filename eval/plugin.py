"""What lmms-eval reads through the entry point group `lmms_eval.models` (see pyproject.toml).

lmms-eval imports this at every start, so it names the classes and imports none of them.
"""

from lmms_eval.models.registry_v2 import ModelManifest


def manifests() -> list[ModelManifest]:
    """`heima` decodes with one of our models; `heima-replay` returns saved predictions.

    python -m lmms_eval --model heima --model_args name=recover --tasks mmstar
    """
    return [
        ModelManifest("heima", chat_class_path="eval.decoding.Heima"),
        ModelManifest("heima-replay", chat_class_path="eval.chat_models.HeimaReplay"),
    ]
