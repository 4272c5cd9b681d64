"""The whole loop learns: a toy engine samples from the published weights, and what is rewarded becomes likelier."""

from pathlib import Path
from statistics import fmean

import pytest
import torch
from redis.asyncio import Redis
from trainer_toys import documents, make_recipe, trajectory, until, working

from searcher.contracts.experience import ScoredGroup
from searcher.contracts.question import QuestionTask
from searcher.contracts.run import RunRequest, RunState
from searcher.contracts.trajectory import Segment, Source
from searcher.servicekit.settings import SharedSettings
from services.trainer.controller import Controller
from services.trainer.rundir import RunDirectory
from services.trainer.settings import TrainerSettings

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

LUCKY = range(1, 100)
TURN = 6


class ToyEngine:
    """Samples two turns with documents in between from whatever weights a task asks for. Rewards lucky tokens."""

    def __init__(self, model_path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model_path).eval()
        self.loaded = ""
        self.generator = torch.Generator().manual_seed(0)

    def answer(self, task: QuestionTask) -> ScoredGroup:
        self._load(task)
        assert task.min_weights is not None
        samples = [self._sample(task, f"{task.group_id}-{n}") for n in range(task.num_samples)]
        return ScoredGroup(group_id=task.group_id, run_id=task.run_id, stage=task.stage, trajectories=tuple(samples))

    def _load(self, task: QuestionTask) -> None:
        from safetensors.torch import load_file

        weights = task.min_weights
        assert weights is not None
        if weights.name != self.loaded:
            self.model.load_state_dict(load_file(weights.location.removeprefix("file://")), strict=False)
            self.loaded = weights.name

    @torch.no_grad()
    def _sample(self, task: QuestionTask, name: str):
        assert task.min_weights is not None
        prompt, retrieved = [5, 6, 7], [250, 251, 252, 253]
        context, segments = list(prompt), []
        for turn in range(2):
            ids, logprobs = [], []
            for _ in range(TURN):
                logprobs_V = self.model(input_ids=torch.tensor([context])).logits[0, -1].log_softmax(-1)
                token = int(torch.multinomial(logprobs_V.exp(), 1, generator=self.generator))
                ids.append(token)
                logprobs.append(float(logprobs_V[token]))
                context.append(token)
            steps = (task.min_weights.step,) * TURN
            segments.append(
                Segment(
                    source=Source.POLICY,
                    text="-",
                    token_ids=tuple(ids),
                    logprobs=tuple(logprobs),
                    weight_steps=steps,
                )
            )
            if turn == 0:
                segments.append(documents(retrieved))
                context += retrieved
        sampled = [token for segment in segments if segment.source is Source.POLICY for token in segment.token_ids]
        return trajectory(prompt, segments, reward=fmean(t in LUCKY for t in sampled), name=name, asked=task.question)


async def test_what_is_rewarded_becomes_likelier_and_engine_and_trainer_agree(
    tmp_path: Path, redis: Redis, redis_url: str
) -> None:
    questions = str(tmp_path / "questions.jsonl")
    recipe = make_recipe(
        tmp_path,
        questions_per_step=4,
        samples_per_question=4,
        stages=[{"name": "only", "questions": questions, "rules": "searcher", "max_steps": 20}],
        trainer={"learning_rate": 3e-2},
        checkpoint={"every_steps": 100},
    )
    settings = TrainerSettings(
        runs_dir=tmp_path / "runs", evaluator_url=None, shared=SharedSettings(redis_url=redis_url)
    )
    controller = Controller(settings, redis)
    controller.open()
    try:
        async with working(redis, ToyEngine(tmp_path / "model").answer):
            await controller.start(RunRequest(run_id="lucky", recipe=recipe))
            await until(lambda: controller.status("lucky").state is not RunState.RUNNING)
    finally:
        await controller.close()

    lines = RunDirectory(tmp_path / "runs" / "lucky").metrics()
    assert controller.status("lucky").state is RunState.DONE
    assert fmean(line["reward"] for line in lines[-3:]) > fmean(line["reward"] for line in lines[:3]) + 0.2
    assert all(line["sampling/sampling_logp_difference/max"] < 1e-4 for line in lines)
    assert all(line["staleness/max"] == 0 for line in lines)
    assert all(line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-4) for line in lines)
