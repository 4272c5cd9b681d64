"""On a real (tiny) Qwen2: what a packed row says equals what each trajectory says alone."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_toys import VOCABULARY, documents, make_model, policy, trajectory

from searcher.contracts.recipe import LossMean, TrainerRecipe
from searcher.contracts.trajectory import Trajectory
from services.trainer.batch import example_of, fill_rows, loss_weights, micro_batch
from services.trainer.logprobs import HeadOnTargets, score
from services.trainer.loss import policy_loss


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    from transformers import AutoModelForCausalLM

    folder: Path = make_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def head(model) -> HeadOnTargets:
    return HeadOnTargets(model)


def sample(seed: int, num_segments: int) -> Trajectory:
    chance = random.Random(seed)

    def ids() -> list[int]:
        return [chance.randrange(1, VOCABULARY) for _ in range(chance.randint(1, 9))]

    return trajectory(ids(), [policy(ids()) if n % 2 == 0 else documents(ids()) for n in range(num_segments)])


def logprobs_alone(model, one: Trajectory) -> list[float]:
    """Of the sampled tokens, by the model's plain forward over this trajectory alone."""
    ids_1T = torch.tensor([[*one.prompt_ids, *one.token_ids]])
    with torch.no_grad():
        logprobs_TV = model(input_ids=ids_1T).logits[0].log_softmax(-1)
    start = len(one.prompt_ids)
    sampled = [start + i for i, mask in enumerate(one.policy_mask) if mask]
    return [float(logprobs_TV[t - 1, ids_1T[0, t]]) for t in sampled]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 5)), min_size=1, max_size=7),
    st.integers(8, 80),
)
def test_a_packed_row_gives_each_trajectory_its_own_logprobs(model, head, drawn, capacity: int) -> None:
    many = [sample(seed, num_segments) for seed, num_segments in drawn]
    examples = [example_of(one, 1.0) for one in many]
    rows = fill_rows([len(example) for example in examples], capacity)

    micro = micro_batch(rows, examples, loss_weights(examples, LossMean.TOKEN))
    with torch.no_grad():
        packed = score(model, head, micro).logprobs_BT[micro.policy_mask_BT].tolist()

    expected = [logprob for row in rows for index in row for logprob in logprobs_alone(model, many[index])]
    assert packed == pytest.approx(expected, abs=1e-5)


def test_the_entropy_is_that_of_the_whole_distribution(model, head) -> None:
    one = trajectory([1, 2], [policy([3])])
    examples = [example_of(one, 1.0)]
    micro = micro_batch([[0]], examples, [1.0])

    with torch.no_grad():
        entropy = float(score(model, head, micro).entropies_BT[0, 1])
        logprobs_V = model(input_ids=torch.tensor([[1, 2, 3]])).logits[0, 1].log_softmax(-1)

    assert entropy == pytest.approx(float(-(logprobs_V.exp() * logprobs_V).sum()), abs=1e-5)


def test_a_temperature_makes_the_policy_another_distribution(model, head) -> None:
    examples = [example_of(trajectory([1, 2], [policy([3])]), 1.0)]
    micro = micro_batch([[0]], examples, [1.0])

    with torch.no_grad():
        cool = float(score(model, head, micro, temperature=0.5).logprobs_BT[0, 1])
        logits_V = model(input_ids=torch.tensor([[1, 2, 3]])).logits[0, 1]

    assert cool == pytest.approx(float((logits_V / 0.5).log_softmax(-1)[3]), abs=1e-5)


def test_every_sampled_token_and_no_other_carries_gradient(model, head) -> None:
    """d loss / d logits, position by position: prompt, think, query | documents | think, answer."""
    one = trajectory([1, 2, 3], [policy([4, 5]), documents([6, 7, 8]), policy([9])])
    examples = [example_of(one, 1.0)]
    micro = micro_batch([[0]], examples, loss_weights(examples, LossMean.TOKEN))
    full = model(input_ids=micro.input_ids_BT).logits
    logits_BTV = full.detach().requires_grad_()
    everywhere = logits_BTV.log_softmax(-1).gather(-1, micro.target_ids_BT.unsqueeze(-1)).squeeze(-1)

    loss, _ = policy_loss(everywhere, torch.zeros_like(everywhere), micro, TrainerRecipe(importance_cap=None))
    loss.backward()

    touched = (logits_BTV.grad.abs().sum(-1) > 0)[0].tolist()
    assert touched == [False, False, True, True, False, False, False, True, False]


def test_a_micro_batch_without_a_trained_token_gives_the_model_a_zero_gradient(model, head) -> None:
    micro = micro_batch([], [], [])

    loss, _ = policy_loss(*_scored(model, head, micro), micro, TrainerRecipe())
    loss.backward()

    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    model.zero_grad()


def _scored(model, head, micro):
    scored = score(model, head, micro)
    return scored.logprobs_BT, scored.entropies_BT
