"""Full texts -> items: where the prompt ends, which question it asks, and what was retrieved."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import Question
from searcher.qa.tags import TAGS
from services.reward.dropin import KnownQuestions, RewardRequest, items_of, look_up_key, segments_of

QWEN = "Intro, i.e., <answer> final answer here </answer>.\n\nUser:{}\nAssistant: <think>"
LLAMA = (
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>"
)
QUERY, BLOCK = "a <|begin_of_query|> b <|end_of_query|>", "\n\n<|begin_of_documents|>\n(1)c\n<|end_of_documents|>\n\n"


@pytest.fixture
def known(tmp_path: Path) -> KnownQuestions:
    return questions(
        tmp_path, '{"question": "Who wrote Emma?", "answer": "Austen"}', '{"question": "B?", "answer": "b"}'
    )


def questions(folder: Path, *lines: str) -> KnownQuestions:
    file = folder / "questions.jsonl"
    file.write_text("\n".join(lines))
    return KnownQuestions.load(file)


@pytest.mark.parametrize(
    ("question", "key"),
    [
        ("Who wrote “Emma”?", "who wrote emma"),
        ("  U.S.-based\tfirm: A&B (1990) — really？", "u s based firm a b 1990 really"),
        (r"C:\temp_a ~ O’Neill", "c \\temp_a ~ o’neill"),  # backslash, _, ~ and ’ are kept
        ("import os as o\nwhy", "why"),
        ("import os\nwhy", "import os why"),  # the published expression wants an `as`
    ],
)
def test_the_look_up_key_follows_the_published_steps(question: str, key: str) -> None:
    assert look_up_key(question) == key


@pytest.mark.parametrize("prompt", [QWEN, LLAMA])
def test_both_prompts_are_read(known: KnownQuestions, prompt: str) -> None:
    request = RewardRequest(query=(prompt.format("who wrote emma") + QUERY + BLOCK + "d<|im_end|>",))

    (item,) = items_of(request, known)

    assert (item.id, item.question, item.answers, item.num_searches) == ("0", "who wrote emma", ("Austen",), 1)
    assert [(segment.source, segment.text) for segment in item.segments] == [
        ("policy", QUERY),
        ("documents", BLOCK),
        ("policy", "d<|im_end|>"),
    ]


written = st.lists(
    st.sampled_from(
        [*TAGS, QWEN.format("B?"), LLAMA.format("B?"), "\n\nUser:", "\nAssistant: <think>", BLOCK, "x", "\n"]
    ),
    max_size=8,
).map("".join)


@given(written, st.sampled_from([QWEN, LLAMA]))
def test_whatever_the_policy_writes_it_is_asked_the_first_question_and_judged_by_all(text: str, prompt: str) -> None:
    known = KnownQuestions("q", {"who wrote emma": _question("Who wrote Emma?", "Austen"), "b": _question("B?", "b")})

    (item,) = items_of(RewardRequest(query=(prompt.format("Who wrote Emma?") + text,)), known)

    assert item.answers == ("Austen",)
    assert "".join(segment.text for segment in item.segments) == text


def _question(question: str, answer: str) -> Question:
    return Question(id=question, question=question, answers=(answer,))


@given(written)
def test_segments_are_the_response_and_documents_follow_a_query(text: str) -> None:
    segments = segments_of(text)

    assert "".join(segment.text for segment in segments) == text
    for before, segment in pairwise(segments):
        if segment.source == "documents":
            assert before.source == "policy" and before.text.endswith("<|end_of_query|>")


def test_a_block_without_a_query_is_the_policys_own() -> None:
    assert [segment.source for segment in segments_of("a" + BLOCK + "b")] == ["policy"]


def test_a_prompt_that_comes_along_is_where_the_response_begins() -> None:
    request = RewardRequest(query=("P:" + QWEN.format("B?"),), prompts=("P:",), labels=(("x",),))

    (item,) = items_of(request, None)

    assert (item.question, item.answers) == ("P:", ("x",))
    assert "".join(segment.text for segment in item.segments) == QWEN.format("B?")


def test_a_response_of_more_searches_than_can_be_is_scored_all_the_same(known: KnownQuestions) -> None:
    text = (QUERY + BLOCK) * 1_000

    (item,) = items_of(RewardRequest(query=(QWEN.format("B?") + text,)), known)

    assert item.num_searches == 127
    assert "".join(segment.text for segment in item.segments) == text


def test_two_questions_that_read_alike_must_have_one_answer(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="questions '1' and '2' read alike"):
        questions(
            tmp_path, '{"id": 1, "question": "A-B?", "answer": "x"}', '{"id": 2, "question": "a b", "answer": "y"}'
        )

    same = questions(
        tmp_path, '{"id": 1, "question": "A?", "answer": "x"}', '{"id": 2, "question": "a", "answer": "x"}'
    )
    assert len(same.by_key) == 1


@pytest.mark.parametrize(
    "piece",
    ["<|end_of_query|>\n\n<|begin_of_documents|>\n", "<|end_of_documents|>\n\n", "\n\nUser:", QWEN.format("B?")],
)
def test_a_megabyte_of_anything_is_split(known: KnownQuestions, piece: str) -> None:
    text = piece * (1_000_000 // len(piece))

    (item,) = items_of(RewardRequest(query=(QWEN.format("B?") + text,)), known)

    assert item.answers == ("b",) and item.num_searches == 0
