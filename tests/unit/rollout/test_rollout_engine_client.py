"""What the engine client makes of an engine's answers."""

import json
from typing import Any

import httpx
import pytest

from searcher.clients.engine import EngineClient, PromptTooLong, Sampling
from searcher.contracts.errors import InvalidInput, SearcherError, UpstreamUnavailable

pytestmark = pytest.mark.anyio

CHOICE: dict[str, Any] = {
    "token_ids": [5, 6, 7],
    "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1.5}, {"logprob": -2.5}]},
    "finish_reason": "stop",
    "stop_reason": "<|end_of_query|>",
    "weight_versions": [
        {"version": "default", "start": 0, "end": 1},
        {"version": "demo-aaaaaaaa-000002", "start": 1, "end": 3},
    ],
}


def client_that_gets(status: int = 200, **body: Any) -> EngineClient:
    return EngineClient("http://engine", transport=httpx.MockTransport(lambda _: httpx.Response(status, json=body)))


async def test_every_token_knows_its_logprob_and_the_weights_that_sampled_it() -> None:
    sampled = await client_that_gets(choices=[CHOICE]).generate([1], Sampling(max_tokens=3))

    assert sampled.token_ids == (5, 6, 7)
    assert sampled.logprobs == (-0.5, -1.5, -2.5)
    assert sampled.versions == ("default", "demo-aaaaaaaa-000002", "demo-aaaaaaaa-000002")
    assert sampled.stop_string == "<|end_of_query|>"


async def test_a_stop_token_is_no_stop_string() -> None:
    sampled = await client_that_gets(choices=[CHOICE | {"stop_reason": 151643}]).generate([1], Sampling(max_tokens=3))

    assert sampled.stop_string is None


@pytest.mark.parametrize("bad", [-9999.0, float("nan"), float("-inf")])
async def test_a_token_of_no_probability_never_reaches_the_ledger(bad: float) -> None:
    choice = CHOICE | {"logprobs": {"content": [{"logprob": -0.5}, {"logprob": bad}, {"logprob": -0.5}]}}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=json_with_nan({"choices": [choice]})))

    with pytest.raises(SearcherError, match="probability 0 or NaN"):
        await EngineClient("http://engine", transport=transport).generate([1], Sampling(max_tokens=3))


async def test_arrays_that_are_not_aligned_are_refused() -> None:
    with pytest.raises(SearcherError, match=r"\(3, 3, 0\)"):
        await client_that_gets(choices=[CHOICE | {"weight_versions": None}]).generate([1], Sampling(max_tokens=3))


async def test_an_aborted_turn_is_an_outage() -> None:
    with pytest.raises(UpstreamUnavailable, match="abort"):
        await client_that_gets(choices=[CHOICE | {"finish_reason": "abort"}]).generate([1], Sampling(max_tokens=3))


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (400, "The decoder prompt (length 600) is longer than the maximum model length of 512.", PromptTooLong),
        (400, "This model's maximum context length is 512 tokens.", PromptTooLong),
        (400, "Token id 5000 is out of vocabulary", InvalidInput),
        (500, "EngineCore encountered an issue.", UpstreamUnavailable),
        (503, "engine_paused", UpstreamUnavailable),
    ],
)
async def test_errors_are_told_apart(status: int, message: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=message[:20].replace("(", r"\(")) as raised:
        await client_that_gets(status, error={"message": message}).generate([1], Sampling(max_tokens=3))

    assert type(raised.value) is error


async def test_what_shapes_a_sample_is_always_sent() -> None:
    """Engines fill what is missing from the model's generation_config: top_k 20, penalties."""
    sent: list[dict[str, Any]] = []

    def remember(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={"choices": [CHOICE]})

    await EngineClient("http://engine", transport=httpx.MockTransport(remember)).generate([1], Sampling(max_tokens=3))

    assert sent[0]["sampling_params"] == {
        "max_tokens": 3,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "logprobs": 0,
        "stop": [],
    }


def json_with_nan(body: dict[str, Any]) -> str:
    return json.dumps(body)
