import random

import pytest
import torch

from demo.probe import MAX_SEARCHES, Episode, Player
from demo.tokenizer import train_tokenizer
from demo.transcripts import Library
from demo.world import WorldSize, ask, make_world

QUERY = " I need x. <|begin_of_query|> x <|end_of_query|>"
ANSWER = "So x. </think>\n\n<answer> Halor Cross </answer>"


def episode(*turns: str, ended: bool = True) -> Episode:
    world = make_world("train", WorldSize(people=20, companies=10, towns=10, films=10), seed=0)
    return Episode(ask(world, 1, random.Random(0)), ids=[], turns=list(turns), ended=ended)


def test_thought_searches_and_one_answer_are_well_formed() -> None:
    assert episode(ANSWER).well_formed
    assert episode(QUERY, QUERY, ANSWER).well_formed
    assert episode(QUERY, ANSWER).answer == "Halor Cross"


@pytest.mark.parametrize(
    "turn",
    [
        "So x. <answer> Halor Cross </answer>",
        "So x. </think>\n\n<answer> Halor Cross",
        "So x. </think> </think>\n\n<answer> Halor Cross </answer>",
        "So x. </think>\n\n<answer> Halor Cross </answer> </answer>",
        "<think> So x. </think>\n\n<answer> Halor Cross </answer>",
        "<|end_of_query|> So x. </think>\n\n<answer> Halor Cross </answer>",
        "<|begin_of_documents|> So x. </think>\n\n<answer> Halor Cross </answer>",
    ],
)
def test_a_missing_doubled_or_stray_tag_is_not_well_formed(turn: str) -> None:
    assert not episode(turn).well_formed


def test_a_cut_off_answer_is_not_well_formed() -> None:
    assert not episode(ANSWER, ended=False).well_formed


class AlwaysSearches:
    """Writes one and the same query for ever."""

    def __init__(self, query_ids: list[int]) -> None:
        self.query_ids = query_ids

    def generate(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([self.query_ids] * len(input_ids))], dim=1)


def test_an_endless_searcher_is_stopped_after_its_last_search() -> None:
    tokenizer = train_tokenizer()
    model = AlwaysSearches(tokenizer.encode("<|begin_of_query|> Halin <|end_of_query|>", add_special_tokens=False))
    world = make_world("train", WorldSize(people=40, companies=10, towns=10, films=10), seed=0)
    player = Player(model, tokenizer, Library.of(world), temperature=0)

    (played,) = player.play([ask(world, 1, random.Random(0))])

    assert played.num_searches == MAX_SEARCHES
    assert not played.ended
    assert tokenizer.decode(played.ids).count("<|begin_of_documents|>") == MAX_SEARCHES
