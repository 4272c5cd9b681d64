"""Which questions two files share."""

from itertools import permutations
from pathlib import Path

import pytest

from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import Question
from searcher.overlap import names_a_question, overlap, refuse_overlap, text_key
from searcher.questions import load_questions


def question(question_id: str, text: str) -> Question:
    return Question(id=question_id, question=text, answers=("a",))


def test_a_question_is_recognised_whatever_its_case_punctuation_and_spacing() -> None:
    train = [question("1", "Who is “Žižek's”  wife?"), question("2", "Who is Zizek's wife?")]
    evaluation = [question("9", "who is Žižek s wife")]

    shared = overlap(train, evaluation)

    assert [(each.first.id, each.second.id, each.same) for each in shared] == [("1", "9", "text")]


def test_words_and_their_marks_do_count() -> None:
    assert text_key("Who won in 1999?") != text_key("Who won in 1998?")
    assert text_key("कि?") != text_key("की?")
    assert text_key("Stra\u00dfe") == text_key("STRASSE")
    assert text_key("???") == "???"


def test_a_rewritten_question_is_recognised_by_an_id_that_names_it() -> None:
    train = [question("5a8b57f25542995d1e6f1371", "Who, in other words?"), question("17", "First?")]
    evaluation = [question("5a8b57f25542995d1e6f1371", "Who?"), question("17", "Second?")]

    assert [(each.first.id, each.same) for each in overlap(train, evaluation)] == [("5a8b57f25542995d1e6f1371", "id")]


@pytest.mark.parametrize("position", ["1", "000042", "dev_3", "test-17", "train-q00000", "-5"])
def test_a_position_in_a_file_names_no_question(position: str) -> None:
    assert not names_a_question(position)


@pytest.mark.parametrize("name", ["5a8b57f25542995d1e6f1371", "2hop__150763_14904", "-3290814144789249484", "tc_1_x"])
def test_a_data_sets_own_id_names_a_question(name: str) -> None:
    assert names_a_question(name)


def test_the_refusal_says_how_many_which_and_what_to_do() -> None:
    many = [question(str(number), f"Question {number}?") for number in range(8)]

    refuse_overlap(many, [question("x", "Another?")], what="train.jsonl", against="eval.jsonl", fix="drop them")
    with pytest.raises(InvalidInput) as refused:
        refuse_overlap(many, many, what="train.jsonl", against="eval.jsonl", fix="drop them")

    assert "train.jsonl shares 8 of its questions with eval.jsonl: 0 = 0 'Question 0?'" in str(refused.value)
    assert "and 3 more; drop them" in str(refused.value)


STAGE_1, STAGE_2 = "r1_searcher/training_set/stage_1.jsonl", "r1_searcher/training_set/stage_2.jsonl"
HOTPOTQA, MUSIQUE = "multihop/hotpotqa_questions.jsonl.gz", "multihop/musique_questions.jsonl.gz"
EVALUATIONS = tuple(f"r1_searcher/eval_set/{name}.jsonl" for name in ("hotpotqa_500", "2wiki_500", "musique_500"))
BAMBOOGLE = "r1_searcher/eval_set/bamboogle.jsonl"
KNOWN = {
    (STAGE_1, STAGE_2): 201,
    (STAGE_2, HOTPOTQA): 33,
    (STAGE_1, HOTPOTQA): 1,
    (MUSIQUE, EVALUATIONS[2]): 18,
}
"""Every pair of the files below that shares a question, as counted when the data were put together."""


@pytest.mark.data
def test_the_known_overlaps_of_real_files_are_found_and_no_others(data_dir: Path) -> None:
    files = {
        name: load_questions(data_dir / name) for name in (STAGE_1, STAGE_2, HOTPOTQA, MUSIQUE, *EVALUATIONS, BAMBOOGLE)
    }

    found = {(a, b): len(overlap(files[a], files[b])) for a, b in permutations(files, 2)}

    assert {pair: count for pair, count in found.items() if count} == {
        **KNOWN,
        **{(b, a): count for (a, b), count in KNOWN.items()},
    }
