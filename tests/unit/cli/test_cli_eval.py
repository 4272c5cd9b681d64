"""`searcher eval`: what it asks for, and what it says about files and reports without asking anybody."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from searcher.cli import evaluate
from searcher.cli.compare import compare_reports, differences
from searcher.cli.evaluate import EvaluateOptions, metrics_table, request_of
from searcher.cli.main import main
from searcher.cli.score import read, score, split_at_documents
from searcher.clients.evaluator import EvaluatorClient
from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import RolloutPlan, SearchMode
from searcher.contracts.report import POLICY, EvaluatedQuestion, EvaluationState, EvaluationStatus, Report, System
from services.evaluator.statistics import comparisons, system_reports

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command as a terminal runs it: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["searcher", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


# ---------------------------------------------------------------------------------------------------------------------
# eval score

SEARCH = (
    "I look. <|begin_of_query|> crown<|end_of_query|>\n\n<|begin_of_documents|>\n(1)Gold.\n<|end_of_documents|>\n\n"
)
RIGHT = SEARCH + "So.</think>\n\n <answer> Gold </answer>"


def line(**fields: Any) -> dict[str, Any]:
    return {
        "question": "Of what is the crown?",
        "answer": "gold",
        "pred_ans": " Gold ",
        "gen_text_store": RIGHT,
    } | fields


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Right, partly right, wrong with a boolean, and one that gave no answer."""
    rows = [
        line(gpt4o_output="True"),
        line(pred_ans="old gold", gpt4o_output="True"),
        line(answer=True, pred_ans="no", gen_text_store="</think> <answer> no </answer>", gpt4o_output="False"),
        line(pred_ans="", gen_text_store=SEARCH),
    ]
    path = tmp_path / "trajectories.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_is_scored_by_the_published_metrics(run: Run, published: Path) -> None:
    code, out, _ = run("eval", "score", published, "--json")

    (only,) = out.splitlines()
    figures = json.loads(only)
    assert code == 0
    assert figures == {
        "em": 0.25,
        "cover_em": 0.5,
        "cover_em_strict": 0.5,
        "f1": pytest.approx((1 + 2 / 3 + 0 + 0) / 4),
        "n": 4,
        "judge_true": 2,
        "judged": 3,
    }


def test_rules_score_the_whole_response(run: Run, published: Path) -> None:
    _, out, _ = run("eval", "score", published, "--rules", "r1-searcher-qwen", "--json")

    figures = json.loads(out)
    # The last one has no answer and no </think>: 0 - 2. The others' text says "Gold", "Gold" and "no".
    assert figures["reward_mean"] == pytest.approx((1 + 1 + 0 - 2) / 4)
    assert figures["negatives"] == 1


def test_a_gzipped_file_is_read_like_a_plain_one(run: Run, published: Path) -> None:
    zipped = published.with_suffix(".jsonl.gz")
    zipped.write_bytes(gzip.compress(published.read_bytes()))

    assert run("eval", "score", zipped, "--json")[1] == run("eval", "score", published, "--json")[1]


def test_the_table_has_intervals_and_the_parts_of_the_reward(run: Run, published: Path) -> None:
    _, out, _ = run("eval", "score", published, "--rules", "r1-searcher-stage1-code")

    assert "4 trajectories" in out
    assert "judge (2 right of 3 judged)" in out
    for part in ("answer_cover_em", "search", "format", "negative", "95 % interval", " to "):
        assert part in out, part


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"answer": "x", "pred_ans": "x"}, ":2: question: is missing"),
        ({"question": "?", "pred_ans": "x"}, ":2: answers: is missing"),
        ({"question": "?", "answer": "x"}, ":2: pred_ans: is missing, and so is gen_text_store"),
        ({"question": "?", "answer": "x", "pred_ans": ["x"]}, ":2: pred_ans: expected text, got [\"x\"]"),
        ({"question": "?", "answer": "x", "gen_text_store": 5}, ":2: gen_text_store: expected text, got 5"),
        ({"question": "?", "answer": "x", "pred_ans": "x", "gpt4o_output": 1}, ":2: gpt4o_output: expected"),
        ({"question": "?", "answer": {}, "pred_ans": "x"}, ":2: answer: expected text"),
        ("gold", ":2: not JSON"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_file_line_and_field(
    run: Run, published: Path, row: dict[str, Any] | str, complaint: str
) -> None:
    first = published.read_text().splitlines()[0]
    published.write_text(first + "\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n")

    code, _, err = run("eval", "score", published, "--json")

    assert code == 1
    assert f"{published}{complaint}" in err


def test_rules_need_the_response_and_say_so(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": "x", "pred_ans": "x"}) + "\n")

    code, _, err = run("eval", "score", path, "--rules", "searcher")

    assert code == 1
    assert f"{path}:1: gen_text_store: is missing; rules judge the whole response" in err
    assert run("eval", "score", path, "--json")[0] == 0


def test_unknown_rules_are_refused_with_those_there_are(run: Run, published: Path) -> None:
    code, _, err = run("eval", "score", published, "--rules", "r1-searcher-quen")

    assert code == 1
    assert "r1-searcher-quen" in err and "r1-searcher-qwen" in err


def test_an_answer_is_taken_from_the_response_where_the_field_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"question": "?", "answers": ["gold", "Au"], "gen_text_store": RIGHT}) + "\n")

    assert score(read(path), rules=None).em == [1.0]


def test_documents_are_cut_out_where_the_system_put_them() -> None:
    block = "\n\n<|begin_of_documents|>\n(1)a\n<|end_of_documents|>\n\n"
    fake = "<|begin_of_documents|>\nmine<|end_of_documents|>"

    assert split_at_documents(f"x{block}y{block}") == ["x", block, "y", block, ""]
    assert split_at_documents(f"x{fake}y") == [f"x{fake}y"]
    assert split_at_documents(f"x\n\n<|begin_of_documents|>\n{fake}") == [f"x\n\n<|begin_of_documents|>\n{fake}"]


def test_a_megabyte_of_blocks_that_never_close_is_read_once(tmp_path: Path) -> None:
    text = "\n\n<|begin_of_documents|>\n" * 40_000

    assert split_at_documents(text) == [text]


def test_a_file_is_scored_without_any_client_or_network(published: Path) -> None:
    code = (
        "import sys; from searcher.cli.main import app; "
        "app(['eval', 'score', sys.argv[1], '--rules', 'searcher', '--json'], standalone_mode=False); "
        "print([name for name in ('httpx', 'fastapi', 'redis', 'celery', 'matplotlib') if name in sys.modules])"
    )

    outcome = subprocess.run([sys.executable, "-c", code, published], capture_output=True, text=True, check=True)

    assert outcome.stdout.splitlines()[-1] == "[]"


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hotpotqa_qwen", (0.580, 0.654, 0.719, 375, 0.6407, 20)),
        ("hotpotqa_llama", (0.584, 0.648, 0.706, 373, 0.6339, 18)),
    ],
)
def test_published_trajectories_give_the_published_figures(
    run: Run, data_dir: Path, name: str, expected: tuple[float, ...]
) -> None:
    file = data_dir / "r1_searcher" / "trajectories" / f"{name}.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"published trajectories not found at {file}; set SEARCHER_DATA to the folder of r1_searcher/")

    figures = json.loads(run("eval", "score", file, "--rules", "r1-searcher-qwen", "--json")[1])

    rounded = [round(figures[key], 3) for key in ("em", "cover_em", "f1")]
    assert (*rounded, figures["judge_true"], round(figures["reward_mean"], 4), figures["negatives"]) == expected


# ---------------------------------------------------------------------------------------------------------------------
# eval compare


def row(
    number: int, *, system: str = "policy", em: float = 1.0, question: str = "", **fields: Any
) -> EvaluatedQuestion:
    default: dict[str, Any] = {
        "id": str(number),
        "system": system,
        "question": question or f"Who is {number}?",
        "answers": ("x",),
        "hops": None,
        "answer": "x",
        "em": em,
        "cover_em": em,
        "cover_em_strict": em,
        "f1": em,
        "reward": em,
        "format_ok": True,
        "num_searches": 1,
        "queries": (),
        "evidence": None,
        "num_tokens": 5,
        "stop_reason": "answered",
        "response": "",
    }
    return EvaluatedQuestion(**(default | fields))


def report(*rows: EvaluatedQuestion, systems: tuple[System, ...] = (POLICY,), **fields: Any) -> Report:
    default: dict[str, Any] = {
        "id": "r",
        "title": "r",
        "weights": "w",
        "plan": RolloutPlan(temperature=0.0),
        "rules": "searcher",
        "created_at": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "systems": system_reports(systems, rows),
        "comparisons": comparisons(systems, rows),
        "questions": rows,
    }
    return Report(**(default | fields))


def test_reports_are_compared_on_the_questions_they_share() -> None:
    before = report(*(row(i, em=0.0) for i in range(6)))
    after = report(*(row(i) for i in range(1, 9)))

    found = compare_reports(before, after)

    assert [(one.metric, one.num_questions, one.difference) for one in found] == [
        ("em", 5, 1.0),
        ("cover_em", 5, 1.0),
        ("f1", 5, 1.0),
    ]
    assert found[0].p_value == pytest.approx(2 / 2**5)
    assert "Questions differ: 6 and 8; only the 5 that they share count here." in differences(before, after)


def test_the_same_id_with_another_text_is_another_question() -> None:
    before = report(row(1, question="Who?"), row(2))
    after = report(row(1, question="When?"), row(2))

    assert {one.num_questions for one in compare_reports(before, after)} == {1}


def test_reports_without_a_shared_question_are_refused() -> None:
    with pytest.raises(InvalidInput, match="a and b share no questions"):
        compare_reports(report(row(1)), report(row(2)))


def test_systems_of_the_same_name_are_compared_else_the_first_of_each() -> None:
    two = (System(name="policy"), System(name="no search"))
    rows = (row(1), row(1, system="no search"))
    other = report(row(1, system="gpt"), systems=(System(name="gpt"),))

    assert {(one.a, one.b) for one in compare_reports(report(*rows, systems=two), report(*rows, systems=two))} == {
        ("policy", "policy"),
        ("no search", "no search"),
    }
    assert {(one.a, one.b) for one in compare_reports(report(*rows, systems=two), other)} == {("policy", "gpt")}
    with pytest.raises(InvalidInput, match="'no search' is not in b, which has gpt"):
        compare_reports(report(*rows, systems=two), other, system="no search")


def test_whatever_else_differs_is_said() -> None:
    before = report(row(1), corpora={"wiki": "aaaa"})
    after = report(
        row(1), weights="v", corpora={"wiki": "bbbb"}, rules="other",
        plan=RolloutPlan(temperature=0.0, documents_per_search=5),
    )  # fmt: skip

    assert list(differences(before, after)) == [
        "Weights differ: w and v.",
        "Corpora (indexes) differ: wiki (aaaa) and wiki (bbbb).",
        "plan.documents_per_search differs: 3 and 5.",
        "Rules differ: searcher and other; rewards and format rates are two measures then.",
    ]
    assert list(differences(before, before)) == []


def test_two_files_are_compared(run: Run, tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(report(*(row(i, em=0.0) for i in range(5))).model_dump_json())
    b.write_text(report(*(row(i) for i in range(5))).model_dump_json())

    _, table, _ = run("eval", "compare", a, b)
    _, as_json, _ = run("eval", "compare", a, b, "--json")

    assert table.startswith(f"{b}\nagainst {a}, ") and "+1.000" in table and "Nothing else differs" in table
    assert [one["difference"] for one in json.loads(as_json)["comparisons"]] == [1.0, 1.0, 1.0]


def test_a_file_that_is_no_report_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"id": "x"}')

    code, _, err = run("eval", "compare", path, path)

    assert code == 1
    assert f"{path}: is not a report.json: title: " in err
    assert "cannot be read" in run("eval", "compare", tmp_path / "none.json", path)[2]


# ---------------------------------------------------------------------------------------------------------------------
# eval run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EvaluateOptions]:
    seen: list[EvaluateOptions] = []
    monkeypatch.setattr(evaluate, "evaluate", seen.append)
    return seen


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text(
        "".join(json.dumps({"id": str(i), "question": f"Who is {i}?", "answer": "x"}) + "\n" for i in range(5))
    )
    return path


@pytest.mark.parametrize("words", [["eval"], ["eval", "run"]])
def test_a_file_alone_is_evaluated(run: Run, asked: list[EvaluateOptions], questions: Path, words: list[str]) -> None:
    code, _, _ = run(*words, questions, "--n", "2", "--baselines")

    assert code == 0
    assert asked == [EvaluateOptions(questions=questions, limit=2, baselines=True)]


def test_options_may_come_first(run: Run, asked: list[EvaluateOptions]) -> None:
    run(
        "eval",
        "--benchmark",
        "hotpotqa",
        "--benchmark",
        "musique",
        "--sample",
        "100",
        "--seed",
        "7",
        "--judge",
        "-k",
        "5",
    )

    assert asked == [EvaluateOptions(benchmarks=("hotpotqa", "musique"), sample=100, seed=7, judge=True, k=5)]


def test_help_lists_the_commands(run: Run) -> None:
    _, out, _ = run("eval", "--help")

    assert all(command in out for command in ("run", "score", "compare"))


def test_a_request_says_what_the_options_say(tmp_path: Path) -> None:
    request = request_of(
        EvaluateOptions(
            benchmarks=("hotpotqa",), baselines=True, sample=100, seed=3, corpus="wiki", judge=True, k=5, searches=4,
            weights="run-1", rules="r1-searcher-qwen", id="mine", state_dir=tmp_path,
        )
    )  # fmt: skip

    assert (request.id, request.title, request.benchmarks, request.corpus) == (
        "mine",
        "hotpotqa",
        ("hotpotqa",),
        "wiki",
    )
    assert request.sample is not None and (request.sample.size, request.sample.seed) == (100, 3)
    assert [(one.name, one.search) for one in request.systems] == [
        ("policy", SearchMode.MULTI_TURN),
        ("no search", SearchMode.NONE),
        ("one search", SearchMode.ONCE),
    ]
    assert (request.plan.documents_per_search, request.plan.max_searches, request.plan.temperature) == (5, 4, 0.0)
    assert (request.judge, request.weights, request.rules) == (True, "run-1", "r1-searcher-qwen")


def test_a_model_behind_an_api_is_evaluated_with_and_without_search(tmp_path: Path, questions: Path) -> None:
    request = request_of(
        EvaluateOptions(
            questions=questions, model_url="http://127.0.0.1:8010/v1", model="Qwen/Qwen3-8B", baselines=True,
            state_dir=tmp_path,
        )
    )  # fmt: skip

    assert [one.name for one in request.systems] == ["Qwen/Qwen3-8B", "no search", "one search"]
    assert {one.model.base_url for one in request.systems if one.model} == {"http://127.0.0.1:8010/v1"}
    assert len(request.questions) == 5


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (EvaluateOptions(), "either a file of questions or --benchmark"),
        (EvaluateOptions(questions=Path("q"), benchmarks=("x",)), "either a file of questions or --benchmark"),
        (EvaluateOptions(benchmarks=("x",), model="m"), "--model-url and --model belong together"),
        (EvaluateOptions(benchmarks=("x",), limit=3), "for a benchmark use --sample"),
        (EvaluateOptions(benchmarks=("x", "x"), state_dir=Path("/nowhere")), "'x' occurs more than once"),
        (EvaluateOptions(benchmarks=("a b",), state_dir=Path("/nowhere")), "benchmarks"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: EvaluateOptions, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        request_of(options)


class _Evaluator(httpx.AsyncBaseTransport):
    """Says half way once, then done; `interrupted` stands for Ctrl-C while it waits."""

    def __init__(self, report: Report, *, interrupted: bool = False) -> None:
        self.report, self.interrupted, self.asked = report, interrupted, 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/report"):
            page = {"html": "<p>", "md": "# r"}.get(request.url.params.get("format", ""))
            return httpx.Response(200, text=page or self.report.model_dump_json())
        self.asked += 1
        if self.interrupted:
            raise KeyboardInterrupt
        state = EvaluationState.RUNNING if self.asked == 1 else EvaluationState.DONE
        status = EvaluationStatus(
            id="r", state=state, done=self.asked, total=2, eta_seconds=5.0, partial=self.report.overall
        )
        return httpx.Response(200, text=status.model_dump_json())


def _asks(monkeypatch: pytest.MonkeyPatch, transport: _Evaluator) -> None:
    monkeypatch.setattr(evaluate, "_client", lambda _: EvaluatorClient("http://evaluator", transport=transport))


def test_a_report_is_shown_and_written_in_three_forms(
    run: Run, monkeypatch: pytest.MonkeyPatch, questions: Path, tmp_path: Path
) -> None:
    systems = (System(name="policy"), System(name="no search"))
    done = report(row(1), row(1, system="no search", em=0.0), systems=systems, missing=("The judge's verdicts.",))
    _asks(monkeypatch, _Evaluator(done))

    code, out, _ = run("eval", questions, "--baselines", "--out", tmp_path / "out", "--state-dir", tmp_path)

    assert code == 0
    assert Report.model_validate_json((tmp_path / "out" / "report.json").read_text()) == done
    assert (tmp_path / "out" / "report.md").read_text() == "# r"
    assert (tmp_path / "out" / "report.html").read_text() == "<p>"
    for text in ("no search", "policy − no search", "missing: The judge's verdicts.", str(tmp_path / "out")):
        assert text in out, text


def test_ctrl_c_leaves_the_evaluation_going_on_and_says_how_to_see_it_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, questions: Path, tmp_path: Path
) -> None:
    _asks(monkeypatch, _Evaluator(report(row(1)), interrupted=True))

    code, out, _ = run("eval", questions, "--id", "mine", "--state-dir", tmp_path)

    assert code == 130
    assert "The same command with --id mine shows it again." in out


def test_a_report_of_several_systems_has_a_column_for_each() -> None:
    systems = (System(name="policy"), System(name="no search"))

    table = metrics_table(report(row(1), row(1, system="no search", em=0.0), systems=systems))

    assert [column.header for column in table.columns] == ["", "policy", "no search"]
    titles = list(table.columns[0].cells)
    assert titles[:3] == ["questions", "EM", "cover-EM"] and "judge" not in titles  # nobody judged
    assert list(table.columns[2].cells)[1] == "0.000 [dim]0.000–0.975[/]"


def test_a_single_system_has_its_benchmarks_beside_it() -> None:
    table = metrics_table(report(row(1, benchmark="x"), row(2, benchmark="y", em=0.0)))

    assert [column.header for column in table.columns] == ["", "all", "x", "y", "their mean"]
