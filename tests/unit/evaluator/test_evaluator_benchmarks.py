"""Benchmarks by name: which files are looked for, what is said where one is missing or bad."""

import gzip
import json
import os
import shlex
from pathlib import Path

import pytest

from searcher.contracts.errors import InvalidInput
from services.evaluator.benchmarks import BENCHMARKS, available, benchmark_named, load_benchmark


def write(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"question": text, "answer": "a"}) + "\n" for text in texts))


def test_search_r1s_seven_are_known_by_name() -> None:
    assert list(BENCHMARKS) == ["hotpotqa", "2wikimultihopqa", "musique", "bamboogle", "nq", "triviaqa", "popqa"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_file_that_a_benchmark_names_is_found_plain_and_gzipped(tmp_path: Path, name: str) -> None:
    for number, file in enumerate(BENCHMARKS[name].files):
        for suffix in ("", ".gz"):
            folder = tmp_path / f"{number}{suffix}"
            write(folder / file, "Who?")
            if suffix:
                (folder / f"{file}.gz").write_bytes(gzip.compress((folder / file).read_bytes()))
                (folder / file).unlink()

            (question,) = load_benchmark(name, folder)

            assert question.question == "Who?"


def test_the_published_file_is_taken_before_others(tmp_path: Path) -> None:
    write(tmp_path / "hotpot_dev_distractor_v1.json", "All?")
    write(tmp_path / "hotpotqa_500.jsonl.gz", "Some?")

    assert load_benchmark("hotpotqa", tmp_path)[0].question == "Some?"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_file_comes_with_the_command_that_fetches_it_to_where_it_is_looked_for(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "a folder; with signs"

    with pytest.raises(InvalidInput) as refused:
        load_benchmark(name, folder)

    command = shlex.split(str(refused.value).partition("Fetch it: ")[2])
    assert command[0] == "curl"
    assert command[-1] == benchmark_named(name).url
    target = Path(command[command.index("--output") + 1])
    write(target, "Who?")
    assert load_benchmark(name, folder)[0].question == "Who?"


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'hotpot' is not one of hotpotqa, 2wikimultihopqa"):
        load_benchmark("hotpot", tmp_path)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    write(tmp_path / "nq.jsonl", "Old?")
    before = load_benchmark("nq", tmp_path)

    write(tmp_path / "nq.jsonl", "New?")
    os.utime(tmp_path / "nq.jsonl", ns=(1, 1))

    assert [before[0].question, load_benchmark("nq", tmp_path)[0].question] == ["Old?", "New?"]


def test_what_is_there_what_is_not_and_what_is_wrong_is_listed(tmp_path: Path) -> None:
    write(tmp_path / "hotpotqa_500.jsonl", "One?", "Two?")
    write(tmp_path / "popqa.jsonl", "One?")
    (tmp_path / "nq.jsonl").write_text("nothing of the kind")

    facts = {row.name: row for row in available(tmp_path)}

    assert list(facts) == list(BENCHMARKS)
    assert (facts["hotpotqa"].num_questions, facts["hotpotqa"].as_published) == (2, False)
    assert (facts["popqa"].num_questions, facts["popqa"].as_published) == (1, None)
    assert facts["nq"].num_questions is None
    assert "nq.jsonl:1: not JSON" in (facts["nq"].problem or "")
    assert facts["musique"].file is None
    assert facts["musique"].fetch.startswith("curl ")


@pytest.mark.data
def test_the_published_files_are_recognised(data_dir: Path) -> None:
    folder = data_dir / "r1_searcher" / "eval_set"

    facts = {row.name: row for row in available(folder)}

    four = [facts[name] for name in ("hotpotqa", "2wikimultihopqa", "musique", "bamboogle")]
    assert [row.num_questions for row in four] == [500, 500, 500, 125]
    assert all(row.as_published for row in four)
    assert [len(load_benchmark(row.name, folder)) for row in four] == [
        500,
        500,
        500,
        125,
    ]
