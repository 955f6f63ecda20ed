"""The judge's door: what it recognises, how the rules grade, and what becomes of faults."""

from __future__ import annotations

import itertools
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from eval import prompts, rules
from eval.gateway import Gateway, JudgeError
from eval.prompts import Question
from heima.config import EmbeddedRules, OpenAIJudge

RULES = EmbeddedRules(backend="embedded-rules")


def ask(gateway, prompt, path="/v1/chat/completions"):
    url = gateway.url.removesuffix("/v1") + path
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": prompt}]}
    response = requests.post(url, json=body, timeout=10)
    response.raise_for_status()
    return response.json()


@pytest.fixture
def fake_server():
    """An OpenAI-compatible server whose `reply(prompt)` gives (status, body) for each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.seen.append(body)
            status, payload = self.server.reply(body["messages"][0]["content"])
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def says(text):
    """A chat completion that says `text`."""
    message = {"index": 0, "finish_reason": "stop", "message": {"role": "a", "content": text}}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge-2026-01-01"}
    return 200, json.dumps({**body, "choices": [message]}).encode()


def openai_judge(url, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    return OpenAIJudge(
        backend="openai", base_url=url, model="my-judge", api_key_env="TEST_JUDGE_KEY"
    )


class TestPrompts:
    """The prompts are built by lmms-eval's own functions, not copied."""

    @pytest.mark.parametrize("answer", ["red-square", "", "a | b", "x\n\ny"])
    def test_mmvet(self, answer, open_gateway):
        open_gateway(RULES)
        from lmms_eval.tasks.mmvet.utils import MM_VET_PROMPT

        prompt = f"{MM_VET_PROMPT}\nWhat is at a1? | x <OR> y | {answer} |"
        asked = prompts.recognise(prompt)
        assert asked == Question("mmvet", "What is at a1?", "x <OR> y", answer)

    @pytest.mark.parametrize("answer", ["the total is 8", "so:\n\nit is 8"])
    def test_mathvista(self, answer, open_gateway):
        open_gateway(RULES)
        from lmms_eval.tasks.mathvista.mathvista_evals import DEMO_PROMPT, MathVistaEvaluator

        query = "What is the total?\nAnswer the question using a single integer number."
        prompt = MathVistaEvaluator().create_test_prompt(DEMO_PROMPT, query, answer)
        assert prompts.recognise(prompt) == Question("mathvista", query, "", answer)

    def test_mmbench(self):
        from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

        evaluator = MMBench_Evaluator()
        options = evaluator.build_option_str(["red-square", "blue-circle"])
        prompt = evaluator.build_prompt("What is at a1", options, "the red one")
        asked = prompts.recognise(prompt)
        assert asked == Question("mmbench", "What is at a1", options, "the red one")

    def test_hallusionbench(self):
        asked = prompts.recognise(prompts.CANARY)
        assert asked == Question("hallusionbench", "Is two more than one?", "Yes.", "Yes.")

    def test_unknown(self):
        assert prompts.recognise("What is the weather?") is None

    @pytest.mark.parametrize(
        ("kind", "reply", "expected"),
        [
            ("mmvet", "0.5", True),
            ("mmvet", "1.0 because", True),
            ("mmvet", "The score is 0.5", False),
            ("mmvet", "7", False),
            ("mathvista", "", False),
            ("hallusionbench", "Incorrect.", True),
            ("hallusionbench", "I cannot say", False),
            ("mmbench", "B", True),
            ("mmbench", "(B).", True),
            ("mmbench", "E.", False),
            ("mmbench", "The answer is B or C", False),
        ],
    )
    def test_usable(self, kind, reply, expected):
        assert prompts.usable(kind, reply) is expected

    def test_usable_letters_are_those_that_mmbench_reads(self):
        """It makes a random letter of every other reply."""
        from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

        evaluator = MMBench_Evaluator()
        for letter, before, after in itertools.product(
            "ABCDE", ["", "("], ["", ".", ")", ").", ":"]
        ):
            reply = before + letter + after
            if prompts.usable("mmbench", reply):
                assert evaluator.can_infer(reply, {"A": "8", "B": "18"}) == letter


class TestRules:
    @pytest.mark.parametrize(
        ("reference", "answer", "grade"),
        [
            ("red-square", "It is a red-square.", "1.0"),
            ("red-square", "red square", "0.0"),
            ("-1 <AND> -5", "x = -1", "0.5"),
            ("-1 <AND> -5", "x = -1 or x = -5", "1.0"),
            ("cat <OR> dog", "a dog", "1.0"),
            ("8", "18", "0.0"),
            ("8", "", "0.0"),
        ],
    )
    def test_mmvet(self, reference, answer, grade):
        assert rules.answer(Question("mmvet", "q", reference, answer)) == grade

    @pytest.mark.parametrize(
        ("question", "answer", "found"),
        [
            ("single integer", "a1 gives 3, total 11", "11"),
            ("single integer", "it is -2.5", "-2.5"),
            ("single integer", "no idea", "no idea"),
            ("Answer with the option's letter", "3 of them, so B", "B"),
        ],
    )
    def test_mathvista(self, question, answer, found):
        assert rules.answer(Question("mathvista", question, "", answer)) == found

    @pytest.mark.parametrize(
        ("answer", "verdict"),
        [
            ("yes", "correct"),
            ("No.", "incorrect"),
            ("maybe", "unclear"),
            ("yes, but no", "unclear"),
        ],
    )
    def test_hallusionbench(self, answer, verdict):
        asked = Question("hallusionbench", "q", "Yes, 8 is the total.", answer)
        assert rules.answer(asked) == verdict

    def test_reference_without_yes_or_no_is_not_graded(self):
        with pytest.raises(rules.Ungradable, match="neither yes nor no"):
            rules.answer(Question("hallusionbench", "q", "The bar is higher.", "yes"))

    @pytest.mark.parametrize(
        ("answer", "letter"), [("18", "B"), ("it is 8", "A"), ("8 or 18", "E"), ("", "E")]
    )
    def test_mmbench(self, answer, letter):
        options = "There are several options: \nA. 8\nB. 18\n"
        assert rules.answer(Question("mmbench", "q", options, answer)) == letter


class TestGateway:
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1", "/anything"])
    def test_answers_on_every_path(self, path):
        with Gateway(RULES) as gateway:
            reply = ask(gateway, prompts.CANARY, path)
        assert reply["choices"][0]["message"]["content"] == "correct"
        assert reply["model"] == "embedded-rules"
        assert not gateway.failures

    def test_unknown_prompt_is_a_failure_and_no_grade(self):
        with Gateway(RULES) as gateway:
            reply = ask(gateway, "Grade this, please.")
        assert reply["choices"][0]["message"]["content"] == ""
        assert [failure.prompt for failure in gateway.failures] == ["Grade this, please."]

    def test_broken_request_is_a_failure(self):
        with Gateway(RULES) as gateway, pytest.raises(requests.RequestException):
            requests.post(gateway.url, data="no json", timeout=10)
        assert "JSONDecodeError" in gateway.failures[0].reason

    def test_forwards_under_the_configured_name(self, fake_server, monkeypatch):
        fake_server.reply = lambda prompt: says("correct")
        with Gateway(openai_judge(fake_server.url, monkeypatch)) as gateway:
            gateway.probe()
            reply = ask(gateway, prompts.CANARY)
        assert reply["model"] == "judge-2026-01-01"
        assert [body["model"] for body in fake_server.seen] == ["my-judge"], "asked once"

    def test_slow_judge_is_waited_for(self, fake_server, monkeypatch):
        monkeypatch.setattr("eval.gateway._HEARTBEAT_SECONDS", 0.1)

        def reply(prompt):
            time.sleep(1)
            return says("correct")

        fake_server.reply = reply
        with Gateway(openai_judge(fake_server.url, monkeypatch)) as gateway:
            body = {"messages": [{"role": "user", "content": prompts.CANARY}]}
            response = requests.post(gateway.url, json=body, timeout=0.5)
        assert response.json()["choices"][0]["message"]["content"] == "correct"

    @pytest.mark.parametrize(
        "fault",
        [
            (200, b"{broken"),
            (200, b"{}"),
            (400, b'{"error": "no"}'),
            (401, b'{"error": "key"}'),
            says("I would say so"),
            says(""),
        ],
    )
    def test_faults_are_failures(self, fault, fake_server, monkeypatch):
        fake_server.reply = lambda prompt: fault
        with Gateway(openai_judge(fake_server.url, monkeypatch)) as gateway:
            reply = ask(gateway, prompts.CANARY)
            assert reply["choices"][0]["message"]["content"] == ""
            with pytest.raises(JudgeError, match="does not answer, so nothing was scored"):
                gateway.probe()
        assert len(gateway.failures) == 1

    def test_server_down(self, monkeypatch):
        with (
            Gateway(openai_judge("http://127.0.0.1:9/v1", monkeypatch)) as gateway,
            pytest.raises(JudgeError, match=r"my-judge at http://127\.0\.0\.1:9/v1 does not"),
        ):
            gateway.probe()
        # A judge that is gone is not asked again: each request would wait for its retries.
        start = time.perf_counter()
        assert "not asked" in gateway._ask("another", {}).reason
        assert time.perf_counter() - start < 0.1

    def test_key_not_set(self, monkeypatch):
        judge = openai_judge("http://127.0.0.1:9/v1", monkeypatch)
        monkeypatch.delenv("TEST_JUDGE_KEY")
        with pytest.raises(JudgeError, match="TEST_JUDGE_KEY, which is not set"):
            Gateway(judge)

    def test_tasks_imported_with_another_url_are_refused(self, open_gateway):
        open_gateway(RULES)
        import lmms_eval.tasks.hallusion_bench.utils  # noqa: F401

        with Gateway(RULES) as other, pytest.raises(RuntimeError, match="were imported before"):
            other.route_lmms_eval()
