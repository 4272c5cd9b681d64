import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_toys import documents, policy, trajectory

from searcher.contracts.recipe import Advantage, LossMean, TrainerRecipe
from services.trainer.advantage import group_advantages, penalise_divergence, penalties_to_go, whiten
from services.trainer.batch import Batch, MicroBatch, example_of, loss_weights, micro_batch

BASELINE = TrainerRecipe()
GRPO = TrainerRecipe(advantage=Advantage.GRPO)


def row_of(*pairs) -> MicroBatch:
    """One row of (trajectory, advantage) pairs."""
    examples = [example_of(one, advantage) for one, advantage in pairs]
    return micro_batch([range(len(examples))], examples, loss_weights(examples, LossMean.TOKEN))


def test_the_baseline_is_the_mean_of_the_group() -> None:
    rewards_GS = torch.tensor([[1.0, 0.0, 0.5, 0.5], [2.0, 2.0, 2.0, 2.0]])

    advantages_GS = group_advantages(rewards_GS, BASELINE)

    assert advantages_GS.tolist() == [[0.5, -0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_grpo_divides_by_the_sample_standard_deviation_of_the_group() -> None:
    advantages_GS = group_advantages(torch.tensor([[0.0, 1.0, 2.0]]), GRPO)  # std with Bessel's correction: 1

    assert advantages_GS.tolist() == [pytest.approx([-1.0, 0.0, 1.0])]


def test_grpo_gives_a_group_of_equal_rewards_nothing_to_learn() -> None:
    assert group_advantages(torch.tensor([[0.7, 0.7]]), GRPO).tolist() == [[0.0, 0.0]]


def test_advantages_are_clipped_after_the_baseline_is_taken() -> None:
    advantages_GS = group_advantages(torch.tensor([[30.0, -30.0]]), BASELINE)

    assert advantages_GS.tolist() == [[10.0, -10.0]]


def test_whitening_is_over_tokens_so_long_trajectories_weigh_more() -> None:
    # Three tokens of 1 and one of -1: mean 0.5, variance 0.75.
    long, short = trajectory([1], [policy([2, 3, 4])]), trajectory([1], [policy([5])])
    batch = Batch(((row_of((long, 1.0), (short, -1.0)),),))

    (micro,) = whiten(batch, lambda values: values).micro_batches

    high, low = 0.5 / 0.75**0.5, -1.5 / 0.75**0.5
    assert micro.advantages_BT.tolist() == [pytest.approx([high, high, high, 0, low, 0])]


def test_documents_take_no_part_in_whitening() -> None:
    plain = trajectory([1], [policy([2]), policy([3])])
    searched = trajectory([1], [policy([2]), documents([9] * 5), policy([3])])
    other = trajectory([1], [policy([4, 5])])

    def whitened(first) -> list[float]:
        batch = whiten(Batch(((row_of((first, 1.0), (other, -1.0)),),)), lambda values: values)
        return [x for micro in batch.micro_batches for x in micro.advantages_BT[micro.trained_mask_BT].tolist()]

    assert whitened(plain) == whitened(searched) == [1.0, 1.0, -1.0, -1.0]


def test_whitening_equal_advantages_gives_zeros_not_noise() -> None:
    batch = whiten(Batch(((row_of((trajectory([1], [policy([2, 3])]), 0.0)),),)), lambda values: values)

    assert batch.micro_batches[0].advantages_BT.abs().max() == 0


class TwoProcesses:
    """Two threads that meet to add up."""

    def __init__(self) -> None:
        self.barrier, self.given = threading.Barrier(2, timeout=10), dict[int, torch.Tensor]()

    def run(self, batches: list[Batch]) -> list[Batch]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda n: whiten(batches[n], lambda values: self.total(n, values)), range(2)))

    def total(self, number: int, values: torch.Tensor) -> torch.Tensor:
        self.given[number] = values
        self.barrier.wait()
        added = self.given[0] + self.given[1]
        self.barrier.wait()
        return added


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.floats(-3, 3)), min_size=2, max_size=8), st.data())
def test_whitening_does_not_depend_on_how_processes_share_the_rows(drawn, data) -> None:
    micros = tuple(row_of((trajectory([1], [policy([2] * length)]), advantage)) for length, advantage in drawn)
    cut = data.draw(st.integers(1, len(micros) - 1))

    together = whiten(Batch((micros,)), lambda values: values)
    apart = TwoProcesses().run([Batch((micros[:cut],)), Batch((micros[cut:],))])

    found = [micro for batch in apart for micro in batch.micro_batches]
    for one, other in zip(together.micro_batches, found, strict=True):
        assert torch.allclose(one.advantages_BT, other.advantages_BT, atol=1e-5)


def test_penalties_add_up_from_a_token_to_the_end_of_its_own_trajectory() -> None:
    penalties_BT = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])
    position_ids_BT = torch.tensor([[0, 1, 2, 0, 1]])

    assert penalties_to_go(penalties_BT, position_ids_BT).tolist() == [[7.0, 6.0, 4.0, 24.0, 16.0]]


def test_divergence_on_documents_costs_nothing() -> None:
    #  prompt | A | D | B   targets: A D B –
    row = row_of((trajectory([1], [policy([2]), documents([3]), policy([4])]), 1.0))
    kl_BT = torch.tensor([[0.5, 100.0, 0.25, 100.0]])

    penalised = penalise_divergence(row, kl_BT, coefficient=0.1)

    assert penalised.advantages_BT.tolist() == [pytest.approx([1.0 - 0.1 * 0.75, 0.0, 1.0 - 0.1 * 0.25, 0.0])]
