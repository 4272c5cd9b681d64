"""Toys that rollout's tests share: one letter is one token, an engine that speaks vLLM's routes, two passages."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from searcher.clients.engine import EngineClient, Sampled, Sampling
from searcher.contracts.question import Question, RolloutPlan
from searcher.contracts.score import RuleSet, Score, ScoreRequest, ScoreResponse
from searcher.contracts.search import Passage, SearchRequest, SearchResponse
from searcher.contracts.weights import WeightVersion
from services.rollout.engines import Engines
from services.rollout.tasks import running

BOS, EOS = 1, 2
QUESTION = Question(id="q1", question="Where was Ada born?", answers=("London",))
PLAN = RolloutPlan(template="bare", max_context_tokens=4_096)
PASSAGES = (
    Passage(id="p1", title="Ada", text="Ada was born in London.", score=2.0),
    Passage(id="p2", title="Bob", text="Bob was born in Rome.", score=1.0),
)
ASKS = "I search. <|begin_of_query|> Ada birthplace<|end_of_query|>"
ANSWERS = "Now I know. </think> <answer> London </answer>"


class ToyTokenizer:
    """One letter is one token. `encode` puts a BOS in front, as many models' tokenizers do."""

    eos_token_id = EOS

    def __init__(self, chat_template: str | None = None) -> None:
        self.chat_template = chat_template

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [BOS] * add_special_tokens + [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return "".join(chr(token) for token in ids)

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        assert add_generation_prompt
        return "".join(f"[{message['role']}]{message['content']}" for message in messages) + "[assistant]"


def written(text: str, sampling: Sampling, *, version: str = "default") -> Sampled:
    """What a real engine returns for a policy that goes on with `text` and then ends."""
    ids = [*(ord(letter) for letter in text), EOS]
    ends = [(text.index(stop) + len(stop), stop) for stop in sampling.stop if stop in text]
    end, stop_string = min(ends, default=(len(ids), None))
    finish_reason = "stop"
    if end > sampling.max_tokens:
        end, stop_string, finish_reason = sampling.max_tokens, None, "length"
    logprobs = tuple(-0.25 for _ in range(end))
    return Sampled(tuple(ids[:end]), logprobs, (version,) * end, finish_reason, stop_string)


@dataclass
class ToyPolicy:
    """Writes one text after another, and remembers the contexts it was given."""

    texts: Sequence[str]
    contexts: list[list[int]] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)

    async def sample(self, token_ids: list[int], sampling: Sampling) -> Sampled | None:
        self.contexts.append(list(token_ids))
        self.samplings.append(sampling)
        return written(self.texts[len(self.contexts) - 1], sampling)


@dataclass
class ToyRetriever:
    """Knows two passages, or nothing; raises what it is told to, once."""

    passages: tuple[Passage, ...] = PASSAGES
    failures: list[Exception] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)

    async def search(self, queries: Sequence[str], *, k: int, corpus: str) -> tuple[tuple[Passage, ...], ...]:
        if self.failures:
            raise self.failures.pop(0)
        self.queries += queries
        return tuple(self.passages[:k] for _ in queries)


def asks_once(prompt: str) -> str:
    """A policy that searches and then answers from what it read."""
    return ANSWERS if "<|end_of_documents|>" in prompt.rpartition("<think>")[2] else ASKS


class ToyEngine:
    """vLLM's routes on a policy that is a function of the text so far."""

    def __init__(self, reply: Callable[[str], str] = asks_once, *, max_model_len: int = 100_000) -> None:
        self.reply, self.max_model_len = reply, max_model_len
        self.version, self.paused, self.down = "default", False, False
        self.turns: list[list[int]] = []
        """The ids of every turn it was asked for."""
        self.updates: list[str] = []
        self.broken_turns = 0
        """This many turns fail with 500."""
        self.bad_updates = 0
        """This many announced files are refused."""
        self.gate = asyncio.Event()
        """Turns wait for it."""
        self.gate.set()
        self.arrived = asyncio.Event()
        """A turn has come in."""
        self.app = self._app()

    def client(self, url: str = "http://engine") -> EngineClient:
        return EngineClient(url, transport=_Wire(self))

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/inference/v1/generate")
        async def generate(request: Request) -> JSONResponse:
            body = await request.json()
            ids, asked = body["token_ids"], body["sampling_params"]
            self.turns.append(ids)
            self.arrived.set()
            if len(ids) >= self.max_model_len:
                message = f"The decoder prompt is longer than the maximum model length of {self.max_model_len}."
                return JSONResponse({"error": {"message": message}}, 400)
            if self.broken_turns:
                self.broken_turns -= 1
                return JSONResponse({"error": {"message": "EngineCore encountered an issue."}}, 500)
            await self.gate.wait()
            sampling = Sampling(max_tokens=asked["max_tokens"], stop=tuple(asked["stop"]))
            turn = written(self.reply("".join(map(chr, ids))), sampling, version=self.version)
            return JSONResponse({"choices": [_choice(turn)]})

        @app.get("/weight_info")
        async def weight_info() -> dict[str, str]:
            return {"weight_version": self.version}

        @app.get("/health")
        async def health() -> None:
            return None

        @app.post("/{control}")
        async def control(control: str, request: Request) -> JSONResponse:
            body = await request.json() if await request.body() else {}
            if control == "init_weight_transfer_engine" and self.bad_updates:
                self.bad_updates -= 1
                return JSONResponse({"error": {"message": "sha256 differs"}}, 500)
            if control in ("pause", "resume"):
                self.paused = control == "pause"
            if control == "update_weights":
                assert self.paused
            if control == "finish_weight_update":
                self.version = body["weight_version"]
                self.updates.append(self.version)
            return JSONResponse({})

        return app


class _Wire(httpx.ASGITransport):
    """Reaches an engine in this process, unless it is down."""

    def __init__(self, engine: ToyEngine) -> None:
        super().__init__(engine.app)
        self.engine = engine

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.engine.down:
            raise httpx.ConnectError("connection refused")
        return await super().handle_async_request(request)


def _choice(turn: Sampled) -> dict[str, Any]:
    end = len(turn.token_ids)
    return {
        "token_ids": turn.token_ids,
        "logprobs": {"content": [{"logprob": logprob} for logprob in turn.logprobs]},
        "finish_reason": turn.finish_reason,
        "stop_reason": turn.stop_string,
        "weight_versions": [{"version": turn.versions[0], "start": 0, "end": end}] if end else [],
    }


def retriever_app(passages: tuple[Passage, ...] = PASSAGES) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/search")
    async def search(request: SearchRequest) -> SearchResponse:
        return SearchResponse(
            corpus=request.corpus, index="toy", results=(passages[: request.k],) * len(request.queries)
        )

    return app


def weights(step: int, *, run_id: str = "demo", sha256: str = "a" * 64) -> WeightVersion:
    return WeightVersion(run_id=run_id, step=step, location="file:///nowhere", sha256=sha256, num_bytes=1)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other tasks bring about; fails after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (conditions are on plain attributes)
            await asyncio.sleep(0.005)


@asynccontextmanager
async def reconciling(engines: Engines) -> AsyncIterator[Engines]:
    """The engines, tended as in the service."""
    async with running(engines.run()):
        yield engines


def reward_app() -> FastAPI:
    """Everything is worth a point."""
    app = FastAPI()

    @app.get("/v1/rules")
    async def rules() -> list[RuleSet]:
        return [RuleSet(name="searcher", description="a point each", parts=("point",))]

    @app.post("/v1/score")
    async def score(request: ScoreRequest) -> ScoreResponse:
        point = Score(total=1.0, parts={"point": 1.0}, answer=None, em=0, cover_em=0, f1=0, format_ok=True)
        ids = tuple(item.id for item in request.items)
        return ScoreResponse(rules=request.rules, scores=(point,) * len(ids), ids=ids)

    return app


@contextmanager
def served(**apps: FastAPI) -> Iterator[str]:
    """The apps under one real address: `http://127.0.0.1:<port>/<name>`."""
    root = FastAPI()
    for name, app in apps.items():
        root.mount(f"/{name}", app)
    server = uvicorn.Server(uvicorn.Config(root, port=0, log_level="warning", lifespan="off"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()
