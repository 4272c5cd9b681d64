import random

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from demo.muon import Muon, orthogonalise
from demo.pretrain import Stage, batches_of_a_world, encode, loss_of, new_model
from demo.tokenizer import MIX, train_tokenizer
from demo.transcripts import Segment


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer()


def test_a_text_is_the_start_token_and_its_segments_tokenised_one_by_one(tokenizer: PreTrainedTokenizerBase) -> None:
    # "\n\n" would be one token if the segments were joined first.
    text = [Segment("User:Who\n", taught=False), Segment("\nHalin", taught=True)]

    ((ids, carries_loss),) = encode([text], tokenizer, 0.0, random.Random(0))

    parts = [tokenizer.encode(segment.text, add_special_tokens=False) for segment in text]
    assert ids == [tokenizer.bos_token_id, *parts[0], *parts[1]]
    assert carries_loss == [False] * (1 + len(parts[0])) + [True] * len(parts[1])


def test_the_wanted_share_of_the_given_tokens_carries_loss(tokenizer: PreTrainedTokenizerBase) -> None:
    text = [Segment(" Halin" * 10_000, taught=False)]

    ((ids, carries_loss),) = encode([text], tokenizer, 0.1, random.Random(0))

    assert abs(sum(carries_loss) / len(ids) - 0.1) < 0.02


def test_padding_carries_no_loss(tokenizer: PreTrainedTokenizerBase) -> None:

    for batch in batches_of_a_world(tokenizer, MIX, random.Random(0)):
        # The end token pads too, so only what follows a text's own end is padding.
        ends_BT = batch.ids_BT[:, 1:] == tokenizer.eos_token_id
        padding_BT = ends_BT.int().cumsum(dim=1) > 1
        assert not batch.carries_loss_BT[:, 1:][padding_BT].any()


def test_a_new_model_predicts_a_token_from_no_other_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Attention and MLP start as zero, so the residual stream is the token's own embedding."""
    model = new_model(tokenizer, seed=0).eval()

    logits_BTV = model(input_ids=torch.tensor([[5, 9], [7, 9]])).logits

    torch.testing.assert_close(logits_BTV[0, 1], logits_BTV[1, 1])
    assert 0.9e6 < model.num_parameters() < 1.1e6


def test_the_loss_is_over_the_marked_tokens_only(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = batches_of_a_world(tokenizer, MIX, random.Random(0))[0]
    model = new_model(tokenizer, seed=0)

    logits_BTV = model(input_ids=batch.ids_BT).logits[:, :-1]
    logprobs_BT = logits_BTV.log_softmax(-1).gather(-1, batch.ids_BT[:, 1:, None]).squeeze(-1)

    torch.testing.assert_close(loss_of(model, batch), -logprobs_BT[batch.carries_loss_BT[:, 1:]].mean())


def test_the_learning_rate_warms_up_holds_and_falls() -> None:
    stage = Stage(tokens=1000, warmup_tokens=100, constant_until=0.5, peak=1.0, final=0.2)

    assert stage.learning_rate(0) == 0.01
    assert stage.learning_rate(500) == 1.0
    assert abs(stage.learning_rate(750) - 0.6) < 1e-9
    assert abs(stage.learning_rate(2000) - 0.2) < 1e-9


def test_orthogonalising_brings_every_singular_value_near_one() -> None:
    torch.manual_seed(0)
    matrices_MRC = torch.randn(3, 48, 16)

    values = torch.linalg.svdvals(orthogonalise(matrices_MRC))

    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_muon_step_is_the_same_for_a_matrix_alone_and_among_others() -> None:
    torch.manual_seed(0)
    values, gradients = torch.randn(2, 8, 4), torch.randn(2, 8, 4)

    def stepped(numbers: list[int]) -> torch.Tensor:
        matrices = [torch.nn.Parameter(values[number].clone()) for number in numbers]
        for matrix, number in zip(matrices, numbers, strict=True):
            matrix.grad = gradients[number].clone()
        Muon(matrices, lr=0.1).step()
        return matrices[0].detach()

    torch.testing.assert_close(stepped([0]), stepped([0, 1]))
