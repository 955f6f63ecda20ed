"""The judge's door: what it recognises, how the rules grade, and what becomes of faults."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from eval import prompts, rules
from eval.gateway import Gateway, JudgeError
from eval.judge.cache import ReplyCache
from eval.judge.endpoint import estimated_tokens
from eval.judge.reconstructions import judge as grade
from eval.prompts import Question
from heima.config import EmbeddedRules, OpenAIJudge
from tests.eval.judge_server import CONTENT, FATAL, REJECTED, TRANSPORT, JudgeServer, text_of
from tests.eval.test_scoring import change_params, write_predictions

ROOT = Path(__file__).parents[2]
RULES = EmbeddedRules(backend="embedded-rules")


def ask(gateway, prompt, path="/v1/chat/completions", **options):
    url = gateway.url.removesuffix("/v1") + path
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": prompt}], **options}
    response = requests.post(url, json=body, headers=authorized(gateway), timeout=30)
    response.raise_for_status()
    return response.json()


def authorized(gateway):
    return {"Authorization": f"Bearer {gateway.key}"}


def content(completion):
    return completion["choices"][0]["message"]["content"]


def question(number):
    """A prompt of HallusionBench, another one for each number; every third answer is wrong."""
    prompt = prompts.CANARY.replace("two more than one", f"{number} less than {number + 1}")
    return prompt.replace("answer:Yes.", "answer:No.") if number % 3 == 0 else prompt


def verdict(number):
    return "incorrect" if number % 3 == 0 else "correct"


def ask_all(gateway, numbers, threads=8):
    """The verdicts of many questions, asked from several threads."""
    with ThreadPoolExecutor(threads) as pool:
        replies = pool.map(lambda number: content(ask(gateway, question(number))), numbers)
        return dict(zip(numbers, replies, strict=True))


@pytest.fixture
def server():
    with JudgeServer() as running:
        yield running


@pytest.fixture
def judge(server, tmp_path, monkeypatch):
    """Parameters with that server as the judge, and a cache of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")

    def make(**options):
        given = {"base_url": server.url, "model": "my-judge", "max_retries": 3, **options}
        return OpenAIJudge(backend="openai", api_key_env="TEST_JUDGE_KEY", **given)

    return make


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
            ("mmvet", "0.5", "0.5"),
            ("mmvet", "1.0 because", "1.0"),
            ("mmvet", "The score is 0.5", "0.5"),
            ("mmvet", "7", None),
            ("mathvista", "", ""),
            ("mathvista", " 14 ", "14"),
            ("hallusionbench", "Incorrect.", "Incorrect."),
            ("hallusionbench", "I cannot say", None),
            ("mmbench", "B", "B"),
            ("mmbench", "(B).", "B"),
            ("mmbench", "E.", "E"),
            ("mmbench", "The answer is B or C", None),
            ("similarity", '```json\n{"grade": "4"}\n```', '{"grade": 4}'),
            ("similarity", "4", None),
        ],
    )
    def test_read(self, kind, reply, expected):
        assert prompts.read(Question(kind, "", "", ""), reply) == expected

    def test_every_kind_is_read_and_has_a_limit(self):
        """Rules also, so that every benchmark's prompt has an answer of the toy's judge."""
        assert set(prompts.MAX_TOKENS) == set(prompts._READ) == set(rules._RULES)

    def test_letters_are_handed_on_as_mmbench_reads_them(self):
        """It makes a random letter of what it cannot read, of D. among others."""
        from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

        evaluator = MMBench_Evaluator()
        for letter, before, after in itertools.product(
            "ABCDE", ["", "(", "**", "Answer: "], ["", ".", ")", ").", ":", "**", " - because"]
        ):
            said = prompts.read(Question("mmbench", "", "", ""), before + letter + after)
            assert said == evaluator.can_infer(said, {"A": "8", "B": "18"}) == letter


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
            requests.post(gateway.url, data="no json", headers=authorized(gateway), timeout=10)
        assert "JSONDecodeError" in gateway.failures[0].reason

    def test_tasks_imported_with_another_url_are_refused(self, open_gateway):
        open_gateway(RULES)
        import lmms_eval.tasks.hallusion_bench.utils  # noqa: F401

        with Gateway(RULES) as other, pytest.raises(RuntimeError, match="were imported before"):
            other.route_lmms_eval()


PATHS = ["/v1/chat/completions", "/v1", "/v1/", "/chat/completions", "/", "/any/thing?x=1"]
MODELS = ["gpt-4", "gpt-4-0613", "gpt-4o-2024-11-20", "gpt-3.5-turbo-0613", "no-such-model"]


class TestJudgeBehindTheGateway:
    def test_every_path_and_model_name_is_the_configured_judge(self, server, judge):
        """A task's own model, temperature and limit neither matter nor make a question another."""
        bodies = []
        server.plan = lambda body, attempt: bodies.append(body)
        with Gateway(judge()) as gateway:
            gateway.probe()
            for path, model in itertools.product(PATHS, MODELS):
                options = {"temperature": 1.5, "max_tokens": 16, "n": 1}
                found = ask(gateway, question(1), path, model=model, **options)
                assert (content(found), found["model"]) == ("correct", "judge-2026-01-01")
                assert found["usage"]["total_tokens"] == 408
            parts = [{"type": "text", "text": question(1)}]
            body = {"messages": [{"role": "user", "content": parts}]}
            # HallusionBench names no model unless API_TYPE is openai.
            headers = authorized(gateway)
            found = requests.post(gateway.url, json=body, headers=headers, timeout=30).json()
            assert content(found) == "correct"
        assert [text_of(body) for body in bodies] == [prompts.CANARY, question(1)], "asked once"
        assert {body["model"] for body in bodies} == {"my-judge"}
        assert {body["temperature"] for body in bodies} == {0}

    def test_slow_judge_is_waited_for(self, server, judge, monkeypatch):
        monkeypatch.setattr("eval.gateway._HEARTBEAT_SECONDS", 0.1)
        server.seconds = 0.7
        with Gateway(judge()) as gateway:
            body = {"messages": [{"role": "user", "content": prompts.CANARY}]}
            headers = authorized(gateway)
            response = requests.post(gateway.url, json=body, headers=headers, timeout=0.5)
        assert content(response.json()) == "correct"

    def test_faults_of_transport_are_survived(self, server, judge):
        kinds = dict(enumerate(TRANSPORT.values()))
        texts = {question(number): number for number in kinds}
        server.plan = lambda body, attempt: (
            kinds.get(texts.get(text_of(body))) if attempt < 2 else None
        )
        server.slow_seconds = 0.8
        with Gateway(judge(timeout_seconds=0.4)) as gateway:
            start = time.monotonic()
            assert ask_all(gateway, list(kinds)) == {number: verdict(number) for number in kinds}
            # Retry-After was heeded.
            assert time.monotonic() - start > 2
        assert not gateway.failures
        assert all(server.attempts[text] == 3 for text in texts)

    def test_what_is_no_verdict_is_asked_again(self, server, judge):
        kinds = dict(enumerate(CONTENT.values()))
        texts = {question(number): number for number in kinds}
        server.plan = lambda body, attempt: (
            kinds.get(texts.get(text_of(body))) if attempt < 2 else None
        )
        with Gateway(judge()) as gateway:
            assert ask_all(gateway, list(kinds)) == {number: verdict(number) for number in kinds}
        assert not gateway.failures

    def test_what_stays_no_verdict_is_a_failure_of_that_question_alone(self, server, judge):
        kinds = dict(enumerate(CONTENT.values()))
        texts = {question(number): number for number in kinds}
        server.plan = lambda body, attempt: kinds.get(texts.get(text_of(body)))
        with Gateway(judge()) as gateway:
            gateway.probe()
            found = ask_all(gateway, range(len(kinds) + 5))
            assert ask_all(gateway, list(kinds)) == dict.fromkeys(kinds, ""), "not asked again"
        assert {n: v for n, v in found.items() if v} == {
            n: verdict(n) for n in range(len(kinds), len(kinds) + 5)
        }
        assert sorted(failure.prompt for failure in gateway.failures) == sorted(texts)
        assert all(failure.reason for failure in gateway.failures)
        assert {server.attempts[text] for text in texts} == {3}

    def test_a_rejected_question_fails_alone_and_is_not_asked_again(self, server, judge):
        server.plan = lambda body, attempt: REJECTED if text_of(body) == question(2) else None
        with Gateway(judge()) as gateway:
            assert ask_all(gateway, range(5)) == {n: "" if n == 2 else verdict(n) for n in range(5)}
        assert [failure.prompt for failure in gateway.failures] == [question(2)]
        assert server.attempts[question(2)] == 1

    @pytest.mark.parametrize("kind", FATAL)
    def test_a_judge_that_refuses_is_asked_nothing_more(self, server, judge, kind):
        first, rest = range(5), range(5, 65)
        with Gateway(judge(max_retries=1)) as gateway:
            assert ask_all(gateway, first) == {n: verdict(n) for n in first}
            server.plan = lambda body, attempt: FATAL[kind]
            asked, start = server.requests, time.monotonic()
            assert set(ask_all(gateway, rest, threads=4).values()) == {""}
            # Those under way, each with one retry of the SDK.
            assert server.requests - asked <= 2 * 4
            assert time.monotonic() - start < 5
            # What is known has its reply all the same.
            assert ask_all(gateway, first) == {n: verdict(n) for n in first}
        assert {failure.prompt for failure in gateway.failures} == {question(n) for n in rest}
        reasons = Counter(failure.reason for failure in gateway.failures)
        (most, often), *_ = reasons.most_common()
        assert (
            most.startswith("not asked, because before: the judge refuses to go on") and often > 50
        )

        server.plan = lambda body, attempt: None
        asked = server.requests
        with Gateway(judge()) as gateway:
            gateway.probe()
            assert ask_all(gateway, range(65)) == {n: verdict(n) for n in range(65)}
        assert server.requests - asked == 1 + len(rest), "the canary and what was missing"
        usage = gateway.usage()
        assert (usage["replies"], usage["known"], usage["asked"]) == (65, 5, 60)

    def test_a_judge_that_goes_away_ends_the_asking_and_the_next_run_asks_for_the_rest(
        self, judge, tmp_path
    ):
        """A judge in another process, killed in the middle and started again on its port."""
        log = tmp_path / "log"
        with running(log) as (process, url):
            parameters = judge(base_url=url, max_retries=1, workers=4)
            with Gateway(parameters) as gateway:
                gateway.probe()
                before = ask_all(gateway, range(10))
                process.kill()
                process.wait()
                start = time.monotonic()
                after = ask_all(gateway, range(10, 60))
                assert time.monotonic() - start < 10
        assert before == {n: verdict(n) for n in range(10)} and set(after.values()) == {""}
        assert len(gateway.failures) == 50
        reasons = [failure.reason for failure in gateway.failures]
        # Three without an answer and those under way at that time.
        assert sum("is gone, 3 requests in a row had no answer" in r for r in reasons) >= 40
        with (
            running(log, port=url.split(":")[2].removesuffix("/v1")),
            Gateway(parameters) as gateway,
        ):
            gateway.probe()
            assert ask_all(gateway, range(60)) == {n: verdict(n) for n in range(60)}
        answered = Counter(json.loads(line) for line in log.read_text().splitlines())
        assert answered.pop(prompts.CANARY) == 2
        assert answered == {question(n): 1 for n in range(60)}

    def test_the_probe_ends_the_run_where_nobody_answers(self, judge):
        with (
            Gateway(judge(base_url="http://127.0.0.1:9/v1", max_retries=1)) as gateway,
            pytest.raises(JudgeError, match=r"my-judge at http://127\.0\.0\.1:9/v1 does not"),
        ):
            gateway.probe()
        # A judge that is gone is not asked again: each request would wait for its retries.
        with Gateway(judge(base_url="http://127.0.0.1:9/v1", max_retries=0)) as gateway:
            ask(gateway, question(0))
            start = time.monotonic()
            ask(gateway, question(1))
            assert time.monotonic() - start < 0.5
        assert gateway.failures[1].reason.startswith("not asked, because before: APIConnectionErr")

    @pytest.mark.parametrize("kind", ["prose", "HTML", "wrong shape", "empty", "cut off"])
    def test_the_probe_ends_the_run_where_the_canary_has_no_verdict(self, server, judge, kind):
        server.plan = lambda body, attempt: CONTENT[kind]
        with Gateway(judge()) as gateway:
            assert content(ask(gateway, prompts.CANARY)) == ""
            with pytest.raises(JudgeError, match="does not answer, so nothing was scored"):
                gateway.probe()
            ask(gateway, question(1))
        assert len(gateway.failures) == 2 and set(server.attempts) == {prompts.CANARY}

    def test_a_judge_that_grades_the_canary_wrong_is_not_used(self, server, judge, monkeypatch):
        monkeypatch.setattr("tests.eval.judge_server.right_answer", lambda body: "incorrect")
        with Gateway(judge()) as gateway, pytest.raises(JudgeError, match="for wrong"):
            gateway.probe()

    def test_no_other_model_answers_under_the_name_of_gpt4o(self, server, judge):
        server.model = "gpt-4o-mini-2024-07-18"
        with (
            Gateway(judge(model="gpt-4o")) as gateway,
            pytest.raises(JudgeError, match="asked for gpt-4o and answered as gpt-4o-mini"),
        ):
            gateway.probe()
        server.model = "gpt-4o-2024-08-06"
        with Gateway(judge(model="gpt-4o")) as gateway:
            gateway.probe()
            ask(gateway, question(1))
            # Also where the server changes its mind midway.
            server.model = "gpt-4o-mini-2024-07-18"
            assert content(ask(gateway, question(2))) == ""
        assert gateway.usage()["models"] == ["gpt-4o-2024-08-06"]
        assert "answered as gpt-4o-mini" in gateway.failures[0].reason

    def test_key_not_set(self, server, judge, monkeypatch):
        monkeypatch.delenv("TEST_JUDGE_KEY")
        with (
            Gateway(judge()) as gateway,
            pytest.raises(JudgeError, match="TEST_JUDGE_KEY, which is not set"),
        ):
            gateway.probe()
        assert server.requests == 0

    def test_a_file_that_is_no_cache_is_refused(self, judge):
        Path("thesis").write_bytes(b"somebody's thesis" * 100)
        with pytest.raises(JudgeError, match="thesis is no cache of judge replies"):
            Gateway(judge(cache="thesis"))


class TestCost:
    def test_a_second_run_asks_nothing_and_needs_no_key(self, server, judge, monkeypatch):
        with Gateway(judge()) as gateway:
            gateway.probe()
            first = ask_all(gateway, range(20))
        assert gateway.identity == {"backend": "openai", "model": "my-judge"}
        assert gateway.usage() == {
            "models": ["judge-2026-01-01"], "replies": 20, "known": 0, "asked": 20, "usd": 0.0
        }  # fmt: skip
        assert server.requests == 21
        monkeypatch.delenv("TEST_JUDGE_KEY")
        with Gateway(judge()) as gateway:
            gateway.probe()
            assert ask_all(gateway, range(20)) == first
        usage = gateway.usage()
        assert (usage["known"], usage["asked"], usage["models"]) == (20, 0, ["judge-2026-01-01"])
        assert server.requests == 21

    def test_what_another_judge_said_is_not_known(self, server, judge):
        for model in ("my-judge", "another"):
            with Gateway(judge(model=model)) as gateway:
                ask(gateway, question(1))
        assert server.answered[question(1)] == 2

    def test_the_same_question_at_the_same_time_is_paid_once(self, server, judge):
        server.seconds = 0.2
        with Gateway(judge(price={"input": 10, "output": 10})) as gateway:
            found = ask_all(gateway, [*range(5)] * 20, threads=50)
        assert found == {n: verdict(n) for n in range(5)}
        assert {server.attempts[question(n)] for n in range(5)} == {1}
        assert gateway.usage()["usd"] == pytest.approx(6 * 408 * 10 / 1e6)

    def test_the_budget_ends_the_asking_and_the_next_run_pays_for_the_rest(self, server, judge):
        """Eight threads ask at once, and the server bills more than was expected."""
        price = {"input": 1000.0, "output": 1000.0}
        with Gateway(judge(price=price, budget_usd=10.0)) as gateway:
            gateway.probe()
            found = ask_all(gateway, range(60))
        answered = {n for n, reply in found.items() if reply}
        paid = 0.408 * (1 + len(answered))
        assert gateway.usage()["usd"] == pytest.approx(paid) and 8 < paid <= 10
        assert len(gateway.failures) == 60 - len(answered)
        assert "judge.budget_usd = 10 is reached: $9." in gateway.failures[0].reason
        with ReplyCache(Path(".cache/judge.sqlite")) as cache:
            assert cache.spent() == pytest.approx(paid)
        asked = server.requests
        with Gateway(judge(price=price, budget_usd=9.9)) as gateway:
            gateway.probe()
            assert content(ask(gateway, question(min(answered)))) == verdict(min(answered))
            assert content(ask(gateway, question(max(set(found) - answered)))) == ""
        assert server.requests == asked, "what is known is free, the rest too dear"
        with Gateway(judge(price=price, budget_usd=100.0)) as gateway:
            gateway.probe()
            assert ask_all(gateway, range(60)) == {n: verdict(n) for n in range(60)}
        assert server.requests - asked == 1 + 60 - len(answered)
        assert {server.answered[question(n)] for n in range(60)} == {1}

    def test_replies_that_are_no_verdict_count_as_spent(self, server, judge):
        server.plan = lambda body, attempt: (
            CONTENT["prose"] if text_of(body) == question(1) else None
        )
        with Gateway(judge(price={"input": 1000.0, "output": 0.0})) as gateway:
            ask(gateway, question(1))
        # The canary, and three times the question.
        assert gateway.usage()["usd"] == pytest.approx(4 * 0.4)

    def test_similarity_and_benchmarks_share_the_cache_and_its_budget(
        self, server, judge, params, monkeypatch
    ):
        price = {"input": 1000.0, "output": 0.0}
        similarity = params.similarity.model_copy(update={"judged": ("own",)})
        row = {"id": "1", "image": "i", "control": "own", "question": "q", "reference": "a b c"}
        rows = {"reasoning": [{**row, "text": "a b"}]}
        grade(
            rows, params.model_copy(update={"judge": judge(price=price), "similarity": similarity})
        )
        assert server.requests == 2
        with (
            Gateway(judge(price=price, budget_usd=0.9)) as gateway,
            pytest.raises(JudgeError, match=r"budget_usd = 0\.9 is reached: \$0\.8000 are"),
        ):
            gateway.probe()
        # `mode` is how reconstructions are asked: benchmarks pay the full price at once.
        with Gateway(judge(price=price, budget_usd=10.0, mode="batch")) as gateway:
            gateway.probe()
            ask(gateway, question(1))
        assert gateway.usage()["usd"] == pytest.approx(0.8) and not server.batches

    def test_an_estimate_takes_the_dearest_reply_for_granted(self, judge, server):
        """A request is not even sent where its longest reply would exceed the budget."""
        body = {"messages": [{"role": "user", "content": prompts.CANARY}]}
        prompt = estimated_tokens(body)
        dearest = 1.5 * (prompt * 1.0 + prompts.MAX_TOKENS["hallusionbench"] * 100.0) / 1e6
        for budget, requests_sent in ((0.999 * dearest, 0), (1.001 * dearest, 1)):
            options = {"price": {"input": 1.0, "output": 100.0}, "budget_usd": budget}
            with Gateway(judge(**options)) as gateway:
                ask(gateway, prompts.CANARY)
            assert server.requests == requests_sent

    def test_one_process_asks_at_a_time_and_the_other_finds_its_replies(self, server, judge):
        """Two gateways stand for two processes: the lock is one of files."""
        with Gateway(judge()) as second, ThreadPoolExecutor() as pool:
            with Gateway(judge()) as first:
                ask(first, question(0))
                waiting = pool.submit(ask_all, second, range(1, 3))
                time.sleep(0.3)
                assert not waiting.done() and server.attempts[question(1)] == 0
                # What the other one waits for, this one asks.
                ask_all(first, range(3))
            assert waiting.result(timeout=10) == {n: verdict(n) for n in (1, 2)}
            assert second.usage()["known"] == 2
            assert content(ask(second, question(3))) == verdict(3)
        assert {server.attempts[question(n)] for n in range(4)} == {1}


def test_a_judge_that_stops_in_the_middle_of_the_stage(server, workspace):
    """The stage fails and names what is missing; the next run asks for that alone."""
    change_params(
        lambda raw: raw.update(
            protocols={"lmms": raw["protocols"]["lmms"]},
            judge={
                "backend": "openai",
                "base_url": server.url,
                "model": "my-judge",
                "api_key_env": "TEST_JUDGE_KEY",
                "max_retries": 0,
            },
        )
    )
    write_predictions(Path("predictions/heima"), lambda *place: "right")
    answered_first = 1 + 16
    server.plan = lambda body, attempt: (
        TRANSPORT["reset"] if server.answered.total() >= answered_first else None
    )
    ended = run_stage()
    assert ended.returncode == 1, ended.stderr
    assert "the judge my-judge left" in ended.stderr and "Traceback" not in ended.stderr
    assert "sample 11: not asked, because before: the judge at" in ended.stderr
    assert ".cache/judge.sqlite keeps what was answered" in ended.stderr
    assert not Path("scores").exists() and not Path("metrics").exists()
    assert server.answered.total() == answered_first

    server.plan = lambda body, attempt: None
    ended = run_stage()
    assert ended.returncode == 0, ended.stderr
    assert Path("scores/heima.jsonl").exists() and Path("metrics/score/heima.json").exists()
    assert server.answered.pop(prompts.CANARY) == 2
    assert set(server.answered.values()) == {1}
    asking = {prompts.recognise(prompt).kind for prompt in server.answered}
    assert asking == {"mmvet", "mathvista", "hallusionbench"}


def run_stage():
    return subprocess.run(
        [sys.executable, "-m", "stages.score", "heima"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TEST_JUDGE_KEY": "secret"},
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def running(log, port="0"):
    """A judge in a process of its own, and its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.eval.judge_server", str(log), "--port", port],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
