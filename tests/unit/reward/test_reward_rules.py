"""Our rule sets: what is paid for, what is a format error, and that nobody gains from tricks."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from searcher.contracts.errors import InvalidInput
from searcher.contracts.score import Score, ScoreItem, TextSegment
from searcher.qa.answer import extract_answer, f1
from searcher.qa.tags import TAGS
from services.reward.engine import score_group
from services.reward.response import END_MARKERS
from services.reward.rules import RULES, rules_named

ASK = "I look it up. <|begin_of_query|> capital of France <|end_of_query|>"
DOCUMENTS = "\n\n<|begin_of_documents|>\n(1)Paris is the capital of France.\n<|end_of_documents|>\n\n"
CONCLUDE = "So it is Paris. </think>\n\n<answer> Paris </answer>"


def item(*texts: str, answers: tuple[str, ...] = ("Paris",), num_searches: int | None = None) -> ScoreItem:
    """Texts alternate: policy, documents, policy, …"""
    segments = [TextSegment(source=("policy", "documents")[at % 2], text=text) for at, text in enumerate(texts)]
    searches = len(texts) // 2 if num_searches is None else num_searches
    return ScoreItem(id="t", question="?", answers=answers, segments=tuple(segments), num_searches=searches)


def score(scored: ScoreItem, rules: str = "searcher") -> Score:
    (only,) = score_group([scored], RULES[rules])
    return only


# ---------------------------------------------------------------------------------------------------------------------
# What is paid for


def test_a_right_answer_in_the_right_format_earns_its_f1() -> None:
    assert score(item(ASK, DOCUMENTS, CONCLUDE)) == Score(
        total=1.0,
        parts={"answer_f1": 1.0, "format": 0.0},
        answer="Paris",
        em=1.0,
        cover_em=1.0,
        f1=1.0,
        format_ok=True,
    )


def test_a_partly_right_answer_earns_part() -> None:
    # predicted: paris france; gold: paris; precision 1/2, recall 1
    assert score(item("x </think><answer>Paris, France</answer>")).total == pytest.approx(2 / 3)


def test_a_format_error_costs_the_answer_and_a_point_but_not_the_metrics() -> None:
    wrong_format = score(item(ASK, DOCUMENTS, CONCLUDE + " I hope this helps."))

    assert (wrong_format.total, wrong_format.parts) == (-1.0, {"answer_f1": 0.0, "format": -1.0})
    assert (wrong_format.format_ok, wrong_format.format_errors) == (False, ("answer_place",))
    assert (wrong_format.answer, wrong_format.em, wrong_format.f1) == ("Paris", 1.0, 1.0)


def test_stage_1_pays_half_for_searching_and_half_for_the_format() -> None:
    totals = {
        "searched, right format": score(item(ASK, DOCUMENTS, CONCLUDE), "searcher-stage1").parts,
        "searched, wrong format": score(item(ASK, DOCUMENTS, "Paris"), "searcher-stage1").parts,
        "guessed, right format": score(item(CONCLUDE), "searcher-stage1").parts,
        "guessed, wrong format": score(item("Paris"), "searcher-stage1").parts,
    }

    assert totals == {
        "searched, right format": {"search": 0.5, "format": 0.5},
        "searched, wrong format": {"search": 0.5, "format": 0.0},
        "guessed, right format": {"search": 0.0, "format": 0.5},
        "guessed, wrong format": {"search": 0.0, "format": 0.0},
    }


def test_stage_1_pays_the_same_for_a_wrong_answer_and_for_more_searches() -> None:
    wrong = CONCLUDE.replace("Paris", "Rome")

    assert score(item(ASK, DOCUMENTS, wrong), "searcher-stage1").total == 1.0
    assert score(item(ASK, DOCUMENTS, ASK, DOCUMENTS, CONCLUDE), "searcher-stage1").total == 1.0


def test_not_answering_is_worse_than_any_answer_in_the_right_format() -> None:
    wrong = score(item("</think><answer>Rome</answer>"))
    silent = [score(item(text)) for text in ("", "</think>", "</think><answer></answer>", "</think><answer> ", ASK)]

    assert wrong.total == 0.0
    assert [s.total for s in silent] == [-1.0] * 5
    assert all(s.answer is None and "no_answer" in s.format_errors for s in silent)
    assert all(s.em == s.cover_em == s.f1 == 0.0 for s in silent)


def test_a_metric_is_the_best_over_all_golds() -> None:
    best = score(item("</think><answer>New York City</answer>", answers=("Gotham", "NYC", "New York")))

    assert (best.em, best.cover_em, best.f1) == (0.0, 1.0, pytest.approx(0.8))


def test_an_accent_may_be_composed_or_not_but_counts() -> None:
    def earned(answer: str, gold: str, rules: str = "searcher") -> float:
        return score(item(f"</think><answer>{answer}</answer>", answers=(gold,)), rules).total

    composed, decomposed = "Beyonc\u00e9", "Beyonce\u0301"
    assert earned(composed, decomposed) == earned(decomposed, composed) == 1.0
    assert earned("Beyonce", composed) == 0.0
    assert earned(composed, decomposed, "r1-searcher-qwen") == 0.0  # as published, byte for byte


@pytest.mark.parametrize(
    ("answer", "gold"), [("東京", "東京"), ("ΑΘΗΝΑ", "αθηνα"), ("Москва!", "москва"), ("naïve", "Naïve"), ("🙂", "🙂")]
)
def test_answers_of_any_script_are_compared(answer: str, gold: str) -> None:
    assert score(item(f"</think><answer>{answer}</answer>", answers=(gold,))).total == 1.0


@pytest.mark.parametrize("rules", ["searcher", "searcher-budget", "searcher-price", "searcher-stage1"])
@pytest.mark.parametrize(
    "faked",
    [
        ASK + DOCUMENTS + CONCLUDE,  # a search and its documents
        "nonsense\nAssistant: <think>" + CONCLUDE,  # a prompt, as if what came before were not its own
        "nonsense<|im_end|>\n<|im_start|>assistant\n<think>" + CONCLUDE,
        "nonsense<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>" + CONCLUDE,
        "\n\nUser:What is Paris?\nAssistant: <think>" + CONCLUDE,
        "<|end_of_documents|>\n\n" + CONCLUDE,  # the end of a document that never began
        "<|begin_of_documents|>\n(1)<answer>Paris</answer>" + CONCLUDE,
    ],
)
def test_a_policy_that_fakes_tags_or_prompts_earns_less_than_one_that_does_not(rules: str, faked: str) -> None:
    assert score(item(faked), rules).total < score(item(CONCLUDE), rules).total


# ---------------------------------------------------------------------------------------------------------------------
# What is a format error


@pytest.mark.parametrize(
    "texts",
    [
        (CONCLUDE,),
        (ASK, DOCUMENTS, CONCLUDE),
        (ASK, DOCUMENTS, ASK + "\n", DOCUMENTS, "Now I know. " + CONCLUDE + "\n"),
        ("</think><answer>Paris</answer>",),
        (CONCLUDE + "<|endoftext|>",),
        (CONCLUDE + "<|im_end|><|endoftext|><|endoftext|>",),
        ("2 < 3, the Assistant: thinks, a user: asks. " + CONCLUDE,),
    ],
)
def test_these_have_the_right_format(texts: tuple[str, ...]) -> None:
    assert score(item(*texts)).format_errors == ()


@pytest.mark.parametrize(
    ("errors", "texts"),
    [
        # the broken endings of a half-trained policy
        (("think_tags", "answer_place"), ("So it is Paris. <answer> Paris </answer>",)),
        (("no_answer", "answer_tags", "answer_place"), ("So. </think>\n\n<answer> Paris",)),
        (("no_answer", "answer_tags", "answer_place"), ("So. </think>\n\nThe answer is Paris.",)),
        (("answer_tags",), (CONCLUDE + " </answer>",)),
        (("think_tags", "answer_place"), ("So. </think> </think>\n\n<answer> Paris </answer>",)),
        (("think_tags",), ("<think> So. </think>\n\n<answer> Paris </answer>",)),
        (("answer_tags",), ("</think><answer>Rome</answer><answer>Paris</answer>",)),
        (("answer_place",), ("<answer>Paris</answer></think>",)),
        (("answer_place",), ("</think> So: <answer>Paris</answer>",)),
        (("answer_place",), ("</think><answer>Paris</answer>.",)),
        # a thought that ends before the search
        (("answer_place",), ("</think>" + ASK, DOCUMENTS, "<answer>Paris</answer>")),
        # an answer inside the turn that asks
        (("answer_place",), ("</think><answer>Paris</answer>" + ASK, DOCUMENTS, "")),
        # queries that are not closed, not opened, doubled, or not the end of their turn
        (("query_tags",), ("<|begin_of_query|> x " + CONCLUDE,)),
        (("query_tags",), ("x <|end_of_query|> " + CONCLUDE,)),
        (("query_tags",), ("<|begin_of_query|> " + ASK, DOCUMENTS, CONCLUDE)),
        (("query_tags",), (ASK + " or so", DOCUMENTS, CONCLUDE)),
        (("query_tags",), (ASK, DOCUMENTS, ASK + CONCLUDE)),
        (("query_tags",), ("<|end_of_query|> x <|begin_of_query|>", DOCUMENTS, CONCLUDE)),
        # documents of its own making
        (("document_tags",), (DOCUMENTS + CONCLUDE,)),
        (("document_tags",), ("<|begin_of_documents|>" + CONCLUDE,)),
        (("query_tags", "document_tags"), (ASK + DOCUMENTS + CONCLUDE,)),
        # a conversation of its own making
        (("fake_prompt",), ("x\nUser:Who wrote Emma?\nAssistant: " + CONCLUDE,)),
        (("fake_prompt",), (ASK, DOCUMENTS, "Assistant: " + CONCLUDE)),
        (("fake_prompt",), ("x\n  User: y " + CONCLUDE,)),
        (("fake_prompt",), ("x <|im_start|>assistant\n" + CONCLUDE,)),
        (("fake_prompt",), ("x <|start_header_id|>user<|end_header_id|> " + CONCLUDE,)),
        (("answer_place", "fake_prompt"), (CONCLUDE + "\nUser:Who wrote Emma?",)),
    ],
)
def test_these_are_format_errors(errors: tuple[str, ...], texts: tuple[str, ...]) -> None:
    scored = score(item(*texts))

    assert (scored.total, scored.format_errors) == (-1.0, errors)


def test_an_answer_may_be_ten_words_long_or_three_times_the_longest_gold() -> None:
    def errors(num_words: int, *golds: str) -> tuple[str, ...]:
        return score(item(f"</think><answer>{'word ' * num_words}</answer>", answers=golds)).format_errors

    assert errors(10, "one") == ()
    assert errors(11, "one") == ("answer_length",)
    assert errors(12, "one", "one two three four") == ()
    assert errors(13, "one", "one two three four") == ("answer_length",)


@given(st.lists(st.text(alphabet="abc ", min_size=1), min_size=1, max_size=40).map(" ".join).filter(str.strip))
def test_the_gold_answer_itself_is_never_too_long(gold: str) -> None:
    assert score(item(f"</think><answer>{gold}</answer>", answers=(gold,))).format_ok


# ---------------------------------------------------------------------------------------------------------------------
# Nobody gains from tricks

fragments = st.sampled_from(
    [
        *TAGS,
        "Paris",
        "Rome ",
        " ",
        "\n",
        "\n\n",
        "\nUser:",
        "\nAssistant: <think>",
        "<ans",
        "wer>",
        "<",
        "(1)Paris",
        *END_MARKERS,
        "<|im_start|>assistant\n<think>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n<think>",
        ASK,
        DOCUMENTS,
        CONCLUDE,
        "</think><answer>Paris</answer>",
    ]
)
anything = st.lists(fragments | st.text(max_size=3), max_size=12).map("".join)
trajectories = st.lists(anything, max_size=7)


@given(trajectories)
def test_no_text_earns_more_than_its_answer_said_plainly(texts: list[str]) -> None:
    said = score(item(*texts))
    plain = score(item(f"</think><answer>{said.answer or 'I do not know'}</answer>"))

    assume(plain.format_ok)  # the answer itself may hold tags
    assert said.total <= plain.total


@given(trajectories)
def test_whatever_is_not_punished_thinks_asks_and_answers_once(texts: list[str]) -> None:
    scored = score(item(*texts))

    assert scored.total in (-1.0, scored.f1) and scored.format_ok == (scored.total >= 0)
    if scored.format_ok:
        own = "".join(texts[::2])
        num_documents = len(texts) // 2
        counts = {tag: own.count(tag) for tag in TAGS}
        assert counts == {
            "<think>": 0,
            "</think>": 1,
            "<answer>": 1,
            "</answer>": 1,
            "<|begin_of_query|>": num_documents,
            "<|end_of_query|>": num_documents,
            "<|begin_of_documents|>": 0,
            "<|end_of_documents|>": 0,
        }
        assert scored.f1 == f1(extract_answer(own) or "", "Paris")


@given(st.data())
def test_a_tag_added_anywhere_to_a_good_response_earns_nothing(data: st.DataObject) -> None:
    texts = [ASK, DOCUMENTS, CONCLUDE.replace("Paris", data.draw(st.sampled_from(["Paris", "Rome"])))]
    before = score(item(*texts)).total
    turn = data.draw(st.sampled_from([0, 2]))
    at = data.draw(st.integers(0, len(texts[turn])))
    texts[turn] = texts[turn][:at] + data.draw(st.sampled_from(TAGS)) + texts[turn][at:]

    after = score(item(*texts)).total

    assert after <= before


@given(trajectories, anything)
def test_retrieved_text_neither_costs_nor_earns_anything(texts: list[str], retrieved: str) -> None:
    other = [retrieved if at % 2 else text for at, text in enumerate(texts)]

    for rules in (rules.name for rules in RULES.values() if not rules.reads_documents):
        assert score(item(*other), rules) == score(item(*texts), rules)


def test_our_rules_read_no_documents_and_the_published_ones_do() -> None:
    assert {name for name, rules in RULES.items() if not rules.reads_documents} == {
        "searcher",
        "searcher-stage1",
        "searcher-budget",
        "searcher-price",
    }


@given(anything, st.data())
def test_where_the_policys_text_is_cut_into_segments_does_not_matter(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    halves = tuple(TextSegment(source="policy", text=half) for half in (text[:at], text[at:]))
    cut = item(text).model_copy(update={"segments": halves})

    for rules in RULES:
        assert score(cut, rules) == score(item(text), rules)


def test_a_tag_cannot_span_documents() -> None:
    assert score(item("</think><ans", DOCUMENTS, "wer>Paris</answer>")).answer is None


def test_stage_1_pays_for_real_searches_only() -> None:
    fake = score(item(ASK + DOCUMENTS + CONCLUDE), "searcher-stage1")

    assert fake.parts == {"search": 0.0, "format": 0.0}


def test_a_page_that_says_assistant_costs_nothing_here_and_two_points_there() -> None:
    page = DOCUMENTS.replace("Paris is", "An assistant professor says that Paris is")

    assert score(item(ASK, page, CONCLUDE), "searcher").total == 1.0
    assert score(item(ASK, page, CONCLUDE), "r1-searcher-qwen").total == -1.0


# ---------------------------------------------------------------------------------------------------------------------
# Every rule set


@pytest.mark.parametrize("rules", RULES)
@given(texts=trajectories)
def test_the_parts_are_those_announced_and_add_up(rules: str, texts: list[str]) -> None:
    scored = score(item(*texts), rules)

    assert scored.total == pytest.approx(sum(scored.parts.values()))
    assert tuple(scored.parts) == RULES[rules].as_contract().parts
    assert scored.format_ok == (scored.format_errors == ())


@pytest.mark.parametrize("rules", RULES)
def test_a_group_is_scored_in_order(rules: str) -> None:
    group = [item("</think><answer>Paris</answer>"), item(""), item("</think><answer>Rome</answer>")]

    scores = score_group(group, RULES[rules])

    assert [s.answer for s in scores] == ["Paris", None, "Rome"]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(
    "piece", [*TAGS, "</s>", "\nUser:", "a ", "<|begin_of_documents|><|end_of_documents|>", "\u4e00"]
)
def test_a_megabyte_of_anything_is_scored(rules: str, piece: str) -> None:
    megabyte = piece * (1_000_000 // len(piece))

    assert score(item(megabyte, megabyte, CONCLUDE), rules).em == 1.0


def test_an_unknown_rule_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"rules: 'f2' is not one of .*searcher, searcher-budget, .*searcher-stage1"):
        rules_named("f2")
