"""Open the judge that the parameters name: a server elsewhere, or the embedded rules on loopback.

    python -m eval.judge.server --port 8001 --seconds 0.2

serves the embedded rules as an OpenAI-compatible server, each reply after 0.2 seconds: to try
`judge: {backend: openai, base_url: "http://127.0.0.1:8001/v1", model: embedded-rules}` at no cost.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eval import prompts, rules
from eval.gateway import Gateway
from eval.judge import similarity
from eval.judge.cache import ReplyCache
from eval.judge.client import Judge
from eval.judge.endpoint import Endpoint
from heima.config import EmbeddedRules, OpenAIJudge

_EMBEDDED = OpenAIJudge(
    backend="openai", base_url="http://127.0.0.1/v1", model=rules.NAME, workers=8, max_missing=0
)
"""How the embedded rules are asked; they bill nothing and never fail."""


@contextmanager
def open_judge(params: EmbeddedRules | OpenAIJudge) -> Iterator[tuple[Judge, OpenAIJudge]]:
    """The judge of the parameters with its cache, and how it is asked.

    The embedded rules are a server like another one, on a free loopback port; in cache keys their
    code stands for them. Raises `JudgeError`.
    """
    if isinstance(params, EmbeddedRules):
        with Gateway(params) as gateway:
            options = _EMBEDDED.model_copy(update={"base_url": gateway.url})
            endpoint = Endpoint.of(options, identity=f"{rules.NAME} {_code()}", api_key=gateway.key)
            with ReplyCache(Path(options.cache)) as cache:
                yield Judge(endpoint, cache), options
    else:
        with ReplyCache(Path(params.cache)) as cache:
            yield Judge(Endpoint.of(params), cache), params


def _code() -> str:
    """What identifies the embedded rules: a hash of the files that they consist of."""
    digest = hashlib.sha256()
    for module in (rules, prompts, similarity):
        digest.update(Path(inspect.getfile(module)).read_bytes())
    return digest.hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="loopback port (default: a free one)")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long a reply takes")
    options = parser.parse_args()
    # There is nothing to spend here, so whoever asks is answered.
    gateway = Gateway(
        EmbeddedRules(backend="embedded-rules"),
        port=options.port,
        delay_seconds=options.seconds,
        guarded=False,
    )
    with gateway:
        print(f"{rules.NAME} at {gateway.url}; Ctrl-C ends it", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
