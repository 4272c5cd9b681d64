"""Published figures stand beside ours only where they may."""

import pytest

from services.evaluator.published import SETTINGS, published_rows

HOTPOTQA = {"hotpotqa": 500}
ABSTRACTS = {"hotpotqa": ["hotpotqa-2017-abstracts"]}


def test_the_rows_of_a_benchmark_are_those_of_the_paper() -> None:
    rows = {row.method: row.figures for row in published_rows(HOTPOTQA, corpora=ABSTRACTS, k=5, judge="gpt-4o-mini")}

    assert len(rows) == 30
    assert rows["R1-Searcher, Qwen-2.5-7B"] == {"em": 0.580, "cover_em": 0.654, "f1": 0.719, "judge": 0.750}
    assert rows["R1-Searcher, Llama-3.1-8B"] == {"em": 0.584, "cover_em": 0.648, "f1": 0.706, "judge": 0.746}
    assert rows["Standard RAG, GPT-4o-mini"] == {"cover_em": 0.342, "judge": 0.450}
    assert rows["Skywork-o1, Llama-3.1-8B"] == {"cover_em": 0.306, "judge": 0.256}


@pytest.mark.parametrize(
    ("benchmark", "cover_em", "judge"),
    [("2wikimultihopqa", 0.636, 0.650), ("bamboogle", 0.528, 0.544), ("musique", 0.282, 0.314)],
)
def test_every_benchmark_has_its_own_column(benchmark: str, cover_em: float, judge: float) -> None:
    setting = SETTINGS[benchmark]
    rows = published_rows(
        {benchmark: setting.num_questions}, corpora={benchmark: [setting.corpus]}, k=5, judge="gpt-4o-mini-2024-07-18"
    )

    assert (rows[-1].figures["cover_em"], rows[-1].figures["judge"]) == (cover_em, judge)
    assert all(row.comparable and row.source.startswith("R1-Searcher, arXiv 2503.05592v2, Table 2") for row in rows)


@pytest.mark.parametrize(
    ("num_questions", "corpora", "k", "why_not"),
    [
        (100, ["hotpotqa-2017-abstracts"], 5, "100 questions were asked, the paper's 500 were not"),
        (500, ["default"], 5, "corpus default is not hotpotqa-2017-abstracts (the Wikipedia abstracts of 2017 that "
                              "HotpotQA comes with)"),
        (500, ["hotpotqa-2017-abstracts", "more"], 5, "corpus hotpotqa-2017-abstracts, more is not"),
        (500, [], 5, "corpus unknown is not"),
        (500, ["hotpotqa-2017-abstracts"], 3, "k is 3, published 5"),
        (100, ["default"], 3, "; k is 3, published 5"),
    ],
)  # fmt: skip
def test_where_something_differs_there_is_one_row_without_figures_that_says_what(
    num_questions: int, corpora: list[str], k: int, why_not: str
) -> None:
    (row,) = published_rows({"hotpotqa": num_questions}, corpora={"hotpotqa": corpora}, k=k)

    assert not row.comparable
    assert row.figures == {}
    assert why_not in row.why_not


def test_verdicts_of_another_judge_do_not_stand_beside_the_published_ones() -> None:
    rows = published_rows(HOTPOTQA, corpora=ABSTRACTS, k=5, judge="llama-3")

    assert all("judge" not in row.figures for row in rows)
    assert {row.why_not for row in rows} == {"judge: ours is llama-3, published gpt-4o-mini"}
    assert {row.why_not for row in published_rows(HOTPOTQA, corpora=ABSTRACTS, k=5)} == {""}


def test_nothing_is_published_about_other_benchmarks() -> None:
    assert published_rows({"nq": 3610, "": 5}, corpora={"nq": ["default"]}, k=5) == ()
