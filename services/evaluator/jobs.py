"""Evaluations as Redis remembers them: written before anything is sent, changed by atomic steps only.

    create -> pending --take_due--> sent --claim--> running: store, judge --finish--> gone
                 ^                   ^  lease ran out  |
              resume                 +-----------------+

An evaluation is cut into chunks: some questions of one benchmark for one system. Every chunk in flight has a lease: a
sent one until a worker claims it, a running one as long as its worker renews it. A lease that ran out makes the chunk
due again, whoever lost it. Answers are kept per system, benchmark and question, and the first one counts, so a chunk
that is answered twice changes nothing. The evaluation is done when no chunk is left. Leases are measured by the clock
of Redis alone. Sending is left to dispatch.py, what a report makes of the answers to assembly.py.
"""

import datetime as dt
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from searcher.contracts.base import Contract
from searcher.contracts.errors import Conflict, NotFound, Overloaded
from searcher.contracts.question import Question, RolloutPlan, SearchMode
from searcher.contracts.report import EvaluatedQuestion, EvaluationRequest, EvaluationState, EvaluationStatus, System
from searcher.contracts.weights import WeightVersion
from searcher.servicekit.streams import WANTED_WEIGHTS
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.statistics import figures, metrics

INDEX, OPEN = "evaluations", "evaluations:open"
TURNS = "evaluations:turns"
"""Open evaluations of versions that they bring with them, oldest first: the first one has the engines."""

# Every script gets the same KEYS; `record` and the others are the names it uses. ARGV[1] is always the evaluation's id.
_PRELUDE = """
local record, chunks, pending, leases = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local owners, sends, claims, results, verdicts, sums = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local index, open, turns, wanted = KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local id = table.remove(ARGV, 1)
local state = redis.call('HGET', record, 'state')
local is_open = state == 'queued' or state == 'running'
local function begin()
  redis.call('HSET', record, 'state', 'queued', 'progress_ms', now)
  redis.call('SADD', open, id)
  if redis.call('HEXISTS', record, 'version') == 1 then redis.call('RPUSH', turns, id) end
end
local function finish(final, reason)
  redis.call('HSET', record, 'state', final, 'finished_ms', now)
  if reason then redis.call('HSET', record, 'error', reason) end
  redis.call('DEL', pending, leases, owners, sends, claims)
  redis.call('LREM', turns, 0, id)
end
"""

# ARGV digest, total, max_open, outline, weights' version ('' if it brings none), chunk 0, chunk 1, …
_CREATE = """
local known = redis.call('HGET', record, 'digest')
if known then return known == ARGV[1] and 'exists' or 'conflict' end
if redis.call('SCARD', open) >= tonumber(ARGV[3]) then return 'full' end
redis.call('HSET', record, 'digest', ARGV[1], 'total', ARGV[2], 'outline', ARGV[4], 'created_ms', now)
if ARGV[5] ~= '' then redis.call('HSET', record, 'version', ARGV[5]) end
for i = 6, #ARGV do
  redis.call('HSET', chunks, i - 6, ARGV[i])
  redis.call('RPUSH', pending, i - 6)
end
redis.call('ZADD', index, now, id)
begin()
return 'created'
"""

# ARGV window, lease_ms. Waiting in a queue is no fault: an unclaimed chunk is sent again at growing intervals.
_TAKE_DUE = """
if not is_open then return {{}, {}} end
local version = redis.call('HGET', record, 'version')
if version then
  if redis.call('LINDEX', turns, 0) ~= id then return {{}, {}} end
  redis.call('SET', wanted, version)
end
local again, first = redis.call('ZRANGEBYSCORE', leases, '-inf', now), {}
while redis.call('ZCARD', leases) < tonumber(ARGV[1]) do
  local chunk = redis.call('LPOP', pending)
  if not chunk then break end
  redis.call('ZADD', leases, now, chunk)
  table.insert(first, chunk)
end
for _, list in ipairs({again, first}) do
  for _, chunk in ipairs(list) do
    local sent = redis.call('HINCRBY', sends, chunk, 1)
    redis.call('ZADD', leases, now + ARGV[2] * 2 ^ math.min(sent - 1, 5), chunk)
    redis.call('HDEL', owners, chunk)
  end
end
return {again, first}
"""

# ARGV chunk, owner, lease_ms, max_crashes
_CLAIM = """
local lease = redis.call('ZSCORE', leases, ARGV[1])
if not is_open or not lease then return false end
if redis.call('HEXISTS', owners, ARGV[1]) == 1 and tonumber(lease) > now then return false end
if redis.call('HINCRBY', claims, ARGV[1], 1) > tonumber(ARGV[4]) then
  finish('failed', 'chunk ' .. ARGV[1] .. ' ended its worker ' .. ARGV[4] .. ' times; see the log of the workers')
  return false
end
redis.call('HSET', owners, ARGV[1], ARGV[2])
redis.call('ZADD', leases, now + ARGV[3], ARGV[1])
redis.call('HDEL', sends, ARGV[1])
redis.call('HSET', record, 'state', 'running')
redis.call('HSETNX', record, 'started_ms', now)
return {redis.call('HGET', record, 'outline'), redis.call('HGET', chunks, ARGV[1]), redis.call('HLEN', results)}
"""

# ARGV chunk, owner, lease_ms
_RENEW = """
if not is_open or redis.call('HGET', owners, ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('ZADD', leases, 'XX', now + ARGV[3], ARGV[1])
return 1
"""

# ARGV weights ('' if no token was sampled by rollout), num_figures, names of the figures,
# then per answer: key, row, its figures
_STORE = """
if not is_open then return 0 end
if ARGV[1] ~= '' and redis.call('HSETNX', record, 'weights', ARGV[1]) == 0 then
  local before = redis.call('HGET', record, 'weights')
  if before ~= ARGV[1] then
    finish('failed', 'weights changed during the evaluation: from ' .. before .. ' to ' .. ARGV[1])
    return 0
  end
end
local num_figures, stored = tonumber(ARGV[2]), 0
for i = 3 + num_figures, #ARGV, num_figures + 2 do
  if redis.call('HSETNX', results, ARGV[i], ARGV[i + 1]) == 1 then
    stored = stored + 1
    for f = 1, num_figures do redis.call('HINCRBYFLOAT', sums, ARGV[2 + f], ARGV[i + 1 + f]) end
  end
end
redis.call('HDEL', record, 'down_since_ms', 'outages')
redis.call('HSET', record, 'progress_ms', now)
return stored
"""

# ARGV why the others have none (or ''), num_figures, names of the figures, then per verdict: key, verdict, what it adds
_JUDGE = """
if not is_open then return 0 end
if ARGV[1] ~= '' then redis.call('HSET', record, 'not_judged', ARGV[1]) end
local num_figures, judged = tonumber(ARGV[2]), 0
for i = 3 + num_figures, #ARGV, num_figures + 2 do
  if redis.call('HSETNX', verdicts, ARGV[i], ARGV[i + 1]) == 1 then
    judged = judged + 1
    for f = 1, num_figures do redis.call('HINCRBYFLOAT', sums, ARGV[2 + f], ARGV[i + 1 + f]) end
  end
end
return judged
"""

# ARGV chunk
_FINISH = """
if not is_open then return 0 end
redis.call('ZREM', leases, ARGV[1])
for _, key in ipairs({owners, sends, claims}) do redis.call('HDEL', key, ARGV[1]) end
if redis.call('ZCARD', leases) == 0 and redis.call('LLEN', pending) == 0 then finish('done') end
return 1
"""

# ARGV chunk, owner, reason, outage_ms
_POSTPONE = """
if not is_open or redis.call('HGET', owners, ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSETNX', record, 'down_since_ms', now)
local seconds = math.floor((now - redis.call('HGET', record, 'down_since_ms')) / 1000)
if seconds * 1000 >= tonumber(ARGV[4]) then
  finish('failed', 'no answer for ' .. seconds .. ' s: ' .. ARGV[3])
  return 0
end
local outages = redis.call('HINCRBY', record, 'outages', 1)
redis.call('HDEL', owners, ARGV[1])
redis.call('HINCRBY', claims, ARGV[1], -1)
redis.call('ZADD', leases, 'XX', now + 1000 * 2 ^ math.min(outages - 1, 4), ARGV[1])
return 1
"""

# ARGV reason
_FAIL = """
if not is_open then return 0 end
finish('failed', ARGV[1])
return 1
"""

# ARGV state it was in, max_open, chunks with something left to do
_RESUME = """
if state ~= ARGV[1] then return 'changed' end
if redis.call('SCARD', open) >= tonumber(ARGV[2]) then return 'full' end
redis.call('DEL', pending)
for i = 3, #ARGV do redis.call('RPUSH', pending, ARGV[i]) end
redis.call('HDEL', record, 'error', 'down_since_ms', 'outages', 'not_judged', 'started_ms', 'finished_ms')
redis.call('HSET', record, 'done_before', redis.call('HLEN', results))
for _, key in ipairs({record, chunks, results, verdicts, sums}) do redis.call('PERSIST', key) end
begin()
return 'resumed'
"""


class Outline(Contract):
    """An evaluation without its questions."""

    id: str
    title: str
    systems: tuple[System, ...]
    plan: RolloutPlan
    rules: str
    judge: bool
    weights: str | None
    version: WeightVersion | None
    corpora: tuple[str, ...]
    """Those that are searched."""
    indexes: dict[str, str]
    """What was behind each corpus when the evaluation began, as far as the retriever told."""

    @property
    def demanded_weights(self) -> str | None:
        return self.version.name if self.version else self.weights


class Chunk(Contract):
    """Some questions of one benchmark for one system."""

    system: str
    benchmark: str
    questions: tuple[Question, ...]

    @property
    def keys(self) -> dict[str, str]:
        """Where each question's answer is kept, by the question's id."""
        return {question.id: _answer_key(self.system, self.benchmark, question.id) for question in self.questions}


@dataclass(frozen=True)
class Due:
    """Chunks to send now."""

    again: tuple[int, ...]
    """Sent before, and lost."""
    first: tuple[int, ...]


@dataclass(frozen=True)
class Claim:
    """A chunk this owner holds the lease of."""

    evaluation_id: str
    number: int
    owner: str
    outline: Outline
    chunk: Chunk
    num_answered: int
    """Answers that the evaluation had by then."""

    @property
    def system(self) -> System:
        return next(system for system in self.outline.systems if system.name == self.chunk.system)


@dataclass(frozen=True)
class Answered:
    """An evaluation that is done, as it is remembered."""

    outline: Outline
    rows: tuple[EvaluatedQuestion, ...]
    """By system, benchmark and question in the order asked."""
    weights: str
    created_at: dt.datetime
    seconds: float
    corpora: Mapping[str, frozenset[str]]
    """Which ones the questions of each benchmark are for."""
    not_judged: str
    """Why answers have no verdict, where the judge did not answer."""


class Jobs:
    """All evaluations that Redis remembers."""

    def __init__(self, redis: Redis, settings: EvaluatorSettings) -> None:
        self.redis, self.settings = redis, settings
        self._lease_ms = round(settings.lease_seconds * 1000)
        self._scripts = {
            step: redis.register_script(_PRELUDE + step)
            for step in (_CREATE, _TAKE_DUE, _CLAIM, _RENEW, _STORE, _JUDGE, _FINISH, _POSTPONE, _FAIL, _RESUME)
        }

    async def create(
        self,
        request: EvaluationRequest,
        questions: Mapping[str, Sequence[Question]],
        *,
        indexes: Mapping[str, str] | None = None,
    ) -> None:
        """Remember an evaluation of every system on the questions, by benchmark; nothing happens if it is known.

        Raises Conflict if the id has other content.
        """
        outline = _outline(request, questions, indexes or {})
        parts = [chunk.model_dump_json() for chunk in _cut(request.systems, questions, self.settings.chunk_size)]
        total = len(request.systems) * sum(map(len, questions.values()))
        version = request.version.model_dump_json() if request.version else ""
        outcome = await self._step(
            *(_CREATE, request.id, digest(request), total, self.settings.max_open),
            *(outline.model_dump_json(), version, *parts),
        )
        if outcome == b"conflict":
            raise Conflict(f"id: evaluation {request.id!r} exists with other content; choose another id")
        if outcome == b"full":
            raise self._full()

    async def take_due(self, evaluation_id: str) -> Due:
        """Chunks to send now; their leases start here, so that two callers never send the same ones.

        An evaluation that brings its weights along waits for its turn, and has them announced when it comes.
        """
        again, first = await self._step(_TAKE_DUE, evaluation_id, self.settings.chunks_in_flight, self._lease_ms)
        return Due(again=tuple(map(int, again)), first=tuple(map(int, first)))

    async def claim(self, evaluation_id: str, number: int, *, owner: str) -> Claim | None:
        """Take a chunk; None if it is done, closed, or another worker's."""
        answer = await self._step(_CLAIM, evaluation_id, number, owner, self._lease_ms, self.settings.max_crashes)
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
        return bool(await self._step(_RENEW, claim.evaluation_id, claim.number, claim.owner, self._lease_ms))

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
        names, keys, table = list(figures(rows[0])), claim.chunk.keys, list[str | float]()
        for row in rows:
            table += [keys[row.id], row.model_dump_json(), *figures(row).values()]
        return int(await self._step(_STORE, claim.evaluation_id, weights, len(names), *names, *table))

    async def judge(self, claim: Claim, verdicts: Mapping[str, bool], *, problem: str) -> int:
        """Keep verdicts on the answers that count, by question id. `problem`: why there are not more; "" if all are.

        Returns how many were new.
        """
        answers, keys, added = await self.answers(claim), claim.chunk.keys, dict[str, dict[str, float]]()
        for question_id, verdict in verdicts.items():
            before = figures(answers[question_id].model_copy(update={"judge": None}))
            after = figures(answers[question_id].model_copy(update={"judge": verdict}))
            added[question_id] = {name: after[name] - before[name] for name in after}
        names = sorted({name for values in added.values() for name, value in values.items() if value})
        table = list[str | float]()
        for question_id, values in added.items():
            table += [keys[question_id], int(verdicts[question_id]), *(values[name] for name in names)]
        return int(await self._step(_JUDGE, claim.evaluation_id, problem, len(names), *names, *table))

    async def finish(self, claim: Claim) -> None:
        """Nothing is left to do for a chunk. Closes the evaluation with its last one."""
        await self._step(_FINISH, claim.evaluation_id, claim.number)

    async def postpone(self, claim: Claim, *, reason: str) -> None:
        """Give a chunk back: who answers is down. Fails the evaluation if that has been so for too long."""
        outage_ms = round(self.settings.outage_seconds * 1000)
        await self._step(_POSTPONE, claim.evaluation_id, claim.number, claim.owner, reason, outage_ms)

    async def fail(self, evaluation_id: str, *, reason: str) -> None:
        """Nothing happens to an evaluation that is closed."""
        await self._step(_FAIL, evaluation_id, reason)

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
        outcome = await self._step(_RESUME, evaluation_id, state, self.settings.max_open, *left)
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
            for part in ("", "chunks", "results", "verdicts", "sums"):
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

    async def _step(self, script: str, evaluation_id: str, *args: str | float) -> Any:
        shared = (INDEX, OPEN, TURNS, WANTED_WEIGHTS["evaluation"])
        keys = [*(_key(evaluation_id, part) for part in _PARTS), *shared]
        return await self._scripts[script](keys=keys, args=[evaluation_id, *args])


def digest(request: EvaluationRequest) -> str:
    """Equal exactly for requests of equal content."""
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()


def _outline(
    request: EvaluationRequest, questions: Mapping[str, Sequence[Question]], indexes: Mapping[str, str]
) -> Outline:
    corpora = sorted(searched_corpora(request.systems, questions))
    return Outline(
        id=request.id,
        title=request.title,
        systems=request.systems,
        plan=request.plan,
        rules=request.rules,
        judge=request.judge,
        weights=request.weights,
        version=request.version,
        corpora=tuple(corpora),
        indexes={name: indexes[name] for name in corpora if name in indexes},
    )


def searched_corpora(systems: Iterable[System], questions: Mapping[str, Sequence[Question]]) -> set[str]:
    if all(system.search is SearchMode.NONE for system in systems):
        return set()
    return {question.corpus for asked in questions.values() for question in asked}


def _cut(systems: Iterable[System], questions: Mapping[str, Sequence[Question]], size: int) -> list[Chunk]:
    return [
        Chunk(system=system.name, benchmark=benchmark, questions=tuple(asked[start : start + size]))
        for system in systems
        for benchmark, asked in questions.items()
        for start in range(0, len(asked), size)
    ]


def _answer_key(system: str, benchmark: str, question_id: str) -> str:
    """Different for everything different: names of systems have no tab, and those of benchmarks have none either."""
    return f"{system}\t{benchmark}\t{question_id}"


def _with_verdict(row: EvaluatedQuestion, verdict: bytes | None) -> EvaluatedQuestion:
    return row if verdict is None else row.model_copy(update={"judge": verdict == b"1"})


_PARTS = ("", "chunks", "pending", "leases", "owners", "sends", "claims", "results", "verdicts", "sums")


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
