"""Evaluations as Redis remembers them: written before anything is sent, changed by atomic steps only.

    create -> pending --take_due--> sent --claim--> running --store--> done
                                     ^  lease ran out  |
                                     +-----------------+

Every chunk in flight has a lease: a sent one until a worker claims it, a running one as long as its worker renews it.
A lease that ran out makes the chunk due again, whoever lost it. Answers are kept per question and the first one counts,
so a chunk that is answered twice changes nothing. Leases are measured by the clock of Redis alone.
Sending is left to dispatch.py.
"""

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from searcher.contracts.errors import Conflict, NotFound, Overloaded
from searcher.contracts.report import (
    EvaluatedQuestion,
    EvaluationRequest,
    EvaluationState,
    EvaluationStatus,
    Report,
)
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.statistics import figures, metrics, system_reports

INDEX, OPEN = "evaluations", "evaluations:open"

# Every script gets the same KEYS; `record` and the others are the names it uses.
_PRELUDE = """
local record, chunks, pending, leases = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local owners, sends, claims, results, sums = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local index, open = KEYS[10], KEYS[11]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local state = redis.call('HGET', record, 'state')
local is_open = state == 'queued' or state == 'running'
local function finish(final, reason)
  redis.call('HSET', record, 'state', final, 'finished_ms', now)
  if reason then redis.call('HSET', record, 'error', reason) end
  redis.call('DEL', pending, leases, owners, sends, claims)
end
"""

# ARGV id, digest, num_questions, max_open, chunk 0, chunk 1, …
_CREATE = """
local known = redis.call('HGET', record, 'digest')
if known then return known == ARGV[2] and 'exists' or 'conflict' end
if redis.call('SCARD', open) >= tonumber(ARGV[4]) then return 'full' end
redis.call('HSET', record, 'state', 'queued', 'digest', ARGV[2], 'total', ARGV[3])
redis.call('HSET', record, 'created_ms', now, 'progress_ms', now)
for i = 5, #ARGV do
  redis.call('HSET', chunks, i - 5, ARGV[i])
  redis.call('RPUSH', pending, i - 5)
end
redis.call('ZADD', index, now, ARGV[1])
redis.call('SADD', open, ARGV[1])
return 'created'
"""

# ARGV window, lease_ms. Waiting in a queue is no fault: an unclaimed chunk is sent again at growing intervals.
_TAKE_DUE = """
if not is_open then return {{}, {}} end
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
return {redis.call('HGET', chunks, ARGV[1]), redis.call('HLEN', results)}
"""

# ARGV chunk, owner, lease_ms
_RENEW = """
if not is_open or redis.call('HGET', owners, ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('ZADD', leases, 'XX', now + ARGV[3], ARGV[1])
return 1
"""

# ARGV chunk, weights ('' if no token was sampled), num_figures, names of the figures,
# then per question: id, row, its figures
_STORE = """
if not is_open then return 0 end
if ARGV[2] ~= '' and redis.call('HSETNX', record, 'weights', ARGV[2]) == 0 then
  local before = redis.call('HGET', record, 'weights')
  if before ~= ARGV[2] then
    finish('failed', 'weights changed during the evaluation: from ' .. before .. ' to ' .. ARGV[2])
    return 0
  end
end
local num_figures, stored = tonumber(ARGV[3]), 0
for i = 4 + num_figures, #ARGV, num_figures + 2 do
  if redis.call('HSETNX', results, ARGV[i], ARGV[i + 1]) == 1 then
    stored = stored + 1
    for f = 1, num_figures do redis.call('HINCRBYFLOAT', sums, ARGV[3 + f], ARGV[i + 1 + f]) end
  end
end
redis.call('ZREM', leases, ARGV[1])
for _, key in ipairs({owners, sends, claims}) do redis.call('HDEL', key, ARGV[1]) end
redis.call('HDEL', record, 'down_since_ms', 'outages')
redis.call('HSET', record, 'progress_ms', now)
if redis.call('HLEN', results) == tonumber(redis.call('HGET', record, 'total')) then finish('done') end
return stored
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
    chunk: int
    owner: str
    request: EvaluationRequest
    """The evaluation with this chunk's questions only."""
    num_answered: int
    """Answers that the evaluation had by then."""


class Jobs:
    """All evaluations that Redis remembers."""

    def __init__(self, redis: Redis, settings: EvaluatorSettings) -> None:
        self.redis, self.settings = redis, settings
        self._lease_ms = round(settings.lease_seconds * 1000)
        self._scripts = {
            step: redis.register_script(_PRELUDE + step)
            for step in (_CREATE, _TAKE_DUE, _CLAIM, _RENEW, _STORE, _POSTPONE, _FAIL)
        }

    async def create(self, request: EvaluationRequest) -> None:
        """Remember an evaluation; nothing happens if it is known. Raises Conflict if the id has other content."""
        size, questions = self.settings.chunk_size, request.questions
        parts = [
            request.model_copy(update={"questions": questions[start : start + size]}).model_dump_json()
            for start in range(0, len(questions), size)
        ]
        outcome = await self._step(
            _CREATE, request.id, request.id, digest(request), len(questions), self.settings.max_open, *parts
        )
        if outcome == b"conflict":
            raise Conflict(f"id: evaluation {request.id!r} exists with other content; choose another id")
        if outcome == b"full":
            raise Overloaded(
                f"{self.settings.max_open} evaluations are open (EVALUATOR_MAX_OPEN)", retry_after_seconds=5.0
            )

    async def take_due(self, evaluation_id: str) -> Due:
        """Chunks to send now; their leases start here, so that two callers never send the same ones."""
        again, first = await self._step(_TAKE_DUE, evaluation_id, self.settings.chunks_in_flight, self._lease_ms)
        return Due(again=tuple(map(int, again)), first=tuple(map(int, first)))

    async def claim(self, evaluation_id: str, chunk: int, *, owner: str) -> Claim | None:
        """Take a chunk; None if it is done, closed, or another worker's."""
        answer = await self._step(_CLAIM, evaluation_id, chunk, owner, self._lease_ms, self.settings.max_crashes)
        if answer is None:
            return None
        return Claim(evaluation_id, chunk, owner, EvaluationRequest.model_validate_json(answer[0]), int(answer[1]))

    async def renew(self, claim: Claim) -> bool:
        """Keep the lease. False: it is lost, or the evaluation is closed; stop working on it."""
        return bool(await self._step(_RENEW, claim.evaluation_id, claim.chunk, claim.owner, self._lease_ms))

    async def store(self, claim: Claim, rows: Sequence[EvaluatedQuestion], *, weights: str) -> int:
        """Keep a chunk's answers and close the evaluation with its last one. Returns how many answers were new.

        Answers under other weights than the first ones fail the evaluation: its report would be about no model.
        """
        names = list(figures(rows[0]))
        table: list[str | float] = []
        for row in rows:
            table += [row.id, row.model_dump_json(), *figures(row).values()]
        return int(await self._step(_STORE, claim.evaluation_id, claim.chunk, weights, len(names), *names, *table))

    async def postpone(self, claim: Claim, *, reason: str) -> None:
        """Give a chunk back: rollout is down. Fails the evaluation if it has been down for too long."""
        outage_ms = round(self.settings.outage_seconds * 1000)
        await self._step(_POSTPONE, claim.evaluation_id, claim.chunk, claim.owner, reason, outage_ms)

    async def fail(self, evaluation_id: str, *, reason: str) -> None:
        """Nothing happens to an evaluation that is closed."""
        await self._step(_FAIL, evaluation_id, reason)

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

    async def idle_seconds(self, evaluation_id: str) -> float:
        """Since the newest answer, or since it was asked for."""
        progress = await self.redis.hget(_key(evaluation_id), "progress_ms")
        seconds, _ = await self.redis.time()
        return max(0.0, seconds - float(progress or seconds * 1000) / 1000)

    async def digest(self, evaluation_id: str) -> str:
        value: Any = await self.redis.hget(_key(evaluation_id), "digest")
        if value is None:
            raise _not_found(evaluation_id)
        return str(value.decode())

    async def report(self, evaluation_id: str) -> Report:
        """The report of an evaluation that is done, its questions in the order asked."""
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(_key(evaluation_id))
            pipe.hgetall(_key(evaluation_id, "chunks"))
            pipe.hgetall(_key(evaluation_id, "results"))
            record, chunks, results = await pipe.execute()
        if not record:
            raise _not_found(evaluation_id)
        parts = [EvaluationRequest.model_validate_json(chunks[key]) for key in sorted(chunks, key=int)]
        ids = [question.id for part in parts for question in part.questions]
        rows = tuple(EvaluatedQuestion.model_validate_json(results[name.encode()]) for name in ids)
        created_ms, finished_ms = int(record[b"created_ms"]), int(record[b"finished_ms"])
        return Report(
            id=evaluation_id,
            title=parts[0].title,
            weights=record.get(b"weights", b"").decode(),
            plan=parts[0].plan,
            rules=parts[0].rules,
            created_at=dt.datetime.fromtimestamp(created_ms / 1000, dt.UTC).isoformat(timespec="seconds"),
            seconds=(finished_ms - created_ms) / 1000,
            systems=system_reports(parts[0].systems, rows),
            questions=rows,
        )

    async def close(self, evaluation_id: str) -> None:
        """Nothing is left to do for it; from now on Redis may forget it."""
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.srem(OPEN, evaluation_id)
            for part in ("", "chunks", "results", "sums"):
                pipe.expire(_key(evaluation_id, part), self.settings.keep_seconds)
            await pipe.execute()

    async def _step(self, script: str, evaluation_id: str, *args: str | float) -> Any:
        keys = [*(_key(evaluation_id, part) for part in _PARTS), INDEX, OPEN]
        return await self._scripts[script](keys=keys, args=args)


def digest(request: EvaluationRequest) -> str:
    """Equal exactly for requests of equal content."""
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()


_PARTS = ("", "chunks", "pending", "leases", "owners", "sends", "claims", "results", "sums")


def _key(evaluation_id: str, part: str = "") -> str:
    return f"evaluation:{evaluation_id}:{part}" if part else f"evaluation:{evaluation_id}"


def _status(
    evaluation_id: str, record: dict[bytes, bytes], sums: dict[bytes, bytes], *, now_ms: int
) -> EvaluationStatus:
    state, total = EvaluationState(record[b"state"].decode()), int(record[b"total"])
    values = {name.decode(): float(value) for name, value in sums.items()}
    done = round(values.get("num_questions", 0.0))
    eta_seconds = None
    if state is EvaluationState.RUNNING and done:
        eta_seconds = max(0.0, now_ms - int(record[b"started_ms"])) / 1000 / done * (total - done)
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
