"""Ask a language model whether an answer is right: question, golds, prediction -> True or False.

Any OpenAI-compatible endpoint will do. The prompt is R1-Searcher's published one, character for character; unlike the
published script, sampling is greedy, and a judge that does not answer is an error, never a "False".
"""

import asyncio
import re
from collections import OrderedDict
from typing import Any

import httpx

from searcher.clients.http import ServiceClient
from searcher.contracts.errors import SearcherError, UpstreamUnavailable
from searcher.qa.answer import Golds

JUDGE_PROMPT = """\
Given a Question and its Golden Answer, verify whether the Predicted Answer is correct. The prediction is correct if it fully aligns with the meaning and key information of the Golden Answer. Respond with True if the prediction is correct and False otherwise.

Question: {question}
Golden Answer: {reference}
Predicted Answer: {prediction}
    """  # noqa: E501  published, to the four spaces at its end

_FIELD = re.compile(r"\{(question|reference|prediction)\}")
_VERDICT = re.compile(r"\b(true|false)\b", re.IGNORECASE)


class JudgeClient(ServiceClient):
    """One per process and event loop. A verdict is remembered; the same asked twice at the same time is asked once."""

    service = "judge"

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 30.0,
        attempts: int = 3,
        concurrency: int = 16,
        cache_entries: int = 100_000,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`base_url` ends where `/chat/completions` begins, e.g. `https://api.openai.com/v1`. `timeout_seconds` is for
        a verdict with all its attempts, not counting the wait for one of `concurrency` places."""
        super().__init__(
            base_url, api_key=api_key, timeout_seconds=timeout_seconds, attempts=attempts, transport=transport
        )
        self.model, self.cache_entries = model, cache_entries
        self._places = asyncio.Semaphore(concurrency)
        self._verdicts: OrderedDict[str, bool] = OrderedDict()
        self._asking: dict[str, asyncio.Task[bool]] = {}

    async def close(self) -> None:
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        await super().close()

    async def verdict(self, question: str, golds: Golds, prediction: str) -> bool:
        """Whether the judge takes the prediction for right. Raises UpstreamUnavailable, and only that, where it gives
        no verdict: no answer in time, an error of any kind, or a reply that is neither True nor False."""
        prompt = judge_prompt(question, golds, prediction)
        if prompt in self._verdicts:
            self._verdicts.move_to_end(prompt)
            return self._verdicts[prompt]
        if prompt not in self._asking:
            self._asking[prompt] = asyncio.create_task(self._remembered(prompt))
            self._asking[prompt].add_done_callback(_nobody_may_wait_for_it)
        return await asyncio.shield(self._asking[prompt])  # one caller giving up must not fail the others

    async def _remembered(self, prompt: str) -> bool:
        try:
            async with self._places:
                verdict = await self._asked(prompt)
        finally:
            del self._asking[prompt]
        self._verdicts[prompt] = verdict
        if len(self._verdicts) > self.cache_entries:
            self._verdicts.popitem(last=False)
        return verdict

    async def _asked(self, prompt: str) -> bool:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 1024,
            "temperature": 0.0,
        }
        try:
            async with asyncio.timeout(self.timeout_seconds):
                body = await self.post("/chat/completions", request)
            reply = body["choices"][0]["message"]["content"]
        except UpstreamUnavailable:
            raise
        except TimeoutError as error:
            raise UpstreamUnavailable(
                f"judge at {self.base_url} gave no verdict in {self.timeout_seconds} s"
            ) from error
        except SearcherError as error:  # a wrong key or model name: asking again would not help, but nobody was judged
            raise UpstreamUnavailable(f"judge at {self.base_url} refused: {error}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise UpstreamUnavailable(f"judge at {self.base_url} does not reply like an OpenAI endpoint") from error
        return read_verdict(reply)

    def raise_for_status(self, response: httpx.Response) -> None:
        """Rate limits and the endpoint's own failures are worth another attempt."""
        if response.status_code == 429 or response.status_code >= 500:
            raise UpstreamUnavailable(
                f"judge at {self.base_url} answered HTTP {response.status_code}: {response.text[:200]}",
                retry_after_seconds=_retry_after_seconds(response),
            )
        super().raise_for_status(response)


def _nobody_may_wait_for_it(task: asyncio.Task[bool]) -> None:
    """Its callers may all have given up; asyncio complains about errors that nobody looked at."""
    if not task.cancelled():
        task.exception()


def judge_prompt(question: str, golds: Golds, prediction: str) -> str:
    """Booleans are yes and no, as published. Several golds, which the published script does not know, join by "or"."""
    several = [golds] if isinstance(golds, str | bool) else golds
    reference = " or ".join({"True": "yes", "False": "no"}.get(str(gold), str(gold)) for gold in several)
    texts = {"question": question, "reference": reference, "prediction": prediction}
    return _FIELD.sub(lambda field: texts[field[1]], JUDGE_PROMPT)  # in one pass: a text that holds a field stays text


def read_verdict(reply: object) -> bool:
    """Which of True and False the reply says, after its reasoning. Raises UpstreamUnavailable for both and for none."""
    said = reply.rpartition("</think>")[2] if isinstance(reply, str) else ""
    words = {word.lower() for word in _VERDICT.findall(said)}
    if len(words) != 1:
        raise UpstreamUnavailable(f"judge: the reply says neither True nor False: {said.strip()[:80]!r}")
    return words == {"true"}


def _retry_after_seconds(response: httpx.Response) -> float:
    try:
        return float(response.headers.get("Retry-After", "1"))
    except ValueError:
        return 1.0
