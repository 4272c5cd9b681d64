"""Which of a benchmark's questions are asked."""

from pathlib import Path

import pytest

from searcher.contracts.errors import InvalidInput, NotFound
from searcher.contracts.question import Question
from searcher.contracts.report import EvaluationRequest, Sample
from services.evaluator.intake import chosen, sampled

QUESTIONS = tuple(Question(id=f"q{number}", question="?", answers=("yes",)) for number in range(100))


def ids(sample: Sample | None, name: str = "nq") -> list[str]:
    return [question.id for question in sampled(name, QUESTIONS, sample)]


def test_a_sample_is_the_same_for_the_same_seed_and_in_the_files_order() -> None:
    first = ids(Sample(size=10, seed=7))

    assert first == ids(Sample(size=10, seed=7))
    assert len(set(first)) == 10
    assert first == sorted(first, key=lambda name: int(name[1:]))


def test_samples_of_other_seeds_and_benchmarks_are_others() -> None:
    assert len({tuple(ids(Sample(size=10, seed=seed), name)) for seed in (0, 1) for name in ("nq", "popqa")}) == 4


def test_a_sample_larger_than_the_benchmark_is_all_of_it() -> None:
    assert ids(Sample(size=1_000)) == ids(None) == [question.id for question in QUESTIONS]


def test_benchmarks_are_read_from_their_files_and_asked_of_the_requests_corpus(tmp_path: Path) -> None:
    (tmp_path / "bamboogle.jsonl").write_text('{"id": 1, "question": "Who?", "answer": "Ada"}\n')

    found = chosen(EvaluationRequest(id="e", benchmarks=("bamboogle",), corpus="wiki"), tmp_path)

    assert found == {"bamboogle": (Question(id="1", question="Who?", answers=("Ada",), corpus="wiki"),)}


def test_a_missing_file_is_answered_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="curl"):
        chosen(EvaluationRequest(id="e", benchmarks=("nq",)), tmp_path)


def test_an_unknown_benchmark_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'squad' is not one of hotpotqa"):
        chosen(EvaluationRequest(id="e", benchmarks=("squad",)), tmp_path)
