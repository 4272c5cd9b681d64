"""The two streams between trainer and rollout, and the announcement of weights, on Redis.

    trainer  --send-->  questions:<run>  --claim-->  rollout  --deliver-->  experience:<run>  --read-->  trainer

A claim is a lease: renewed while its worker lives, taken over by another when it does not. Sending and delivering are
idempotent by group id, and delivering and acknowledging are one atomic step; so however often a question is asked, its
group enters the experience stream once. The trainer reads that stream by position and keeps the position in its
checkpoints; what is behind the newest checkpoint is trimmed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from searcher.contracts.experience import ScoredGroup, pack_group, unpack_group
from searcher.contracts.question import QuestionTask
from searcher.contracts.weights import Purpose, WeightVersion

GROUP = "rollout"
ACTIVE_RUNS = "runs:active"
WANTED_WEIGHTS = {"training": "weights:wanted", "evaluation": "weights:wanted:evaluation"}
"""By purpose: engines that evaluate one version keep it while those of training go on to the next."""
GIVEN_BACK_MS = 24 * 3600 * 1000
"""Idle time of a lease that was given back: longer than any lease."""

# KEYS sent, questions; ARGV group_id, task
_SEND = """
if redis.call('SADD', KEYS[1], ARGV[1]) == 1 then
  redis.call('XADD', KEYS[2], '*', 'task', ARGV[2])
  return 1
end
return 0
"""

# KEYS done, experience, questions; ARGV group_id, consumer group, entry id, meta, tokens
_DELIVER = """
local first = redis.call('SADD', KEYS[1], ARGV[1])
if first == 1 then
  redis.call('XADD', KEYS[2], '*', 'meta', ARGV[4], 'tokens', ARGV[5])
end
redis.call('XACK', KEYS[3], ARGV[2], ARGV[3])
redis.call('XDEL', KEYS[3], ARGV[3])
return first
"""


def connect(redis_url: str) -> Redis:
    """One client per process. Connections are checked when idle and re-opened when Redis restarts."""
    client: Redis = Redis.from_url(redis_url, health_check_interval=15, socket_connect_timeout=5, socket_keepalive=True)
    return client


@dataclass(frozen=True)
class Claim:
    """A question this worker holds the lease of."""

    entry_id: bytes
    task: QuestionTask


class QuestionStream:
    """Questions of one run. The trainer sends; workers claim, renew, take over and deliver."""

    def __init__(self, redis: Redis, run_id: str) -> None:
        self.redis, self.run_id = redis, run_id
        self.key, self.sent, self.done = f"questions:{run_id}", f"questions:{run_id}:sent", f"questions:{run_id}:done"
        self._send = redis.register_script(_SEND)
        self._deliver = redis.register_script(_DELIVER)

    async def open(self) -> None:
        """Create the consumer group; safe to repeat."""
        try:
            await self.redis.xgroup_create(self.key, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def send(self, task: QuestionTask) -> bool:
        """Ask a question. False if this group id was sent before (a resumed trainer repeats itself)."""
        return bool(await self._send(keys=[self.sent, self.key], args=[task.group_id, task.model_dump_json()]))

    async def claim(self, consumer: str, *, count: int, block_ms: int) -> list[Claim]:
        """Up to `count` questions that nobody holds; [] if none came within `block_ms`."""
        entries = await self.redis.xreadgroup(GROUP, consumer, {self.key: ">"}, count=count, block=block_ms)
        return _claims(_rows(entries))

    async def take_over(self, consumer: str, *, lease_ms: int, count: int) -> list[Claim]:
        """Questions whose worker has not renewed its lease for `lease_ms`."""
        _, entries, *_ = await self.redis.xautoclaim(self.key, GROUP, consumer, lease_ms, "0-0", count=count)
        return _claims(entries)

    async def renew(self, consumer: str, entry_ids: Sequence[bytes]) -> None:
        """Reset the idle time of held questions."""
        if entry_ids:
            await self.redis.xclaim(self.key, GROUP, consumer, 0, list(entry_ids), justid=True)

    async def give_back(self, consumer: str, entry_ids: Sequence[bytes]) -> None:
        """Let the leases of held questions expire now, whatever their length."""
        if entry_ids:
            await self.redis.xclaim(self.key, GROUP, consumer, 0, list(entry_ids), idle=GIVEN_BACK_MS, justid=True)

    async def discard(self, claim: Claim) -> None:
        """Give back the lease of a question whose group is delivered already."""
        async with self.redis.pipeline(transaction=True) as pipeline:
            pipeline.xack(self.key, GROUP, claim.entry_id)
            pipeline.xdel(self.key, claim.entry_id)
            await pipeline.execute()

    async def is_delivered(self, group_id: str) -> bool:
        return bool(await self.redis.sismember(self.done, group_id))

    async def deliver(self, claim: Claim, group: ScoredGroup) -> bool:
        """Hand over the group and give back the lease, in one step. False if somebody delivered it before."""
        fields = pack_group(group)
        keys = [self.done, f"experience:{self.run_id}", self.key]
        args: list[str | bytes] = [group.group_id, GROUP, claim.entry_id, fields[b"meta"], fields[b"tokens"]]
        return bool(await self._deliver(keys=keys, args=args))

    async def backlog(self) -> int:
        """Questions sent and not yet delivered."""
        return int(await self.redis.xlen(self.key))


class ExperienceStream:
    """Groups of one run, in the order of delivery. One reader: the trainer."""

    def __init__(self, redis: Redis, run_id: str) -> None:
        self.redis, self.key = redis, f"experience:{run_id}"

    async def read(self, after: str, *, count: int, block_ms: int) -> list[tuple[str, ScoredGroup]]:
        """Entries after the position `after` ("0-0": from the start), each with its own position."""
        answer: Any = await self.redis.xread({self.key: after}, count=count, block=block_ms)
        return [(entry_id.decode(), unpack_group(fields)) for entry_id, fields in _rows(answer)]

    async def trim(self, before: str) -> None:
        """Forget entries older than `before`: a checkpoint holds what was learned from them."""
        await self.redis.xtrim(self.key, minid=before, approximate=False)


async def activate(redis: Redis, run_id: str) -> None:
    """Workers look for questions of active runs only."""
    await redis.sadd(ACTIVE_RUNS, run_id)


async def deactivate(redis: Redis, run_id: str) -> None:
    await redis.srem(ACTIVE_RUNS, run_id)


async def active_runs(redis: Redis) -> list[str]:
    return sorted(_text(run) for run in await redis.smembers(ACTIVE_RUNS))


async def forget(redis: Redis, run_id: str) -> None:
    """Remove a run's streams: it is done, or starts afresh under the same name."""
    questions = QuestionStream(redis, run_id)
    await redis.delete(questions.key, questions.sent, questions.done, f"experience:{run_id}")
    await deactivate(redis, run_id)


async def announce_weights(redis: Redis, version: WeightVersion, *, purpose: Purpose = "training") -> None:
    """From now on engines of that purpose shall hold `version`. Level-triggered: rollout compares when it looks."""
    await redis.set(WANTED_WEIGHTS[purpose], version.model_dump_json())


async def wanted_weights(redis: Redis, *, purpose: Purpose = "training") -> WeightVersion | None:
    """None until somebody has announced some: engines keep the model they were started with."""
    value = await redis.get(WANTED_WEIGHTS[purpose])
    return None if value is None else WeightVersion.model_validate_json(value)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _rows(answer: Any) -> list[Any]:
    """The entries of the one stream asked for: redis-py answers with a dict (RESP3), a list (RESP2) or nothing."""
    if not answer:
        return []
    if isinstance(answer, list):
        rows: list[Any] = answer[0][1]
        return rows
    (rows,) = answer.values()
    return rows[0] if rows and isinstance(rows[0], list) else rows


def _claims(entries: Sequence[Any]) -> list[Claim]:
    return [
        Claim(entry_id, QuestionTask.model_validate_json(fields[b"task"])) for entry_id, fields in entries if fields
    ]
