import pytest
from trainer_toys import documents, group, policy, question, trajectory

from searcher.contracts.trajectory import StopReason
from services.trainer.figures import batch_figures, num_tokens, report_figures, rewards_of
from services.trainer.loss import LossReport


def two_groups():
    guessed = trajectory([1, 2], [policy([3, 4], step=3)], reward=0.0, asked=question(1, hops=1))
    searched = trajectory(
        [1, 2],
        [policy([3], step=3), documents([5, 6, 7]), policy([8], step=4)],
        reward=1.0,
        asked=question(1, hops=1),
    )
    deep = trajectory(
        [1],
        [policy([3], step=4), documents([5]), policy([8], step=4), documents([6]), policy([9], step=4)],
        reward=0.5,
        asked=question(2, hops=2),
    ).model_copy(update={"stop_reason": StopReason.OUT_OF_TOKENS})
    return [group([guessed, searched]), group([deep, deep])]


def test_the_line_says_what_the_trajectories_were_like() -> None:
    figures = batch_figures(two_groups(), step=4)

    expected = {
        "reward": 0.5,
        "reward_std": 0.25,
        "frac_reward_zero_std": 0.5,
        "rewards/answer_f1/mean": 0.5,
        "completions/mean_length": 2.5,
        "completions/mean_length_with_documents": 4.25,
        "completions/clipped_ratio": 0.5,
        "search_rate": 0.75,
        "format_rate": 1.0,
        "searches_per_question": 1.25,
        "searches_1hop": 0.5,
        "searches_2hop": 2.0,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)


def test_staleness_counts_steps_between_sampling_and_learning_token_by_token() -> None:
    figures = batch_figures(two_groups(), step=4)

    assert figures["staleness/mean"] == pytest.approx(3 / 10)
    assert figures["staleness/max"] == 1


def test_a_hop_count_that_the_data_does_not_name_has_no_figure() -> None:
    one = trajectory([1], [policy([2])], asked=question(1, hops=None))

    figures = batch_figures([group([one, one])], step=0)

    assert not any(name.endswith("hop") for name in figures)


def test_rewards_keep_their_groups() -> None:
    assert rewards_of(two_groups()) == [[0.0, 1.0], [0.5, 0.5]]


def test_every_token_that_goes_through_the_model_counts() -> None:
    assert num_tokens(two_groups()) == (2 + 2) + (2 + 5) + 2 * (1 + 5)


def test_several_updates_of_a_step_are_averaged_and_the_worst_difference_kept() -> None:
    from services.trainer.engine import StepReport

    first = LossReport(1.0, 0.0, 0.5, 0.0, 0.0, 0.01, 0.1, 1.0, 0.0, 10)
    second = LossReport(3.0, 0.2, 0.7, 0.1, 0.0, 0.03, 0.4, 1.2, 0.1, 10)

    figures = report_figures(StepReport((first, second), (1.0, 2.0), 3e-4))

    assert figures["loss"] == 2.0
    assert figures["grad_norm"] == 1.5
    assert figures["clip_ratio/region_mean"] == pytest.approx(0.1)
    assert figures["sampling/sampling_logp_difference/max"] == 0.4
    assert figures["learning_rate"] == 3e-4
