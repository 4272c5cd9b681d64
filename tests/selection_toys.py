"""A rollout service for selection's tests: it answers a question right from a given rollout on, and counts."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from searcher.contracts.errors import Conflict, SearcherError
from searcher.contracts.question import Question, RolloutPlan, RolloutRequest
from searcher.contracts.score import Score
from searcher.contracts.trajectory import RolloutResponse, StopReason, Trajectory
from searcher.contracts.weights import EngineState, EngineStatus, WeightsStatus
from searcher.selection.asking import seed_of
from searcher.selection.journal import Asking, Correct

NEVER = 10_000
ATTEMPT_OF_SEED = {seed_of(0, attempt): attempt for attempt in range(1, 31)}


def make_questions(count: int) -> list[Question]:
    return [
        Question(id=f"q{number:03}", question=f"Who is number {number}?", answers=("Me",)) for number in range(count)
    ]


def write_questions(path: Path, count: int) -> Path:
    rows = (question.model_dump_json(include={"id", "question", "answers"}) for question in make_questions(count))
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def make_asking(rollouts: int = 20, weights: str = "base", temperature: float = 1.0) -> Asking:
    return Asking(
        candidates="candidates.jsonl",
        candidates_sha256="0" * 64,
        corpus="default",
        rollouts=rollouts,
        correct=Correct.COVER_EM,
        at_least=1.0,
        rules="searcher",
        seed=0,
        plan=RolloutPlan(temperature=temperature),
        weights=weights,
    )


class ToyRollouts:
    """`right_from`: question id -> the first rollout that answers it right. Seeds tell which rollout it is."""

    def __init__(self, right_from: Mapping[str, int], *, weights: str = "base") -> None:
        self.right_from, self.held = dict(right_from), weights
        self.asked: Counter[tuple[str, int]] = Counter()
        self.requests: list[list[tuple[str, int]]] = []
        self.trouble: Callable[[int], SearcherError | None] = lambda number: None
        """Request number -> what goes wrong with it."""

    async def weights(self) -> WeightsStatus:
        row = EngineStatus(url="http://engine", state=EngineState.READY, version=self.held, in_flight=0)
        return WeightsStatus(wanted=None, engines=(row,))

    async def rollouts(self, request: RolloutRequest) -> RolloutResponse:
        await asyncio.sleep(0)
        return self.answer(request)

    def answer(self, request: RolloutRequest) -> RolloutResponse:
        attempt = ATTEMPT_OF_SEED[request.plan.seed or 0]
        turns = [(question.id, attempt) for question in request.questions]
        self.requests.append(turns)
        error = self.trouble(len(self.requests))
        if error is not None:
            raise error
        if request.weights != self.held:
            raise Conflict(f"weights: {request.weights!r} is demanded, but the engines hold {self.held}")
        self.asked.update(turns)
        groups = tuple((self._trajectory(question, attempt),) for question in request.questions)
        return RolloutResponse(groups=groups, weights=self.held)

    def _trajectory(self, question: Question, attempt: int) -> Trajectory:
        figure = float(attempt >= self.right_from[question.id])
        score = Score(
            total=figure,
            parts={},
            answer="Me" if figure else "You",
            em=figure,
            cover_em=figure,
            f1=figure,
            format_ok=True,
        )
        return Trajectory(
            id=f"{question.id}.0",
            question=question,
            prompt_text="P",
            prompt_ids=(1,),
            segments=(),
            searches=(),
            stop_reason=StopReason.ANSWERED,
            score=score,
        )


@contextmanager
def served(toy: ToyRollouts, *, slow: Callable[[], None] = lambda: None) -> Iterator[str]:
    """The toy behind HTTP; yields its URL. `slow` runs before each answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, asyncio.run(toy.weights()).model_dump_json())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            slow()
            try:
                self._send(200, toy.answer(RolloutRequest.model_validate_json(body)).model_dump_json())
            except SearcherError as error:
                self._send(error.status, json.dumps(error.body().model_dump()))

        def _send(self, status: int, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda request, address: None  # type: ignore[method-assign]  # a killed client
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
