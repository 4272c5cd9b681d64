"""Question files: the forms that people have, and how wrong ones are refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import Question
from searcher.questions import balanced_sample, load_questions, rows

R1_SEARCHER = '{"idx": 7, "question": "Who?", "answer": "Me", "gen_text_store": ""}\n'
HOTPOTQA = json.dumps(
    [
        {
            "_id": "5a8b57f25542995d1e6f1371",
            "question": "Who?",
            "answer": "Me",
            "type": "comparison",
            "level": "hard",
            "supporting_facts": [["Page A", 0], ["Page B", 0], ["Page A", 3]],
            "context": [["Page A", ["One."]], ["Page B", ["Two."]]],
        }
    ]
)
TWO_WIKI = json.dumps(
    [
        {
            "_id": "8813f87c0bdd11eba7f7acde48001122",
            "type": "bridge_comparison",
            "question": "Who?",
            "answer": "Me",
            "supporting_facts": [["A", 0], ["B", 0], ["C", 0], ["D", 0]],
            "evidences": [["A", "director", "B"]],
        }
    ],
    indent=1,
)
MUSIQUE = json.dumps(
    {
        "id": "3hop1__1_2_3",
        "question": "Who?",
        "question_decomposition": [{"id": 1}, {"id": 2}, {"id": 3}],
        "answer": "Me",
        "answer_aliases": ["Myself", "Me"],
        "answerable": True,
    }
)
FLASHRAG = json.dumps(
    {
        "id": "dev_3",
        "question": "Who?",
        "golden_answers": ["Me", "I"],
        "metadata": {"type": "bridge", "supporting_facts": {"title": ["A", "B"], "sent_id": [0, 1]}},
    }
)
SEARCH_R1 = json.dumps(
    {
        "id": "test_0",
        "question": "Who?",
        "golden_answers": ["Me"],
        "data_source": "nq",
        "prompt": [{"role": "user", "content": "Answer."}],
        "reward_model": {"ground_truth": {"target": ["Me"]}, "style": "rule"},
    }
)
NQ_OPEN = '{"question": "Who?", "answer": ["Me", "I"]}\n'
POPQA = 'id\tsubj\tquestion\tpossible_answers\n4222362\tSomebody\tWho?\t"[""Me"", ""I""]"\n'
TRIVIAQA = json.dumps(
    {
        "Data": [
            {
                "QuestionId": "tc_1",
                "Question": "Who?",
                "Answer": {"Value": "Me", "Aliases": ["Me", "I", ""], "NormalizedValue": "me", "Type": "FreeForm"},
            }
        ],
        "Domain": "Web",
    },
    indent=1,
)
BAMBOOGLE = 'Question,Answer\n"Who, exactly?",Me\n'
SQUAD = '{"id": "56be", "question": "Who?", "answers": {"text": ["Me", "I"], "answer_start": [3, 5]}}\n'


@pytest.mark.parametrize(
    ("content", "question_id", "answers", "hops"),
    [
        (R1_SEARCHER, "7", ("Me",), None),
        (HOTPOTQA, "5a8b57f25542995d1e6f1371", ("Me",), 2),
        (TWO_WIKI, "8813f87c0bdd11eba7f7acde48001122", ("Me",), 4),
        (MUSIQUE, "3hop1__1_2_3", ("Me", "Myself"), 3),
        (FLASHRAG, "dev_3", ("Me", "I"), 2),
        (SEARCH_R1, "test_0", ("Me",), None),
        (NQ_OPEN, "1", ("Me", "I"), None),
        (POPQA, "4222362", ("Me", "I"), None),
        (TRIVIAQA, "tc_1", ("Me", "I"), None),
        (BAMBOOGLE, "1", ("Me",), None),
        (SQUAD, "56be", ("Me", "I"), None),
        ('{"id": 3, "question": "Is it?", "answer": true}', "3", ("yes",), None),
        ('{"id": 3, "question": "How many?", "answers": [7, 7.5]}', "3", ("7", "7.5"), None),
        ('{"id": "a", "question": "Who?", "answers": ["Me", "I"], "answer": "Me"}', "a", ("Me", "I"), None),
        ('{"id": "a", "question": "Who?", "answer": "[\\"a list?\\"]"}', "a", ('["a list?"]',), None),
    ],
)
def test_the_forms_that_people_have_are_read(
    tmp_path: Path, content: str, question_id: str, answers: tuple[str, ...], hops: int | None
) -> None:
    (tmp_path / "file").write_text(content)

    (question,) = load_questions(tmp_path / "file")

    assert (question.id, question.answers, question.hops) == (question_id, answers, hops)
    assert question.question.startswith(("Who", "Is it", "How"))


def test_gzip_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    lines = [{"idx": 1, "question": "Wer? Ä", "answer": "Me", "hops": 2}, {"id": "b", "question": "Q?", "answer": "x"}]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "plain").write_text(text)
    (tmp_path / "gzipped.jsonl").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "windows").write_bytes(b"\xef\xbb\xbf\r\n" + text.replace("\n", "\r\n\r\n").encode())

    plain = load_questions(tmp_path / "plain", corpus="wiki")

    assert [(q.id, q.hops, q.corpus) for q in plain] == [("1", 2, "wiki"), ("b", None, "wiki")]
    assert load_questions(tmp_path / "gzipped.jsonl", corpus="wiki") == plain
    assert load_questions(tmp_path / "windows", corpus="wiki") == plain
    assert load_questions(tmp_path / "plain", corpus="wiki", limit=1) == plain[:1]


def test_more_answers_than_fit_are_cut_down_to_those_that_differ_for_a_metric(tmp_path: Path) -> None:
    aliases = [f"the {'!' * count}Answer {count % 200}" for count in range(400)]
    (tmp_path / "q").write_text(json.dumps({"question": "Q?", "answer": "Answer 0", "aliases": aliases}))

    (question,) = load_questions(tmp_path / "q")

    assert len(question.answers) == 200
    assert question.answers[0] == "Answer 0"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n  \n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"[]", "holds no questions"),
        (b'{"id": 1, "question": "Q?", "answer": "a"}\n{"id": 2}\n', r":2: question: is missing; the row has 'id'"),
        (b'{"id": 1, "question": "Q?", "answer": "a"}\n{"id": 2, "question": "Q?"}\n', ":2: answers: is missing"),
        (b'{"id": 1, "question": "Q?", "answer": "a"}\nnot json\n', ":2: not JSON"),
        (b'{"id": 1, "question": "Q?", "ans', ":1: not JSON"),
        (b'{"id": 1, "question": "Q?", "answer": "a"}\n["b"]\n', ":2: not a JSON object"),
        (b"[1]\n", "item 1: not a JSON object"),
        (b'[{"question": "Q?", "answer": "a"},\n{"question": "R?"}]', "item 2: answers: is missing"),
        (b'[{"question": "Q?", "answer": "a"},\n{"question" "R?"}]', ":2: not JSON"),
        (b'{"Domain": "Web",\n"Rows": []}', "without a list `Data`"),
        (b'{"question": "Q?", "answer": null}', ":1: answer: expected text or a list of texts, got null"),
        (b'{"question": "Q?", "answer": []}', ":1: answer: is an empty list"),
        (b'{"question": "Q?", "answer": ["a", ["b"]]}', ":1: answer: expected text or a list of texts"),
        (b'{"question": "Q?", "answer": NaN}', ":1: answer: expected text or a list of texts, got NaN"),
        (b'{"question": "Q?", "answer": {"name": "a"}}', ":1: answer: expected text, a list of texts or an object"),
        (b'{"question": "Q?", "answer": " "}', ":1: answer: is blank"),
        (b'{"question": "Q?", "golden_answers": ["a", ""]}', ":1: golden_answers: one of the answers is blank"),
        (b'{"question": "Q?", "answer": "a", "aliases": "b"}', ":1: aliases: expected a list of texts"),
        (b'{"question": "Q?", "possible_answers": "a"}', ":1: possible_answers: expected a JSON list"),
        (b'{"question": ["Q?"], "answer": "a"}', ":1: question: Input should be a valid string"),
        (b'{"question": "  ", "answer": "a"}', ":1: question: is blank"),
        (b'{"question": "Q?", "answer": "a", "hops": "many"}', ":1: hops: "),
        (b'{"question": "Q?", "answer": "a", "hops": 99}', ":1: hops: "),
        (b'{"question": "Q?", "answer": "a", "gold_ids": [1]}', ":1: gold_ids.0: "),
        (b'{"id": {}, "question": "Q?", "answer": "a"}', ":1: id: expected text or a number"),
        (b'{"question": "' + b"x" * 9_000 + b'", "answer": "a"}', ":1: question: String should have at most 8192"),
        (b'{"question": "\\ud800", "answer": "a"}', ":1: question: "),
        (b'{"id": 1, "question": "Q?", "answer": "a"}\n\n{"id": 1, "question": "R?", "answer": "b"}\n', ":3: .*twice"),
        (b"[" * 100_000, ":1: not JSON"),
        ('{"question": "Q?", "answer": "a"}\n'.encode("utf-16"), "not UTF-8 but UTF-16"),
        ('{"question": "Q?", "answer": "a"}\n'.encode("utf-16-le"), "not UTF-8 text: holds NUL"),
        (b'{"question": "Q?", "answer": "a"}\n{"question": "Caf\xe9?", "answer": "a"}\n', r":2: not UTF-8: byte 0xe9"),
        (b"PAR1\x15\x04", "is Parquet"),
        (b"PK\x03\x04\x14", "is a ZIP archive"),
        (gzip.compress(b'{"question": "Q?", "answer": "a"}\n' * 99)[:40], "damaged gzip"),
        (b"name,text\na,b\n", ":1: not JSON, nor a table"),
        (b"Question,Answer\nWho,Me\nWho,Me,too\n", ":3: has 3 columns, the header has 2"),
        (b'Question,Answer\nWho,"Me\n', "not a table"),
    ],
)
def test_a_wrong_file_names_the_line_and_the_field(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "wrong"
    path.write_bytes(content)

    with pytest.raises(InvalidInput, match=says) as refused:
        load_questions(path)

    assert len(str(refused.value)) < 1_000


@pytest.mark.parametrize("path", ["missing.jsonl", "."])
def test_what_cannot_be_opened_says_so(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidInput, match=r"no such file|cannot be read"):
        load_questions(tmp_path / path)


def test_a_line_in_a_quoted_cell_does_not_shift_the_line_that_an_error_names(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('\nQuestion,Answer\n"Who\nis it?",Me\nWho,\n')

    found = list(rows(tmp_path / "q.csv"))

    assert [row.where.rpartition(":")[2] for row in found] == ["4", "5"]
    with pytest.raises(InvalidInput, match=r":5: Answer: is blank"):
        load_questions(tmp_path / "q.csv")


def test_a_sample_is_balanced_over_hop_counts_and_repeatable() -> None:
    questions = [Question(id=str(i), question="?", answers=("a",), hops=1 if i < 90 else 2) for i in range(100)]

    sample = balanced_sample(questions, 16, seed=3)

    assert [sum(q.hops == hops for q in sample) for hops in (1, 2)] == [8, 8]
    assert sample == balanced_sample(questions, 16, seed=3)
    assert len(balanced_sample(questions, 1_000, seed=3)) == 100


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "count", "hops", "most_answers"),
    [
        ("r1_searcher/training_set/stage_1.jsonl", 350, {None}, 1),
        ("r1_searcher/training_set/stage_2.jsonl", 8_148, {None}, 1),
        ("r1_searcher/trajectories/hotpotqa_qwen.jsonl.gz", 500, {None}, 1),
        ("multihop/hotpotqa_questions.jsonl.gz", 600, {2}, 1),
        ("multihop/musique_questions.jsonl.gz", 200, {2, 3, 4}, 6),
        ("singlehop/nq_open_oracle.jsonl.gz", 2_655, {None}, 13),
        ("phantomwiki/u500_questions.jsonl.gz", 2_072, {1, 2, 3, 4, 5, 6, 7, 8}, 256),
    ],
)
def test_real_files_are_read_whole(data_dir: Path, file: str, count: int, hops: set[Any], most_answers: int) -> None:
    questions = load_questions(data_dir / file)

    assert len(questions) == count
    assert {question.hops for question in questions} <= hops
    assert max(len(question.answers) for question in questions) <= most_answers
