import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainer_toys import documents, group, policy, trajectory

from searcher.contracts.recipe import LossMean, TrainerRecipe
from services.trainer.batch import Batch, MicroBatch, example_of, fill_rows, loss_weights, micro_batch, pack
from services.trainer.processes import Part

PROMPT, THINK, DOCS, ANSWER = [1, 2], [3, 4], [5, 6, 7], [8]
SEARCHED = trajectory(PROMPT, [policy(THINK, logprob=-0.5), documents(DOCS), policy(ANSWER, logprob=-0.25)])


def one_row(*trajectories, advantage: float = 1.0, mask_documents: bool = True) -> MicroBatch:
    examples = [example_of(one, advantage, mask_documents=mask_documents) for one in trajectories]
    return micro_batch([range(len(examples))], examples, loss_weights(examples, LossMean.TOKEN))


def test_a_position_describes_the_token_after_it() -> None:
    row = one_row(SEARCHED)

    assert row.input_ids_BT.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert row.target_ids_BT.tolist() == [[2, 3, 4, 5, 6, 7, 8, 0]]
    assert row.policy_mask_BT.tolist() == [[False, True, True, False, False, False, True, False]]
    assert row.rollout_logprobs_BT.tolist() == [[0, -0.5, -0.5, 0, 0, 0, -0.25, 0]]


def test_documents_and_prompt_carry_neither_advantage_nor_weight() -> None:
    row = one_row(SEARCHED, advantage=2.0)

    assert row.advantages_BT.tolist() == [[0, 2, 2, 0, 0, 0, 2, 0]]
    assert row.loss_weights_BT[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 0, 0, 0, 1 / 3, 0])


def test_the_ablation_trains_on_documents_but_knows_who_wrote_them() -> None:
    row = one_row(SEARCHED, mask_documents=False)

    assert row.trained_mask_BT.tolist() == [[False, True, True, True, True, True, True, False]]
    assert row.policy_mask_BT.tolist() == [[False, True, True, False, False, False, True, False]]


def test_a_second_trajectory_in_a_row_starts_again_at_position_zero_and_predicts_nothing_across() -> None:
    short = trajectory([9], [policy([10])])

    row = one_row(SEARCHED, short)

    assert row.position_ids_BT.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 0, 1]]
    assert row.target_ids_BT.tolist() == [[2, 3, 4, 5, 6, 7, 8, 0, 10, 0]]
    assert row.policy_mask_BT[0, 7:].tolist() == [False, True, False]


def test_padding_is_never_trained_and_starts_no_attention_block() -> None:
    examples = [example_of(SEARCHED, 1.0), example_of(trajectory([9], [policy([10])]), 1.0)]

    rows = micro_batch([[0], [1]], examples, loss_weights(examples, LossMean.TOKEN))

    assert rows.position_ids_BT[1].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert rows.trained_mask_BT[1].tolist() == [True] + [False] * 7


def test_a_response_without_a_token_trains_nothing() -> None:
    row = one_row(trajectory([1, 2], []))

    assert not row.trained_mask_BT.any()


def test_token_mean_counts_every_token_alike() -> None:
    examples = [example_of(trajectory([1], [policy([2] * 3)]), 0.0), example_of(trajectory([1], [policy([2])]), 0.0)]

    assert loss_weights(examples, LossMean.TOKEN) == [0.25, 0.25]


def test_sequence_mean_counts_every_trajectory_alike() -> None:
    examples = [example_of(trajectory([1], [policy([2] * 3)]), 0.0), example_of(trajectory([1], [policy([2])]), 0.0)]

    assert loss_weights(examples, LossMean.SEQUENCE) == pytest.approx([1 / 6, 1 / 2])


def test_rows_are_filled_first_fit_decreasing() -> None:
    assert fill_rows([3, 5, 2, 4], capacity=7) == [[1, 2], [3, 0]]


def test_a_trajectory_longer_than_a_row_gets_a_row_of_its_own() -> None:
    assert fill_rows([3, 20, 3], capacity=7) == [[1], [0, 2]]


@given(st.lists(st.integers(1, 40), max_size=40), st.integers(1, 60))
def test_every_trajectory_is_in_exactly_one_row_and_no_row_overflows(lengths: list[int], capacity: int) -> None:
    rows = fill_rows(lengths, capacity)

    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[index] for index in row) <= capacity for row in rows)


segments = st.lists(st.tuples(st.booleans(), st.lists(st.integers(1, 99), max_size=5)), max_size=5)
trajectories = st.builds(
    lambda prompt, parts: trajectory(prompt, [policy(ids) if sampled else documents(ids) for sampled, ids in parts]),
    st.lists(st.integers(1, 99), min_size=1, max_size=4),
    segments,
)


def packed(groups, recipe: TrainerRecipe, *, count: int) -> list[Batch]:
    advantages_GS = torch.zeros(len(groups), len(groups[0].trajectories))
    return [pack(groups, advantages_GS, recipe, part=Part(index, count)) for index in range(count)]


@given(
    st.lists(st.lists(trajectories, min_size=2, max_size=2), min_size=1, max_size=4),
    st.integers(1, 30),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_the_mask_is_true_exactly_on_the_sampled_tokens_however_rows_and_processes_share_them(
    drawn, capacity: int, rows: int, count: int
) -> None:
    recipe = TrainerRecipe(max_tokens_per_row=capacity, rows_per_micro_batch=rows)

    parts = packed([group(samples) for samples in drawn], recipe, count=count)

    micros = [micro for part in parts for micro in part.micro_batches]
    found = sorted(token for micro in micros for token in micro.target_ids_BT[micro.policy_mask_BT].tolist())
    sampled = [
        t for samples in drawn for one in samples for t, m in zip(one.token_ids, one.policy_mask, strict=True) if m
    ]
    assert found == sorted(sampled)
    assert len({len(part.micro_batches) for part in parts}) == 1
    total_weight = sum(float(micro.loss_weights_BT.double().sum()) for micro in micros)
    assert total_weight == pytest.approx(1.0 if sampled else 0.0, abs=1e-5)


def test_each_update_of_a_step_has_its_own_questions_and_its_own_mean() -> None:
    groups = [group([trajectory([1], [policy([token])]), trajectory([1], [policy([token])])]) for token in (7, 8)]

    (batch,) = packed(groups, TrainerRecipe(updates_per_step=2), count=1)

    tokens = [[micro.target_ids_BT[micro.policy_mask_BT].tolist() for micro in update] for update in batch.updates]
    assert tokens == [[[7, 7]], [[8, 8]]]
    assert [float(micro.loss_weights_BT.sum()) for micro in batch.micro_batches] == [1.0, 1.0]
