"""The published rule sets, by hand and against the published model outputs."""

import gzip
import json
import re
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searcher.contracts.score import Score, ScoreItem, TextSegment
from searcher.qa.answer import cover_exact_match, exact_match, f1
from searcher.qa.tags import TAGS
from services.reward.answer_reward import search_r1_answer
from services.reward.engine import score_group
from services.reward.format_reward import published_tag_counts, without_document_blocks
from services.reward.response import Response
from services.reward.rules import RULES

ASK = "Search: <|begin_of_query|> capital of France<|end_of_query|>"
DOCUMENTS = "\n\n<|begin_of_documents|>\n(1)Paris is the capital.\n(2)Rome.\n<|end_of_documents|>\n\n"
CONCLUDE = "It is Paris.</think>\n\n<answer>Paris</answer>"
BLOCK = re.compile(r"(\n\n<\|begin_of_documents\|>\n.*?<\|end_of_documents\|>\n\n)", re.DOTALL)


def item(response: str, answer: str = "Paris") -> ScoreItem:
    """Published trajectories are one text; real documents are told from it by their tags."""
    texts = BLOCK.split(response)
    segments = [TextSegment(source=("policy", "documents")[at % 2], text=text) for at, text in enumerate(texts)]
    searches = len(texts) // 2
    return ScoreItem(id="t", question="?", answers=(answer,), segments=tuple(segments), num_searches=searches)


def score(response: str, rules: str, answer: str = "Paris") -> Score:
    (only,) = score_group([item(response, answer)], RULES[rules])
    return only


# ---------------------------------------------------------------------------------------------------------------------
# By hand

GOOD = ASK + DOCUMENTS + CONCLUDE
UNSEARCHED = CONCLUDE
TWO_ANSWERS = ASK + DOCUMENTS + "</think><answer>Rome</answer><answer>Paris</answer>"
NO_ANSWER = ASK + DOCUMENTS + "It is Paris.</think>"
NO_DOCUMENTS = ASK + "\n\n<|begin_of_documents|>\nNone<|end_of_documents|>\n\n" + CONCLUDE
LONG = ASK + DOCUMENTS + "</think><answer>Paris " + "and so on " * 4 + "</answer>"
CHINESE_PAGE = ASK + DOCUMENTS.replace("Rome", "罗马") + CONCLUDE
CHINESE_THOUGHT = ASK + DOCUMENTS + "巴黎" + CONCLUDE
ASSISTANT_PAGE = ASK + DOCUMENTS.replace("Rome", "Assistants of Rome") + CONCLUDE
QUERY_IN_ANSWER = ASK + DOCUMENTS + "</think><answer>Paris begin_of_query</answer>"


@pytest.mark.parametrize(
    ("response", "total", "errors"),
    [
        (GOOD, 1.0, ()),
        (UNSEARCHED, 1.0, ()),
        (TWO_ANSWERS, 1 - 2, ("answer_tags",)),
        (NO_ANSWER, 0 - 2, ("answer_tags",)),
        (NO_DOCUMENTS, 1 - 2, ("tag_counts",)),  # "None" is not "(1)": the published rule punishes an empty result
        (LONG, 2 / 14 - 2, ("answer_length",)),  # 1 of 13 words: precision 1/13, recall 1
        (CHINESE_PAGE, 1.0, ()),
        (CHINESE_THOUGHT, 1 - 2, ("chinese",)),
        (ASSISTANT_PAGE, 1 - 2, ("assistant",)),
        (QUERY_IN_ANSWER, 2 / 5 - 2, ("search_in_answer",)),  # 1 of 4 words: precision 1/4, recall 1
        ("assistant" + TWO_ANSWERS, 1 - 2, ("answer_tags", "assistant")),  # once, however many
        ("", 0 - 2, ("think_tags", "answer_tags")),
    ],
)
def test_qwen_takes_two_points_off_the_f1_once(response: str, total: float, errors: tuple[str, ...]) -> None:
    scored = score(response, "r1-searcher-qwen")

    assert scored.format_errors == errors
    assert scored.total == pytest.approx(total)


@pytest.mark.parametrize(
    ("response", "total"),
    [
        (GOOD, 1.0),
        (TWO_ANSWERS, 1 - 1),
        (NO_ANSWER, 0 - 1),
        (NO_DOCUMENTS, 1 - 1),
        (LONG, 2 / 14),
        (CHINESE_THOUGHT, 1 - 1),
        (ASSISTANT_PAGE, 1.0),
    ],
)
def test_llama_stage_2_takes_one_point_and_knows_neither_length_nor_assistant(response: str, total: float) -> None:
    assert score(response, "r1-searcher-llama-stage2").total == pytest.approx(total)


@pytest.mark.parametrize(
    ("response", "answer", "search", "format_"),
    [
        (GOOD, 1.0, 0.5, 0.5),
        (UNSEARCHED, 1.0, 0.0, 0.5),
        (NO_ANSWER, -1.0, 0.5, 0.0),
        (TWO_ANSWERS, 1.0, 0.5, 0.0),
        (NO_DOCUMENTS, 1.0, 0.0, 0.5),
        ("<|end_of_query|>" + GOOD, 1.0, 0.0, 0.5),
        (LONG, 1.0, 0.5, 0.5),
        (GOOD.replace("Paris</answer>", "Rome</answer>"), -1.0, 0.5, 0.5),
    ],
)
def test_stage_1_as_coded_pays_for_the_answer_too(response: str, answer: float, search: float, format_: float) -> None:
    parts = score(response, "r1-searcher-stage1-code").parts

    assert parts == {"answer_cover_em": answer, "search": search, "format": format_}


@pytest.mark.parametrize(
    ("response", "search", "format_"),
    [(GOOD, 0.5, 0.5), (UNSEARCHED, 0.0, 0.5), (NO_ANSWER, 0.5, 0.0), (NO_DOCUMENTS, 0.0, 0.5), ("", 0.0, 0.0)],
)
def test_stage_1_of_the_paper_pays_for_searching_and_format_only(response: str, search: float, format_: float) -> None:
    assert score(response, "r1-searcher-stage1-paper").parts == {"search": search, "format": format_}


def test_a_fake_search_is_paid_for_by_the_published_code_but_not_by_the_papers_rule() -> None:
    segments = (TextSegment(source="policy", text=GOOD),)
    fake = ScoreItem(id="t", question="?", answers=("Paris",), segments=segments, num_searches=0)

    (as_coded,) = score_group([fake], RULES["r1-searcher-stage1-code"])
    (as_written,) = score_group([fake], RULES["r1-searcher-stage1-paper"])

    assert (as_coded.parts["search"], as_written.parts["search"]) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("response", "gold", "total"),
    [
        (GOOD, "the Paris!", 1.0),
        (GOOD, "Paris, France", 0.0),
        (NO_ANSWER, "Paris", 0.0),
        (TWO_ANSWERS, "Paris", 1.0),  # the last one counts, and the format neither earns nor costs
        (LONG, "Paris", 0.0),
        ("<answer>US</answer>", "U.S.", 1.0),  # punctuation is deleted; R1-Searcher makes it a space
        ("<answer>well-known</answer>", "well known", 0.0),
        ("<answer>x <answer>Paris</answer>", "Paris", 0.0),  # matches are taken from the left
        ("<answer>x <answer>Paris</answer>", "x <answer>Paris", 1.0),
        ("<answer>Paris</answer> <answer>Rome", "Paris", 1.0),
        ("</answer>Paris<answer>", "Paris", 0.0),
    ],
)
def test_search_r1_pays_for_an_exact_match_of_the_last_answer(response: str, gold: str, total: float) -> None:
    assert score(response, "search-r1-em", gold).parts == {"answer_em": total}


answer_pieces = st.sampled_from(["<answer>", "</answer>", "x", " ", "\n", "<answer"])


@given(st.lists(answer_pieces, max_size=16).map("".join))
def test_search_r1s_answer_is_what_its_published_expression_finds(text: str) -> None:
    found = re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL)

    assert search_r1_answer(text) == (found[-1].strip() if found else None)


def test_the_published_answer_needs_both_tags_in_any_order() -> None:
    backwards = score("</answer></think><answer>Paris", "r1-searcher-qwen")

    assert (backwards.parts, backwards.format_ok) == ({"answer_f1": 1.0, "format": 0.0}, True)
    assert (backwards.answer, backwards.f1) == (None, 0.0)


pieces = st.sampled_from(["<|begin_of_documents|>", "<|end_of_documents|>", "x", "\n", "<|begin_of", "_documents|>"])


tags = st.sampled_from([*TAGS, "\n", "\n\n", "\n(1)", "(1)", "<|", ">", "x", " <answer"])


@given(st.lists(tags, max_size=20).map("".join))
def test_counting_tags_in_one_pass_equals_counting_each(text: str) -> None:
    response = Response(
        ScoreItem(id="t", question="?", answers=("x",), segments=(TextSegment(source="policy", text=text),))
    )
    solution = text.lstrip()

    assert published_tag_counts(response) == (
        solution.count("<|begin_of_documents|>\n"),
        solution.count("<|end_of_documents|>\n\n"),
        solution.count("<|begin_of_query|>"),
        solution.count("<|end_of_query|>"),
        solution.count("<|begin_of_documents|>"),
        solution.count("<|end_of_documents|>"),
        solution.count("<|begin_of_documents|>\n(1)"),
    )
    assert [response.published_tags[tag] for tag in TAGS[:4]] == [solution.count(tag) for tag in TAGS[:4]]


@given(st.lists(pieces, max_size=20).map("".join))
def test_cutting_out_documents_equals_the_published_expression(text: str) -> None:
    published = re.sub(r"<\|begin_of_documents\|>.*?<\|end_of_documents\|>", "", text, flags=re.DOTALL)

    assert without_document_blocks(text) == published


# ---------------------------------------------------------------------------------------------------------------------
# Against the published model outputs


@cache
def published_rows(data_dir: Path, name: str) -> list[dict[str, str]]:
    file = data_dir / "r1_searcher" / "trajectories" / f"{name}.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"published trajectories not found at {file}; set SEARCHER_DATA to the folder of r1_searcher/")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "rules", "mean", "num_negative"),
    [
        ("hotpotqa_qwen", "r1-searcher-qwen", 0.6407, 20),
        ("hotpotqa_qwen", "r1-searcher-llama-stage2", 0.7187, 0),
        ("hotpotqa_qwen", "r1-searcher-stage1-code", 1.3010, 7),
        ("hotpotqa_llama", "r1-searcher-qwen", 0.6339, 18),
        ("hotpotqa_llama", "r1-searcher-llama-stage2", 0.7059, 0),
        ("hotpotqa_llama", "r1-searcher-stage1-code", 1.2960, 0),
    ],
)
def test_rewards_equal_those_of_the_published_servers(
    data_dir: Path, name: str, rules: str, mean: float, num_negative: int
) -> None:
    items = [item(row["gen_text_store"], row["answer"]) for row in published_rows(data_dir, name)]

    totals = [scored.total for scored in score_group(items, RULES[rules])]

    assert len(totals) == 500
    assert round(fmean(totals), 4) == mean
    assert sum(total < 0 for total in totals) == num_negative


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "em", "cover_em", "f1_"), [("hotpotqa_qwen", 0.580, 0.654, 0.719), ("hotpotqa_llama", 0.584, 0.648, 0.706)]
)
def test_metrics_equal_those_of_the_paper(data_dir: Path, name: str, em: float, cover_em: float, f1_: float) -> None:
    rows = published_rows(data_dir, name)

    means = [
        fmean(metric(row["pred_ans"], row["answer"]) for row in rows) for metric in (exact_match, cover_exact_match, f1)
    ]

    assert [round(value, 3) for value in means] == [em, cover_em, f1_]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "answers_more"),
    # The published evaluation does not strip answers, so ` False ` is not "no" there; the published rewards do.
    [("hotpotqa_qwen", {" False "}), ("hotpotqa_llama", set())],
)
def test_our_scores_differ_from_the_papers_metrics_only_where_spaces_hid_a_boolean(
    data_dir: Path, name: str, answers_more: set[str]
) -> None:
    rows = published_rows(data_dir, name)

    scores = score_group([item(row["gen_text_store"], row["answer"]) for row in rows], RULES["searcher"])

    assert {
        row["pred_ans"] for row, s in zip(rows, scores, strict=True) if s.answer != row["pred_ans"].strip()
    } == set()
    assert {
        row["pred_ans"]
        for row, s in zip(rows, scores, strict=True)
        if s.em != exact_match(row["pred_ans"], row["answer"])
    } == answers_more
