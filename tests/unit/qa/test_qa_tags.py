import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searcher.contracts.search import Passage
from searcher.qa.tags import TAGS, asked_query, document_block, without_tags

pieces = st.sampled_from(
    [*TAGS, "<", ">", "<|", "|>", "<ans", "wer>", "</", "think>", "end_of_query|>", " ", "\n", "text"]
)
tagged = st.lists(pieces | st.text(max_size=5), max_size=30).map("".join)


def passage(text: str, title: str = "") -> Passage:
    return Passage(id="1", title=title, text=text, score=1.0)


# ---------------------------------------------------------------------------------------------------------------------
# asked_query


@pytest.mark.parametrize(
    ("turn", "query"),
    [
        ("I look it up. <|begin_of_query|> Iron Crown star <|end_of_query|>", "Iron Crown star"),
        ('<|begin_of_query|> "Iron   Crown"\n"star"<|end_of_query|>', "Iron Crown star"),
        ("<|begin_of_query|> one <|begin_of_query|> two <|end_of_query|>", "two"),
        ("<|begin_of_query|> one <|end_of_query|> <|begin_of_query|> two <|end_of_query|>", "two"),
        ("<|begin_of_query|><|end_of_query|>", ""),
        ('<|begin_of_query|> " " <|end_of_query|>', ""),
        ("<|begin_of_query|> never closed", None),
        ("never opened <|end_of_query|>", None),
        ("closed first <|end_of_query|> then opened <|begin_of_query|> x", None),
        ("no tag at all", None),
    ],
)
def test_the_query_stands_after_the_last_opening_tag_of_a_closed_one(turn: str, query: str | None) -> None:
    assert asked_query(turn) == query


@given(tagged)
def test_a_query_is_clean_whatever_the_turn(turn: str) -> None:
    query = asked_query(f"{turn}<|begin_of_query|>{turn}<|end_of_query|>")

    assert query is not None
    assert '"' not in query and query == " ".join(query.split())


# ---------------------------------------------------------------------------------------------------------------------
# document_block


def test_passages_are_numbered_in_the_published_form() -> None:
    block = document_block([passage("Born in Ulm.", title="Albert Einstein"), passage("A city.")])

    assert block == (
        "\n\n<|begin_of_documents|>\n(1)Title: Albert Einstein. Born in Ulm.\n(2)A city.\n<|end_of_documents|>\n\n"
    )


def test_no_passages_are_the_literal_none() -> None:
    assert document_block([]) == "\n\n<|begin_of_documents|>\nNone<|end_of_documents|>\n\n"


@given(st.lists(st.tuples(tagged, tagged), max_size=4))
def test_retrieved_text_cannot_leave_its_block(texts: list[tuple[str, str]]) -> None:
    block = document_block([passage(text, title) for title, text in texts])

    assert block.startswith("\n\n<|begin_of_documents|>\n") and block.endswith("<|end_of_documents|>\n\n")
    assert [block.count(tag) for tag in TAGS] == [0, 0, 0, 0, 0, 0, 1, 1]
    assert len(re.findall(r"^\(\d\)", block, re.MULTILINE)) == block.count("\n") - 5 == len(texts) or not texts


# ---------------------------------------------------------------------------------------------------------------------
# without_tags


@given(tagged)
def test_no_tag_and_no_line_break_survives(text: str) -> None:
    cleaned = without_tags(text)

    assert not any(tag in cleaned for tag in TAGS) and "\n" not in cleaned


@given(st.text().filter(lambda text: not any(tag in text for tag in TAGS)))
def test_text_without_tags_is_only_put_on_one_line(text: str) -> None:
    assert without_tags(text) == text.replace("\n", " ")


@given(tagged)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert without_tags(without_tags(text)) == without_tags(text)


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_inside_a_tag_leaves_nothing_behind(tag: str) -> None:
    assert without_tags(f"a {tag[:3]}{tag}{tag[3:]} b") == "a  b"


def test_a_hundred_thousand_nested_tags_are_removed_in_one_pass() -> None:
    depth = 100_000

    assert without_tags("<ans" * depth + "wer>" * depth) == ""
