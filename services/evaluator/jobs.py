"""Evaluations as Redis remembers them: written before anything is sent, changed by atomic steps only.

    create -> pending --take_due--> sent --claim--> running: store, judge --finish--> gone
                 ^                   ^  lease ran out  |
              resume                 +-----------------+

An evaluation is cut into chunks: some questions of one benchmark for one system. Every chunk in flight has a lease: a
sent one until a worker claims it, a running one as long as its worker renews it. A lease that ran out makes the chunk
due again, whoever lost it. Answers are kept per system, benchmark and question, and the first one counts, so a chunk
that is answered twice changes nothing. The evaluation is done when no chunk is left. Leases are measured by the clock
of Redis alone. The steps themselves are in steps.lua. Sending is left to dispatch.py, what a report makes of the
answers to assembly.py.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from searcher.contracts.errors import Conflict, NotFound, Overloaded
from searcher.contracts.report import EvaluatedQuestion, EvaluationRequest, EvaluationState, EvaluationStatus
from searcher.servicekit.streams import WANTED_WEIGHTS
from services.evaluator.chunks import Answered, Chunk, Claim, Outline, Questions, chunks_of, digest, outline_of
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.statistics import figures, metrics

STEPS = Path(__file__).with_name("steps.lua").read_text()
PARTS = ("", "chunks", "pending", "leases", "owners", "sends", "claims", "results", "verdicts", "sums")
"""What there is of an evaluation: its record, which has no name of its own, and the rest."""
REMEMBERED = ("", "chunks", "results", "verdicts", "sums")
"""Those that stay when it is closed."""
INDEX, OPEN = "evaluations", "evaluations:open"
TURNS = "evaluations:turns"
"""Open evaluations of versions that they bring with them, oldest first: the first one has the engines."""

Kept = tuple[str, str | int, Mapping[str, float]]
"""The key of an answer, what is kept under it, and what that adds to the sums of the figures."""


@dataclass(frozen=True)
class Due:
    """Chunks to send now."""

    again: tuple[int, ...]
    """Sent before, and lost."""
    first: tuple[int, ...]


class Jobs:
    """All evaluations that Redis remembers."""

    def __init__(self, redis: Redis, settings: EvaluatorSettings) -> None:
        self.redis, self.settings = redis, settings
        self._lease_ms = round(settings.lease_seconds * 1000)
        self._steps = redis.register_script(STEPS)

    async def create(
        self,
        request: EvaluationRequest,
        questions: Questions,
        *,
        indexes: Mapping[str, str] | None = None,
    ) -> None:
        """Remember an evaluation of every system on the questions, by benchmark; nothing happens if it is known.

        Raises Conflict if the id has other content.
        """
        outline = outline_of(request, questions, indexes or {})
        chunks = chunks_of(request.systems, questions, size=self.settings.chunk_size)
        total = len(request.systems) * sum(map(len, questions.values()))
        version = request.version.model_dump_json() if request.version else ""
        outcome = await self._step(
            *("create", request.id, digest(request), total, self.settings.max_open),
            *(outline.model_dump_json(), version, *(chunk.model_dump_json() for chunk in chunks)),
        )
        if outcome == b"conflict":
            raise other_content(request.id)
        if outcome == b"full":
            raise self._full()

    async def take_due(self, evaluation_id: str) -> Due:
        """Chunks to send now; their leases start here, so that two callers never send the same ones.

        An evaluation that brings its weights along waits for its turn, and has them announced when it comes.
        """
        again, first = await self._step("take_due", evaluation_id, self.settings.chunks_in_flight, self._lease_ms)
        return Due(again=tuple(map(int, again)), first=tuple(map(int, first)))

    async def claim(self, evaluation_id: str, number: int, *, owner: str) -> Claim | None:
        """Take a chunk; None if it is done, closed, or another worker's."""
        answer = await self._step("claim", evaluation_id, number, owner, self._lease_ms, self.settings.max_crashes)
        if answer is None:
            return None
        outline, chunk, num_answered = answer
        return Claim(
            *(evaluation_id, number, owner),
            Outline.model_validate_json(outline),
            Chunk.model_validate_json(chunk),
            int(num_answered),
        )

    async def renew(self, claim: Claim) -> bool:
        """Keep the lease. False: it is lost, or the evaluation is closed; stop working on it."""
        return bool(await self._step("renew", claim.evaluation_id, claim.number, claim.owner, self._lease_ms))

    async def answers(self, claim: Claim) -> dict[str, EvaluatedQuestion]:
        """Those of the chunk's questions that are answered, by id, with their verdicts: the ones that count."""
        keys = claim.chunk.keys
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.hmget(_key(claim.evaluation_id, "results"), list(keys.values()))
            pipe.hmget(_key(claim.evaluation_id, "verdicts"), list(keys.values()))
            results, verdicts = await pipe.execute()
        return {
            question_id: _with_verdict(EvaluatedQuestion.model_validate_json(result), verdict)
            for question_id, result, verdict in zip(keys, results, verdicts, strict=True)
            if result is not None
        }

    async def store(self, claim: Claim, rows: Sequence[EvaluatedQuestion], *, weights: str) -> int:
        """Keep answers of a chunk, all or some. Returns how many were new.

        Answers under other weights than the first ones fail the evaluation: its report would be about no model.
        """
        if not rows:
            return 0
        keys = claim.chunk.keys
        table = _table([(keys[row.id], row.model_dump_json(), figures(row)) for row in rows])
        return int(await self._step("store", claim.evaluation_id, weights, *table))

    async def judge(self, claim: Claim, verdicts: Mapping[str, bool], *, problem: str) -> int:
        """Keep verdicts on the answers that count, by question id. `problem`: why there are not more; "" if all are.

        Returns how many were new.
        """
        answers, keys, kept = await self.answers(claim), claim.chunk.keys, list[Kept]()
        for question_id, verdict in verdicts.items():
            before = figures(answers[question_id].model_copy(update={"judge": None}))
            after = figures(answers[question_id].model_copy(update={"judge": verdict}))
            added = {name: after[name] - before[name] for name in after if after[name] != before[name]}
            kept.append((keys[question_id], int(verdict), added))
        return int(await self._step("judge", claim.evaluation_id, problem, *_table(kept)))

    async def finish(self, claim: Claim) -> None:
        """Nothing is left to do for a chunk. Closes the evaluation with its last one."""
        await self._step("finish", claim.evaluation_id, claim.number)

    async def postpone(self, claim: Claim, *, reason: str) -> None:
        """Give a chunk back: who answers is down. Fails the evaluation if that has been so for too long."""
        outage_ms = round(self.settings.outage_seconds * 1000)
        await self._step("postpone", claim.evaluation_id, claim.number, claim.owner, reason, outage_ms)

    async def fail(self, evaluation_id: str, *, reason: str) -> None:
        """Nothing happens to an evaluation that is closed."""
        await self._step("fail", evaluation_id, reason)

    async def resume(self, evaluation_id: str) -> None:
        """Take up an evaluation that failed, or that is done without all of its verdicts; its answers stay.

        Nothing happens to one that goes on anyway. Raises NotFound, and Conflict if there is nothing left to do.
        """
        record, chunks, results, verdicts = await self._everything(evaluation_id)
        state, outline = record[b"state"].decode(), Outline.model_validate_json(record[b"outline"])
        if state in (EvaluationState.QUEUED, EvaluationState.RUNNING):
            return
        settled = results.keys() & verdicts.keys() if outline.judge else results.keys()
        left = [
            number for number, chunk in chunks.items() if not {key.encode() for key in chunk.keys.values()} <= settled
        ]
        if not left:
            if state == EvaluationState.DONE:
                raise Conflict(f"evaluation {evaluation_id!r} is done; nothing is left to do for it")
            left = [max(chunks)]  # everything is answered: its end is what is missing
        outcome = await self._step("resume", evaluation_id, state, self.settings.max_open, *left)
        if outcome == b"full":
            raise self._full()

    async def status(self, evaluation_id: str) -> EvaluationStatus:
        """Raises NotFound."""
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(_key(evaluation_id))
            pipe.hgetall(_key(evaluation_id, "sums"))
            pipe.time()
            record, sums, (seconds, _) = await pipe.execute()
        if not record:
            raise _not_found(evaluation_id)
        return _status(evaluation_id, record, sums, now_ms=seconds * 1000)

    async def newest(self, count: int) -> list[EvaluationStatus]:
        """Newest first, without those that Redis has forgotten."""
        statuses = []
        members: Any = await self.redis.zrevrange(INDEX, 0, count - 1)
        for member in members:
            try:
                statuses.append(await self.status(member.decode()))
            except NotFound:
                await self.redis.zrem(INDEX, member)
        return statuses

    async def open_ids(self) -> list[str]:
        """Evaluations that are not closed yet, finished ones among them."""
        members: Any = await self.redis.smembers(OPEN)
        return sorted(member.decode() for member in members)

    async def is_open(self, evaluation_id: str) -> bool:
        return bool(await self.redis.sismember(OPEN, evaluation_id))

    async def idle_seconds(self, evaluation_id: str) -> float:
        """Since the newest answer, or since it was asked for."""
        progress = await self.redis.hget(_key(evaluation_id), "progress_ms")
        seconds, _ = await self.redis.time()
        return max(0.0, seconds - float(progress or seconds * 1000) / 1000)

    async def digest(self, evaluation_id: str) -> str | None:
        """Of the request; None if no evaluation has this id."""
        value: Any = await self.redis.hget(_key(evaluation_id), "digest")
        return None if value is None else str(value.decode())

    async def answered(self, evaluation_id: str) -> Answered:
        """Everything about an evaluation that is done."""
        record, chunks, results, verdicts = await self._everything(evaluation_id)
        keys, corpora = list[bytes](), dict[str, frozenset[str]]()
        for _, chunk in sorted(chunks.items()):
            keys += [key.encode() for key in chunk.keys.values()]
            asked = frozenset(question.corpus for question in chunk.questions)
            corpora[chunk.benchmark] = corpora.get(chunk.benchmark, frozenset()) | asked
        created_ms, finished_ms = int(record[b"created_ms"]), int(record[b"finished_ms"])
        return Answered(
            outline=Outline.model_validate_json(record[b"outline"]),
            rows=tuple(
                _with_verdict(EvaluatedQuestion.model_validate_json(results[key]), verdicts.get(key)) for key in keys
            ),
            weights=record.get(b"weights", b"").decode(),
            created_at=dt.datetime.fromtimestamp(created_ms / 1000, dt.UTC),
            seconds=(finished_ms - created_ms) / 1000,
            corpora=corpora,
            not_judged=record.get(b"not_judged", b"").decode(),
        )

    async def close(self, evaluation_id: str) -> None:
        """Nothing is left to do for it; from now on Redis may forget it."""
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.srem(OPEN, evaluation_id)
            pipe.lrem(TURNS, 0, evaluation_id)
            for part in REMEMBERED:
                pipe.expire(_key(evaluation_id, part), self.settings.keep_seconds)
            await pipe.execute()

    async def _everything(
        self, evaluation_id: str
    ) -> tuple[dict[bytes, bytes], dict[int, Chunk], dict[bytes, bytes], dict[bytes, bytes]]:
        """Record, chunks by number, answers and verdicts. Raises NotFound."""
        async with self.redis.pipeline(transaction=True) as pipe:
            for part in ("", "chunks", "results", "verdicts"):
                pipe.hgetall(_key(evaluation_id, part))
            record, chunks, results, verdicts = await pipe.execute()
        if not record:
            raise _not_found(evaluation_id)
        parts = {int(number): Chunk.model_validate_json(chunk) for number, chunk in chunks.items()}
        return record, parts, results, verdicts

    def _full(self) -> Overloaded:
        count = self.settings.max_open
        return Overloaded(f"{count} evaluations are open (EVALUATOR_MAX_OPEN)", retry_after_seconds=5.0)

    async def _step(self, name: str, evaluation_id: str, *args: str | float) -> Any:
        """Every step gets the same keys, in the order in which steps.lua names them."""
        own = [_key(evaluation_id, part) for part in PARTS]
        shared = [INDEX, OPEN, TURNS, WANTED_WEIGHTS["evaluation"]]
        return await self._steps(keys=own + shared, args=[name, evaluation_id, *args])


def _table(values: Sequence[Kept]) -> list[str | float]:
    """As the steps that keep values take them: how many figures there are, their names, then row by row."""
    names = list(dict.fromkeys(name for _, _, added in values for name in added))
    table: list[str | float] = [len(names), *names]
    for key, value, added in values:
        table += [key, value, *(added.get(name, 0.0) for name in names)]
    return table


def _with_verdict(row: EvaluatedQuestion, verdict: bytes | None) -> EvaluatedQuestion:
    return row if verdict is None else row.model_copy(update={"judge": verdict == b"1"})


def _key(evaluation_id: str, part: str = "") -> str:
    return f"evaluation:{evaluation_id}:{part}" if part else f"evaluation:{evaluation_id}"


def _status(
    evaluation_id: str, record: dict[bytes, bytes], sums: dict[bytes, bytes], *, now_ms: int
) -> EvaluationStatus:
    state, total = EvaluationState(record[b"state"].decode()), int(record[b"total"])
    values = {name.decode(): float(value) for name, value in sums.items()}
    done = round(values.get("num_questions", 0.0))
    now_done = done - int(record.get(b"done_before", 0))
    eta_seconds = None
    if state is EvaluationState.RUNNING and now_done > 0 and b"started_ms" in record:
        eta_seconds = max(0.0, now_ms - int(record[b"started_ms"])) / 1000 / now_done * (total - done)
    return EvaluationStatus(
        id=evaluation_id,
        state=state,
        done=done,
        total=total,
        eta_seconds=eta_seconds,
        partial=metrics(values) if done else None,
        error=record[b"error"].decode() if b"error" in record else None,
    )


def _not_found(evaluation_id: str) -> NotFound:
    return NotFound(f"no evaluation {evaluation_id!r}; GET /v1/evaluations lists those that exist")


def other_content(evaluation_id: str) -> Conflict:
    return Conflict(f"id: evaluation {evaluation_id!r} exists with other content; choose another id")
