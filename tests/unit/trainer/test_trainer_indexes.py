"""What a run notes of the indexes that it searches."""

import json

import pytest
from trainer_toys import make_recipe

from searcher.contracts.errors import UpstreamUnavailable
from searcher.contracts.search import CorpusInfo, Recall
from services.trainer.indexes import SearchedIndexes
from services.trainer.rundir import RunDirectory


def served(name: str, *, recall: float | None, index: str = "1f00") -> CorpusInfo:
    measured = None if recall is None else Recall(recall=recall, k=10, num_queries=256, queries="questions")
    return CorpusInfo(name=name, kind="pqfs", num_passages=7, index=index, encoder="minilm", recall=measured)


class ToyRetriever:
    def __init__(self, *corpora: CorpusInfo) -> None:
        self.served = corpora

    async def corpora(self) -> tuple[CorpusInfo, ...]:
        if not self.served:
            raise UpstreamUnavailable("retriever did not answer")
        return self.served


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create(make_recipe(tmp_path))
    return directory


def events(run, *names):
    lines = [json.loads(line) for line in run.events_file.read_text().splitlines()] if run.events_file.exists() else []
    return [line for line in lines if line["event"] in names]


async def test_each_index_that_is_searched_is_noted_once(run):
    retriever = ToyRetriever(served("wiki", recall=0.995), served("unused", recall=0.5))
    indexes = SearchedIndexes(run, {"wiki"}, retriever)
    await indexes.note()
    await indexes.note()
    (event,) = events(run, "index", "index_misses_passages")
    assert (event["corpus"], event["kind"], event["index"], event["recall"]["recall"]) == (
        "wiki",
        "pqfs",
        "1f00",
        0.995,
    )
    assert indexes.figures() == {"index/recall": 0.995}


async def test_another_index_in_its_place_is_noted_and_one_that_misses_passages_said(run):
    retriever = ToyRetriever(served("wiki", recall=0.995))
    indexes = SearchedIndexes(run, {"wiki"}, retriever)
    await indexes.note()
    retriever.served = (served("wiki", recall=0.9, index="2f00"),)
    await indexes.note()
    assert [event["index"] for event in events(run, "index")] == ["1f00", "2f00"]
    (warning,) = events(run, "index_misses_passages")
    assert warning["recall"] == 0.9 and "--recall" in warning["advice"]
    assert indexes.figures() == {"index/recall": 0.9}


async def test_the_lowest_recall_is_the_figure_and_words_have_none(run):
    indexes = SearchedIndexes(
        run, {"a", "b", "c"}, ToyRetriever(served("a", recall=1.0), served("b", recall=0.99), served("c", recall=None))
    )
    await indexes.note()
    assert indexes.figures() == {"index/recall": 0.99}


async def test_a_retriever_that_does_not_answer_is_an_event(run):
    indexes = SearchedIndexes(run, {"wiki"}, ToyRetriever())
    await indexes.note()
    assert [event["why"] for event in events(run, "index_unknown")] == ["retriever did not answer"]
    assert indexes.figures() == {}


async def test_without_a_retriever_nothing_is_noted(run):
    await SearchedIndexes(run, {"wiki"}, None).note()
    assert events(run, "index", "index_unknown") == []
