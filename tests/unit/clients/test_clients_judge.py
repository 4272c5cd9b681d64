"""The judge: what it is asked, how its reply is read, and that it is never silently a "False"."""

import asyncio
import json
from collections.abc import Callable, Iterator

import httpx
import pytest
import stamina

from searcher.clients.judge import JudgeClient, judge_prompt, read_verdict
from searcher.contracts.errors import UpstreamUnavailable

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _retries_do_not_wait() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3):
        yield


def says(text: str) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"role": "assistant", "content": text}}]})


class Endpoint:
    """Replies as it is told, and remembers what it was asked."""

    def __init__(self, reply: Callable[[int], httpx.Response]) -> None:
        self.reply, self.asked = reply, list[httpx.Request]()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        await asyncio.sleep(0)
        return self.reply(len(self.asked))

    def client(self, **arguments: int | float) -> JudgeClient:
        transport = httpx.MockTransport(self)
        return JudgeClient("http://judge/v1", "tiny", api_key="k", transport=transport, **arguments)  # type: ignore[arg-type]


def test_the_prompt_is_the_published_one() -> None:
    assert judge_prompt("Who wrote Emma?", "Jane Austen", "Austen") == (
        "Given a Question and its Golden Answer, verify whether the Predicted Answer is correct. The prediction is "
        "correct if it fully aligns with the meaning and key information of the Golden Answer. Respond with True if "
        "the prediction is correct and False otherwise.\n"
        "\n"
        "Question: Who wrote Emma?\n"
        "Golden Answer: Jane Austen\n"
        "Predicted Answer: Austen\n"
        "    "
    )


def test_booleans_are_yes_and_no_and_several_golds_are_alternatives() -> None:
    assert "\nGolden Answer: yes\n" in judge_prompt("?", True, "x")
    assert "\nGolden Answer: no or nope\n" in judge_prompt("?", ["False", "nope"], "x")


def test_a_prediction_that_names_a_field_stays_as_it_is() -> None:
    assert "\nPredicted Answer: {reference}\n" in judge_prompt("{prediction}", "Paris", "{reference}")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("True", True),
        ("False.", False),
        ("**true**", True),
        ("The prediction is FALSE", False),
        ("<think>Is it true? No.</think>\nFalse", False),
    ],
)
def test_a_reply_says_true_or_false(reply: str, verdict: bool) -> None:
    assert read_verdict(reply) is verdict


@pytest.mark.parametrize("reply", ["", "Yes", "True or False?", "untrue", "<think>True</think>", None, 1])
def test_a_reply_that_says_neither_is_no_verdict(reply: object) -> None:
    with pytest.raises(UpstreamUnavailable, match="neither True nor False"):
        read_verdict(reply)


async def test_the_endpoint_is_asked_greedily_with_model_and_key() -> None:
    endpoint = Endpoint(lambda at: says("True"))

    async with endpoint.client() as judge:
        assert await judge.verdict("Who wrote Emma?", ("Jane Austen",), "Austen") is True

    (request,) = endpoint.asked
    assert str(request.url) == "http://judge/v1/chat/completions"
    assert request.headers["Authorization"] == "Bearer k"
    assert json.loads(request.content) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": judge_prompt("Who wrote Emma?", "Jane Austen", "Austen")}],
        "max_tokens": 1024,
        "temperature": 0.0,
    }


async def test_the_same_is_asked_once_whether_at_once_or_later() -> None:
    endpoint = Endpoint(lambda at: says("False"))

    async with endpoint.client() as judge:
        at_once = await asyncio.gather(*(judge.verdict("?", "Paris", "Rome") for _ in range(16)))
        later = await judge.verdict("?", "Paris", "Rome")
        other = await judge.verdict("?", "Paris", "Oslo")

    assert (at_once, later, other) == ([False] * 16, False, False)
    assert len(endpoint.asked) == 2


async def test_the_oldest_verdict_is_forgotten_first() -> None:
    endpoint = Endpoint(lambda at: says("True"))

    async with endpoint.client(cache_entries=2) as judge:
        for prediction in ("a", "b", "a", "c", "a", "b"):  # c pushes b out, not a, which was used since
            await judge.verdict("?", "Paris", prediction)

    assert len(endpoint.asked) == 4


async def test_no_more_calls_are_open_than_allowed() -> None:
    open_now, most = 0, 0

    async def slow(request: httpx.Request) -> httpx.Response:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        for _ in range(5):
            await asyncio.sleep(0)
        open_now -= 1
        return says("True")

    async with JudgeClient("http://judge", "tiny", concurrency=3, transport=httpx.MockTransport(slow)) as judge:
        await asyncio.gather(*(judge.verdict("?", "Paris", str(number)) for number in range(12)))

    assert most == 3


async def test_rate_limits_and_failures_are_asked_again() -> None:
    endpoint = Endpoint(lambda at: {1: httpx.Response(429), 2: httpx.Response(500)}.get(at, says("True")))

    async with endpoint.client() as judge:
        assert await judge.verdict("?", "Paris", "Paris") is True

    assert len(endpoint.asked) == 3


@pytest.mark.parametrize(
    ("reply", "complaint", "num_asked"),
    [
        (httpx.Response(429, text="slow down"), "HTTP 429: slow down", 3),
        (httpx.Response(401, text="no such key"), "refused: judge: no such key", 1),
        (httpx.Response(200, text="<html>"), "answers .<html>., which is no JSON", 1),
        (httpx.Response(200, json={"choices": []}), "does not reply like an OpenAI endpoint", 1),
        (says("Perhaps"), "neither True nor False: 'Perhaps'", 1),
    ],
)
async def test_no_verdict_is_an_outage_and_is_not_remembered(
    reply: httpx.Response, complaint: str, num_asked: int
) -> None:
    endpoint = Endpoint(lambda at: reply)

    async with endpoint.client() as judge:
        with pytest.raises(UpstreamUnavailable, match=complaint):
            await judge.verdict("?", "Paris", "Paris")
        assert len(endpoint.asked) == num_asked

        endpoint.reply = lambda at: says("True")
        assert await judge.verdict("?", "Paris", "Paris") is True


async def test_a_judge_that_hangs_is_an_outage() -> None:
    async def hang(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    transport = httpx.MockTransport(hang)
    async with JudgeClient("http://judge", "tiny", timeout_seconds=0.02, transport=transport) as judge:
        with pytest.raises(UpstreamUnavailable, match=r"no verdict in 0\.02 s"):
            await judge.verdict("?", "Paris", "Paris")


async def test_a_caller_that_gives_up_does_not_fail_the_others() -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def wait(request: httpx.Request) -> httpx.Response:
        asked.set()
        await may_answer.wait()
        return says("True")

    async with JudgeClient("http://judge", "tiny", transport=httpx.MockTransport(wait)) as judge:
        first, second = (asyncio.create_task(judge.verdict("?", "Paris", "Paris")) for _ in range(2))
        await asked.wait()
        first.cancel()
        may_answer.set()

        assert await second is True
        assert (await asyncio.gather(first, return_exceptions=True))[0].__class__ is asyncio.CancelledError
