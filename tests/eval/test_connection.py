"""What stands between this project and a judge: key, proxies, redirects, and how much is read."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import requests

from eval import lmms_start, prompts
from eval.gateway import Gateway, JudgeError
from eval.judge import connection
from eval.judge.cache import ReplyCache
from eval.judge.connection import connect, is_loopback, proxy_for
from heima.config import EmbeddedRules, OpenAIJudge
from tests.eval.judge_server import JudgeServer, completion, text_of
from tests.eval.test_gateway import ask, authorized, content, question, verdict

ROOT = Path(__file__).parents[2]
KEY = "sk-live/0123456789abcdef"
ODD_PROXIES = ["socks5://127.0.0.1:1", "socks://127.0.0.1:1", "http://127.0.0.1:1", "127.0.0.1:1"]


@pytest.fixture
def server():
    with JudgeServer() as running:
        yield running


@pytest.fixture
def judge(server, tmp_path, monkeypatch):
    """Parameters with that server as the judge, its key where it is by default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def make(**options):
        given = {"base_url": server.url, "model": "my-judge", "max_retries": 0, **options}
        return OpenAIJudge(backend="openai", **given)

    return make


def fresh_tasks(monkeypatch):
    """As in a process of its own: lmms-eval's tasks keep the URL of their first import."""
    from eval.gateway import _TASKS_THAT_KEEP_THE_URL

    for name in _TASKS_THAT_KEEP_THE_URL:
        monkeypatch.delitem(sys.modules, name, raising=False)


class TestKey:
    def test_every_stage_asks_with_the_judges_own_key(self, server, judge, monkeypatch):
        """The canary is known from the second stage on, so the first request comes late."""
        fresh_tasks(monkeypatch)
        sent = []
        server.plan = lambda body, attempt: None
        server.on_request = lambda headers: sent.append(headers["Authorization"])
        for number in range(3):
            with Gateway(judge()) as gateway:
                gateway.probe()
                gateway.route_lmms_eval()
                assert os.environ["OPENAI_API_KEY"] == gateway.key != KEY
                assert content(ask(gateway, question(number))) == verdict(number)
            assert os.environ["OPENAI_API_KEY"] == KEY
        # A canary in each stage that asks, and its question.
        assert len(sent) == 6 and set(sent) == {f"Bearer {KEY}"}

    def test_the_end_of_a_gateway_brings_the_environment_back(self, judge, monkeypatch):
        fresh_tasks(monkeypatch)
        monkeypatch.delenv("OPENAI_API_KEY")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("no_proxy", "example.org")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
        before = dict(os.environ)
        with Gateway(EmbeddedRules(backend="embedded-rules")) as gateway:
            gateway.route_lmms_eval()
            assert not set(lmms_start.PROXIES) & set(os.environ)
            gateway.route_lmms_eval()
        assert dict(os.environ) == before

    @pytest.mark.parametrize("escape", [lambda key: key, lambda key: key.replace("/", "\\/")])
    @pytest.mark.parametrize("status", [200, 400, 401, 500])
    def test_a_key_that_the_server_repeats_is_written_nowhere(
        self, server, judge, capfd, status, escape
    ):
        body = completion("correct") if status == 200 else {"error": {"message": f"bad {KEY}"}}
        body |= {"model": f"m {KEY}", "system_fingerprint": KEY}
        told = json.dumps(body).replace(KEY, escape(KEY)).encode()
        server.plan = lambda asked, attempt: (
            lambda handler, _: handler.send(status, told, **{"X-Request-Id": KEY})
        )
        with Gateway(judge()) as gateway:
            reply = ask(gateway, question(1))
            with pytest.raises(openai.OpenAIError) if status != 200 else open(os.devnull):
                found = connect(server.url, KEY, proxy=None, max_retries=0).chat.completions.create(
                    model="m", messages=[{"role": "user", "content": prompts.CANARY}]
                )
                assert KEY not in repr(found)
        said = capfd.readouterr()
        kept = b"".join(file.read_bytes() for file in Path(".cache").iterdir())
        everything = json.dumps(reply) + said.out + said.err + repr(gateway.failures)
        everything += kept.decode("latin-1")
        assert KEY not in everything and escape(KEY) not in everything
        assert connection.HIDDEN in everything

    def test_a_word_that_serves_as_a_key_stays_in_replies(self, server, judge, monkeypatch):
        """A local server asks for none: `none` may be what a judge says."""
        monkeypatch.setenv("OPENAI_API_KEY", "correct")
        with Gateway(judge()) as gateway:
            assert content(ask(gateway, question(1))) == "correct"


class TestToken:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "Bearer gateway"},
            {"Authorization": "Bearer "},
            {"Authorization": "Basic x"},
            {"Authorization": "é"},
            {"Origin": "https://evil.example", "Content-Type": "text/plain"},
        ],
    )
    @pytest.mark.parametrize("data", [b"", b"no json", b"prompt", b"x" * 100_000])
    def test_without_the_key_nothing_is_asked_and_nothing_counted(
        self, server, judge, headers, data
    ):
        if data == b"prompt":
            data = json.dumps({"messages": [{"role": "user", "content": question(1)}]}).encode()
        headers = {name: value.encode() for name, value in headers.items()}
        with Gateway(judge()) as gateway:
            for _ in range(2):
                found = requests.post(gateway.url, data=data, headers=headers, timeout=10)
                assert found.status_code == 401
            assert not gateway.failures and server.requests == 0
            assert content(ask(gateway, question(1))) == verdict(1)

    @pytest.mark.parametrize(
        "sent",
        [
            b"",
            b"\xff\xff\r\n\r\n",
            b"POST /v1 HTTP/1.1\r\nContent-Length: many\r\n\r\n",
            b"POST /v1 HTTP/1.1\r\nContent-Length: 99\r\n\r\nshort",
            b"GET /v1 HTTP/1.1\r\n\r\n",
        ],
    )
    def test_a_stray_connection_is_no_failure(self, sent, capfd, monkeypatch):
        monkeypatch.setattr("eval.gateway._REFUSED_SECONDS", 0.05)
        with Gateway(EmbeddedRules(backend="embedded-rules")) as gateway:
            port = int(gateway.url.split(":")[2].removesuffix("/v1"))
            with socket.create_connection(("127.0.0.1", port)) as stray:
                stray.sendall(sent)
                stray.shutdown(socket.SHUT_WR)
                while stray.recv(4096):
                    pass
            assert not gateway.failures
            with pytest.raises(requests.RequestException):
                requests.post(gateway.url, data="no json", headers=authorized(gateway), timeout=10)
            assert len(gateway.failures) == 1

    def test_keys_differ(self):
        rules = EmbeddedRules(backend="embedded-rules")
        with Gateway(rules) as one, Gateway(rules) as other:
            assert one.key != other.key and len(one.key) > 30
            assert requests.post(one.url, headers=authorized(other), timeout=10).status_code == 401


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_prompts_go_nowhere_else(self, server, judge, status):
        with JudgeServer() as elsewhere:
            target = elsewhere.url.replace("127.0.0.1", "me:hunter2@localhost")
            place = f"{target}/chat/completions"
            server.plan = lambda body, attempt: (
                lambda handler, _: handler.send(status, b"{}", Location=place)
            )
            with Gateway(judge(max_retries=2)) as gateway:
                with pytest.raises(
                    JudgeError, match=r"redirects to localhost:\d+, which"
                ) as caught:
                    gateway.probe()
                assert "hunter2" not in str(caught.value)
                ask(gateway, question(1))
            assert elsewhere.requests == 0 and server.requests == 1


class TestBounds:
    def test_an_answer_that_does_not_end_is_not_read(self, server, judge, monkeypatch):
        monkeypatch.setattr(connection, "_MOST_BYTES", 10_000)
        long = json.dumps(completion("x" * 20_000)).encode()
        server.plan = lambda body, attempt: (
            (lambda handler, _: handler.send(200, long)) if text_of(body) == question(1) else None
        )
        with Gateway(judge(max_retries=2)) as gateway:
            assert content(ask(gateway, question(1))) == ""
            assert content(ask(gateway, question(2))) == verdict(2)
        assert "more than 10,000 bytes" in gateway.failures[0].reason
        assert server.attempts[question(1)] == 1

    def test_a_packed_answer_is_not_unpacked(self, server, judge):
        packed = gzip.compress(json.dumps(completion("correct")).encode())
        server.plan = lambda body, attempt: (
            lambda handler, _: handler.send(200, packed, **{"Content-Encoding": "gzip"})
        )
        with Gateway(judge()) as gateway, pytest.raises(JudgeError, match="packs its answers"):
            gateway.probe()

    @pytest.mark.parametrize(
        "usage",
        [
            {"prompt_tokens": 10**9, "completion_tokens": 8},
            {"prompt_tokens": 400, "completion_tokens": 10**6},
            {"prompt_tokens": 10**400, "completion_tokens": 10**400},
            {"prompt_tokens": 100_000, "completion_tokens": 0},
        ],
    )
    @pytest.mark.parametrize("reply", ["correct", "what?"])
    def test_an_absurd_usage_is_not_booked(self, server, judge, usage, reply, capfd):
        """The budget would be gone for ever with one reply, usable or not."""
        told = json.dumps({**completion(reply), "usage": usage}).encode()
        server.plan = lambda body, attempt: (
            (lambda handler, _: handler.send(200, told)) if text_of(body) == question(1) else None
        )
        price = {"input": 2.5, "output": 10.0}
        with Gateway(judge(price=price, budget_usd=1.0)) as gateway:
            ask(gateway, question(1))
            assert content(ask(gateway, question(2))) == verdict(2)
        with ReplyCache(Path(".cache/judge.sqlite")) as cache:
            assert 0 < cache.spent() < 0.02
        assert "a usage is not booked" in capfd.readouterr().err


class TestProxies:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("http://127.0.0.1:8000/v1", True),
            ("http://127.8.9.1/v1", True),
            ("http://localhost:1/v1", True),
            ("http://[::1]:8000/v1", True),
            ("https://api.openai.com/v1", False),
            ("http://127.0.0.1.example.org", False),
            ("http://10.0.0.1", False),
        ],
    )
    def test_loopback(self, url, expected, monkeypatch):
        assert is_loopback(url) is expected
        monkeypatch.setenv("ALL_PROXY", "http://p:1")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert (proxy_for(url) is None) is expected

    @pytest.mark.parametrize(
        ("environment", "expected"),
        [
            ({}, None),
            ({"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
            ({"https_proxy": "p:1"}, "http://p:1"),
            ({"HTTP_PROXY": "http://p:1"}, None),
            ({"ALL_PROXY": "http://p:1", "HTTPS_PROXY": "http://q:1"}, "http://q:1"),
            ({"ALL_PROXY": "http://p:1", "NO_PROXY": "x.org,openai.com"}, None),
            ({"ALL_PROXY": "http://p:1", "NO_PROXY": "x.org"}, "http://p:1"),
            ({"ALL_PROXY": "http://p:1", "no_proxy": "*"}, None),
        ],
    )
    def test_elsewhere_the_environment_says(self, environment, expected, monkeypatch):
        for name in (*lmms_start.PROXIES, "NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert proxy_for("https://api.openai.com/v1") == expected

    @pytest.mark.parametrize("proxy", ["socks5://me:hunter2@p:1", "socks://p:1", "gopher://p:1"])
    def test_a_proxy_that_cannot_be_used_is_named_in_a_sentence(self, proxy):
        with pytest.raises(JudgeError, match=r"names a \w+:// proxy for https://x/v1") as caught:
            connect("https://x/v1", KEY, proxy=proxy)
        assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)

    def test_a_judge_elsewhere_is_asked_through_the_proxy(self, judge, monkeypatch):
        """Also by a gateway that takes it away from lmms-eval's own clients."""
        fresh_tasks(monkeypatch)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with JudgeServer() as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
            with Gateway(judge(base_url="http://judge.invalid/v1")) as gateway:
                gateway.route_lmms_eval()
                assert content(ask(gateway, question(1))) == verdict(1)
            assert proxy.requests == 2

    def test_on_loopback_the_environment_does_not_count(self, server, workspace):
        """The gateway, lmms-eval's clients, ours, and the judge: a process with the variables."""
        script = """
import sys
from pathlib import Path
from eval import lmms_start
lmms_start.quiet()
from heima.config import OpenAIJudge
from eval.gateway import Gateway
with Gateway(OpenAIJudge(backend="openai", base_url=sys.argv[1], model="m")) as gateway:
    gateway.probe()
    gateway.route_lmms_eval()
    from lmms_eval.tasks.mmvet import utils
    from lmms_eval.tasks.hallusion_bench.utils import evaluate_by_chatgpt
    from eval.vlmevalkit import questions, scoring
    prompt = f"{utils.MM_VET_PROMPT}\\nWhat? | red | red |"
    print(utils.get_chat_response(prompt)[0])
    sample = {"question": "Is it?", "gt_answer_details": "Yes.", "prediction": "Yes."}
    found = evaluate_by_chatgpt([sample], "prediction", "correct", False, "x.json", retries=1)
    print(found[0]["correct"])
    print(*scoring._ask([questions.choice_prompt("?", {"A": "stem", "B": "leaf"}, "a leaf")]))
    print(len(gateway.failures))
"""
        names = dict(zip(lmms_start.PROXIES, ODD_PROXIES * 2, strict=False))
        ended = subprocess.run(
            [sys.executable, "-c", script, server.url],
            env={**os.environ, **names, "NO_PROXY": "", "no_proxy": "", "OPENAI_API_KEY": KEY,
                 "PYTHONPATH": str(ROOT), "HOME": str(workspace)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert re.split(r"\s+", ended.stdout.strip())[-4:] == ["1.0", "1", "B", "0"], ended.stdout
