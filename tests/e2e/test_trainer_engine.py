"""DeepSpeed in this process, on a tiny Qwen2: a step is the step that the formulas say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trainer_toys import VOCABULARY, documents, group, make_recipe, policy, trajectory

from searcher.contracts.experience import ScoredGroup
from searcher.contracts.recipe import Recipe
from services.trainer.advantage import group_advantages
from services.trainer.batch import pack
from services.trainer.engine import StepReport, TrainingEngine
from services.trainer.figures import rewards_of
from services.trainer.logprobs import HeadOnTargets, score
from services.trainer.loss import policy_loss
from services.trainer.processes import Part, Processes

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    alone = Processes(device="cpu")
    yield alone
    alone.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


def experience(seed: int = 0) -> list[ScoredGroup]:
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (count,), generator=generator).tolist()

    def sample(number: int):
        turns = [policy(ids(4), logprob=-5.7), documents(ids(9)), policy(ids(3 + number), logprob=-5.7)]
        return trajectory(ids(3), turns, reward=float(number))

    return [group([sample(number) for number in range(3)]) for _ in range(4)]


def step(engine: TrainingEngine, recipe: Recipe, groups: list[ScoredGroup]) -> StepReport:
    advantages_GS = group_advantages(torch.tensor(rewards_of(groups), dtype=torch.float64), recipe.trainer)
    batch = engine.prepare(pack(groups, advantages_GS, recipe.trainer, part=Part()))
    return engine.step(batch, learning_rate=1e-3)


def trained(
    folder: Path, processes: Processes, *, steps: int = 2, **trainer: Any
) -> tuple[dict[str, Tensor], StepReport]:
    """Weights and the last report after some steps."""
    recipe = make_recipe(folder, trainer=trainer)
    engine = TrainingEngine(recipe, processes)
    for number in range(steps):
        report = step(engine, recipe, experience(number))
    return engine.weights(), report


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def usual(folder: Path, processes: Processes) -> tuple[dict[str, Tensor], StepReport]:
    return trained(folder, processes)


def test_a_step_is_what_plain_pytorch_does(folder: Path, processes: Processes, usual) -> None:
    from transformers import AutoModelForCausalLM

    recipe = make_recipe(folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    head, optimiser = (
        HeadOnTargets(model),
        torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0),
    )
    engine = TrainingEngine(recipe, processes)  # for the whitening only
    for number in range(2):
        groups = experience(number)
        advantages_GS = group_advantages(torch.tensor(rewards_of(groups), dtype=torch.float64), recipe.trainer)
        for micro in engine.prepare(pack(groups, advantages_GS, recipe.trainer, part=Part())).micro_batches:
            scored = score(model, head, micro)
            policy_loss(scored.logprobs_BT, scored.entropies_BT, micro, recipe.trainer)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    by_hand = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert largest_difference(usual[0], by_hand) < 1e-6


@pytest.mark.parametrize(
    "layout",
    [
        {"max_tokens_per_row": 1, "rows_per_micro_batch": 1},
        {"max_tokens_per_row": 400, "rows_per_micro_batch": 3},
        {"gradient_checkpointing": True},
        {"zero_stage": 2},
    ],
    ids=str,
)
def test_rows_micro_batches_and_memory_savers_do_not_change_what_is_learned(
    folder: Path, processes: Processes, usual, layout: dict[str, Any]
) -> None:
    weights, report = trained(folder, processes, **layout)

    assert largest_difference(usual[0], weights) < 2e-5
    assert report.grad_norms == pytest.approx(usual[1].grad_norms, rel=1e-4)
    assert report.updates[0].entropy == pytest.approx(usual[1].updates[0].entropy, rel=1e-5)


def test_the_first_of_several_updates_is_on_policy_and_the_second_is_not(folder: Path, processes: Processes) -> None:
    _, report = trained(folder, processes, steps=1, updates_per_step=2)

    first, second = report.updates
    assert first.policy_kl == pytest.approx(0.0, abs=1e-9)
    assert second.policy_kl > 1e-6


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_divergence_from_the_reference_starts_at_zero_and_is_then_paid_for(
    folder: Path, processes: Processes, kl_in: str
) -> None:
    free, _ = trained(folder, processes, steps=3, kl_coefficient=1e-9, kl_in=kl_in, whiten=False)
    held, report = trained(folder, processes, steps=3, kl_coefficient=10.0, kl_in=kl_in, whiten=False)
    _, first = trained(folder, processes, steps=1, kl_coefficient=10.0, kl_in=kl_in, whiten=False)

    assert first.updates[0].reference_kl == pytest.approx(0.0, abs=1e-9)
    assert report.updates[0].reference_kl > 1e-6
    assert largest_difference(free, held) > 1e-5


def test_grpo_with_sequence_mean_trains(folder: Path, processes: Processes, usual) -> None:
    weights, report = trained(folder, processes, advantage="grpo", loss_mean="sequence")

    assert largest_difference(usual[0], weights) > 1e-5
    assert report.grad_norms[0] > 0


def test_bfloat16_weights_learn_through_their_float32_copy(folder: Path, processes: Processes) -> None:
    model = {"path": str(folder / "model"), "dtype": "bfloat16"}
    recipe = make_recipe(folder, model=model, trainer={"zero_stage": 2})
    engine = TrainingEngine(recipe, processes)
    before = engine.weights()

    for number in range(3):
        step(engine, recipe, experience(number))

    after = engine.weights()
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_what_was_saved_goes_on_bit_for_bit(
    folder: Path, processes: Processes, tmp_path: Path, zero_stage: int
) -> None:
    recipe = make_recipe(folder, trainer={"zero_stage": zero_stage})
    straight = TrainingEngine(recipe, processes)
    step(straight, recipe, experience(0))
    straight.save(tmp_path)
    step(straight, recipe, experience(1))

    resumed = TrainingEngine(recipe, processes)
    resumed.load(tmp_path)
    step(resumed, recipe, experience(1))

    assert largest_difference(straight.weights(), resumed.weights()) == 0.0
