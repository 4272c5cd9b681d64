"""Toys for the trainer's tests: a tiny model, questions, and rollout workers that need no engine."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from searcher.contracts.experience import ScoredGroup
from searcher.contracts.question import Question, QuestionTask
from searcher.contracts.recipe import Recipe
from searcher.contracts.score import Score
from searcher.contracts.search import Passage
from searcher.contracts.trajectory import Search, Segment, Source, StopReason, Trajectory
from searcher.servicekit import streams
from searcher.servicekit.streams import QuestionStream

VOCABULARY = 300


def make_model(folder: Path, *, seed: int = 0) -> Path:
    """A Qwen2 of 32 dimensions and two layers with tied embeddings, as a Hugging Face folder."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def make_questions(file: Path, count: int = 12) -> Path:
    rows = [
        {"id": f"q{n}", "question": f"What is {n}?", "answer": f"number {n}", "hops": 1 + n % 2} for n in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def make_recipe(folder: Path, **changes: Any) -> Recipe:
    """Two questions of two samples a step, on the CPU. `changes` replace fields; `trainer` is merged."""
    model = folder / "model"
    if not model.exists():
        make_model(model)
    questions = folder / "questions.jsonl"
    if not questions.exists():
        make_questions(questions)
    trainer = {
        "learning_rate": 1e-2,
        "max_tokens_per_row": 64,
        "rows_per_micro_batch": 2,
        "zero_stage": 0,
        "device": "cpu",
        **changes.pop("trainer", {}),
    }
    stages = [{"name": "only", "questions": str(questions), "rules": "searcher", "max_steps": 4}]
    fields: dict[str, Any] = {
        "name": "toy",
        "model": {"path": str(model), "dtype": "float32"},
        "rollout": {"template": "bare"},
        "questions_per_step": 2,
        "samples_per_question": 2,
        "stages": stages,
        "trainer": trainer,
        "checkpoint": {"every_steps": 2, "keep": 2},
        **changes,
    }
    return Recipe.model_validate(fields)


def policy(ids: list[int], *, logprob: float = -1.0, step: int = 0, text: str = "think") -> Segment:
    return Segment(
        source=Source.POLICY,
        text=text,
        token_ids=tuple(ids),
        logprobs=(logprob,) * len(ids),
        weight_steps=(step,) * len(ids),
    )


def documents(ids: list[int], *, text: str = "docs") -> Segment:
    zeros = (0.0,) * len(ids)
    return Segment(
        source=Source.DOCUMENTS, text=text, token_ids=tuple(ids), logprobs=zeros, weight_steps=(-1,) * len(ids)
    )


def question(number: int = 0, *, hops: int | None = 1) -> Question:
    return Question(id=f"q{number}", question=f"What is {number}?", answers=("x",), hops=hops)


def score(total: float, *, f1: float = 0.0, format_ok: bool = True) -> Score:
    return Score(total=total, parts={"answer_f1": total}, answer="x", em=0.0, cover_em=0.0, f1=f1, format_ok=format_ok)


def trajectory(
    prompt: list[int],
    segments: list[Segment],
    *,
    reward: float = 0.0,
    name: str = "t",
    asked: Question | None = None,
) -> Trajectory:
    passages = (Passage(id="1", title="A", text="b", score=1.0),)
    num_searches = sum(segment.source is Source.DOCUMENTS for segment in segments)
    return Trajectory(
        id=name,
        question=asked or question(),
        prompt_text="p",
        prompt_ids=tuple(prompt),
        segments=tuple(segments),
        searches=tuple(Search(query="q", passages=passages) for _ in range(num_searches)),
        stop_reason=StopReason.ANSWERED,
        score=score(reward),
    )


def group(trajectories: list[Trajectory], *, group_id: str = "run-s000000-q000-a0") -> ScoredGroup:
    return ScoredGroup(group_id=group_id, run_id="run", stage="only", trajectories=tuple(trajectories))


def fixed_group(task: QuestionTask) -> ScoredGroup:
    """A function of the task's name only: whoever answers, whenever, gives the same experience."""
    chance = random.Random(hashlib.sha256(task.group_id.encode()).digest())
    step = task.min_weights.step if task.min_weights else 0

    def ids(low: int, high: int) -> list[int]:
        return [chance.randrange(1, VOCABULARY) for _ in range(chance.randint(low, high))]

    samples = []
    for number in range(task.num_samples):
        segments = [policy(ids(2, 8), logprob=-5.7, step=step), documents(ids(4, 12))]
        segments.append(policy(ids(2, 8), logprob=-5.7, step=step))
        samples.append(
            trajectory(
                ids(3, 5),
                segments,
                reward=chance.choice([0.0, 0.5, 1.0]),
                name=f"{task.group_id}-{number}",
                asked=task.question,
            )
        )
    return ScoredGroup(group_id=task.group_id, run_id=task.run_id, stage=task.stage, trajectories=tuple(samples))


Answer = Callable[[QuestionTask], ScoredGroup]


async def work(redis: Redis, answer: Answer, stop: asyncio.Event) -> None:
    """A rollout worker: answers the questions of every active run."""
    while not stop.is_set():
        claimed = 0
        for run_id in await streams.active_runs(redis):
            stream = QuestionStream(redis, run_id)
            try:
                await stream.open()
                claims = await stream.claim("toy", count=8, block_ms=20)
                claims += await stream.take_over("toy", lease_ms=5_000, count=8)
            except ResponseError:  # the run ended meanwhile, and its streams with it
                continue
            for claim in claims:
                await stream.deliver(claim, answer(claim.task))
            claimed += len(claims)
        if not claimed:
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def working(redis: Redis, answer: Answer) -> AsyncIterator[None]:
    """A rollout worker at work; if it breaks, so does the test."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work(redis, answer, stop))
        try:
            yield
        finally:
            stop.set()  # not by cancellation: a command of redis-py may swallow it


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again; what never happens ends with the test's own time limit."""
    for _ in itertools.count():
        if condition():
            return
        await asyncio.sleep(0.01)
