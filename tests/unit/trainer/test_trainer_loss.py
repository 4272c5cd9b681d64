import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from searcher.contracts.recipe import TrainerRecipe
from services.trainer.batch import MicroBatch
from services.trainer.loss import LossReport, policy_loss, report_of

RECIPE = TrainerRecipe()


def tokens(
    mask: list[bool],
    *,
    advantages: list[float] | None = None,
    rollout: list[float] | None = None,
    old: list[float] | None = None,
    reference: list[float] | None = None,
) -> MicroBatch:
    """One row; every sampled token weighs the same."""
    policy_mask_BT = torch.tensor([mask])
    zeros_BT = torch.zeros(1, len(mask))
    return MicroBatch(
        input_ids_BT=zeros_BT.long(),
        position_ids_BT=torch.arange(len(mask)).unsqueeze(0),
        target_ids_BT=zeros_BT.long(),
        policy_mask_BT=policy_mask_BT,
        trained_mask_BT=policy_mask_BT,
        rollout_logprobs_BT=zeros_BT if rollout is None else torch.tensor([rollout]),
        advantages_BT=torch.tensor([advantages or [1.0] * len(mask)]) * policy_mask_BT,
        loss_weights_BT=policy_mask_BT.float() / max(sum(mask), 1),
        old_logprobs_BT=None if old is None else torch.tensor([old]),
        reference_logprobs_BT=None if reference is None else torch.tensor([reference]),
    )


def run(
    logprobs: list[float], batch: MicroBatch, recipe: TrainerRecipe = RECIPE
) -> tuple[float, list[float], LossReport]:
    """Loss, its gradient per token, and the report."""
    logprobs_BT = torch.tensor([logprobs], requires_grad=True)
    loss, sums = policy_loss(logprobs_BT, torch.zeros_like(logprobs_BT), batch, recipe)
    loss.backward()
    gradient: Tensor = logprobs_BT.grad if logprobs_BT.grad is not None else torch.zeros(0)
    return loss.item(), gradient[0].tolist(), report_of(sums.added(), sums.difference_max)


def test_retrieved_tokens_carry_no_gradient() -> None:
    wrote_it = [True, False, True]  # the middle token came from the retriever

    _, gradient, _ = run([-1.0, -1.0, -1.0], tokens(wrote_it, rollout=[-1.0, 0.0, -1.0]))

    assert gradient == [-0.5, 0.0, -0.5]


def test_good_tokens_become_likelier_and_bad_ones_less_likely() -> None:
    _, gradient, _ = run([-1.0, -1.0], tokens([True, True], advantages=[1.0, -1.0], rollout=[-1.0, -1.0]))

    assert gradient == [-0.5, 0.5]


def test_a_token_already_made_much_likelier_is_left_alone() -> None:
    up = math.log(1.5)  # ratio 1.5, beyond 1 + 0.2

    loss, gradient, report = run([up, 0.0], tokens([True, True], old=[0.0, 0.0]))

    assert gradient == [0.0, -0.5]
    assert loss == pytest.approx(-(1.2 + 1.0) / 2)
    assert report.clip_fraction == 0.5


def test_a_bad_token_that_became_likelier_is_not_clipped() -> None:
    up = math.log(1.5)

    loss, gradient, _ = run([up], tokens([True], advantages=[-1.0], old=[0.0]))

    assert loss == pytest.approx(1.5)
    assert gradient == [pytest.approx(1.5)]


def test_clip_higher_gives_unlikely_tokens_more_room() -> None:
    up = math.log(1.25)

    _, gradient, _ = run([up], tokens([True], old=[0.0]), TrainerRecipe(clip_low=0.2, clip_high=0.28))

    assert gradient == [pytest.approx(-1.25)]


def test_without_clips_the_ratio_is_free() -> None:
    loss, _, report = run([math.log(3.0)], tokens([True], old=[0.0]), TrainerRecipe(clip_low=None, clip_high=None))

    assert loss == pytest.approx(-3.0)
    assert report.clip_fraction == 0.0


def test_the_importance_weight_corrects_for_the_engine_and_is_capped() -> None:
    # The trainer finds the tokens 1.5 and 5 times as likely as the engine did.
    rollout = [-math.log(1.5), -math.log(5.0)]

    _, gradient, report = run([0.0, 0.0], tokens([True, True], rollout=rollout))

    assert gradient == [pytest.approx(-0.75), pytest.approx(-1.0)]
    assert report.importance_capped == 0.5
    assert report.importance_mean == pytest.approx((1.5 + 2.0) / 2)


def test_without_a_cap_the_engine_is_taken_at_its_word() -> None:
    _, gradient, report = run([0.0], tokens([True], rollout=[-5.0]), TrainerRecipe(importance_cap=None))

    assert gradient == [-1.0]
    assert report.logprob_difference_max == 5.0


def test_a_trained_document_token_has_no_engine_to_be_compared_with() -> None:
    batch = tokens([False], rollout=[0.0])
    ablation = replace(
        batch,
        trained_mask_BT=torch.tensor([[True]]),
        advantages_BT=torch.tensor([[1.0]]),
        loss_weights_BT=torch.tensor([[1.0]]),
    )

    _, gradient, report = run([-3.0], ablation)

    assert gradient == [-1.0]
    assert report.num_tokens == 0


def test_k3_in_the_loss_pulls_towards_the_reference() -> None:
    recipe = TrainerRecipe(kl_coefficient=0.1, kl_in="loss")
    batch = tokens([True], advantages=[0.0], rollout=[0.0], reference=[-math.log(2.0)])

    loss, gradient, report = run([0.0], batch, recipe)

    k3 = 0.5 + math.log(2.0) - 1.0
    assert loss == pytest.approx(0.1 * k3)
    assert gradient == [pytest.approx(0.1 * (1.0 - 0.5))]
    assert report.reference_kl == pytest.approx(k3)


def test_k1_in_the_reward_leaves_the_loss_alone_but_is_reported() -> None:
    recipe = TrainerRecipe(kl_coefficient=0.1, kl_in="reward")

    loss, _, report = run([0.0], tokens([True], advantages=[0.0], reference=[-math.log(2.0)]), recipe)

    assert loss == 0.0
    assert report.reference_kl > 0


def test_a_batch_without_a_sampled_token_has_a_report_and_no_gradient() -> None:
    loss, gradient, report = run([0.0], tokens([False]))

    assert (loss, gradient) == (0.0, [0.0])
    assert report.num_tokens == 0


def test_the_report_counts_sampled_tokens_only() -> None:
    logprobs_BT = torch.tensor([[-1.0, -2.0, -4.0]])
    entropies_BT = torch.tensor([[0.5, 9.0, 1.5]])
    batch = tokens([True, False, True], rollout=[-1.1, 0.0, -4.3])

    _, sums = policy_loss(logprobs_BT, entropies_BT, batch, RECIPE)
    report = report_of(sums.added(), sums.difference_max)

    assert report.num_tokens == 2
    assert report.entropy == pytest.approx(1.0)
    assert report.logprob_difference_mean == pytest.approx(0.2, rel=1e-4)
    assert report.logprob_difference_max == pytest.approx(0.3, rel=1e-4)
