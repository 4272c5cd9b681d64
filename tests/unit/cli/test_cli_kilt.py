import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from searcher.cli.kilt import split
from searcher.cli.main import main
from searcher.contracts.errors import InvalidInput


def write_pages(path: Path, *pages: Any) -> Path:
    path.write_text("".join(json.dumps(page) + "\n" for page in pages))
    return path


def test_a_page_is_cut_into_windows_of_100_words_after_its_title(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(250)]
    page = {"wikipedia_title": "A b", "text": ["A b\n", " ".join(words[:120]) + "\n", " ".join(words[120:])]}

    count = split(write_pages(tmp_path / "p.jsonl", page), tmp_path / "out.tsv")

    assert count == 3
    lines = (tmp_path / "out.tsv").read_text().splitlines()
    assert lines[0] == "0\tA b   A b " + " ".join(words[:98])
    assert lines[1] == "1\tA b   " + " ".join(words[98:198])
    assert lines[2] == "2\tA b   " + " ".join(words[198:])


def test_marks_of_lists_and_sections_are_removed_and_numbers_go_on(tmp_path: Path) -> None:
    first = {"wikipedia_title": "A", "text": ["A\n", "Section::::History.\n", "BULLET::::- one\n"]}
    second = {"wikipedia_title": "B", "text": ["B\n"]}

    split(write_pages(tmp_path / "p.jsonl", first, {"wikipedia_title": "E", "text": []}, second), tmp_path / "out.tsv")

    assert (tmp_path / "out.tsv").read_text() == "0\tA   A History. - one\n1\tB   B\n"


def test_each_file_may_be_gzipped(tmp_path: Path) -> None:
    plain = write_pages(tmp_path / "p.jsonl", {"wikipedia_title": "A", "text": ["A\n"]})
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))

    split(tmp_path / "p.jsonl.gz", tmp_path / "out.tsv.gz")

    assert gzip.decompress((tmp_path / "out.tsv.gz").read_bytes()) == b"0\tA   A\n"


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ({"title": "A", "text": []}, "not a page"),
        ({"wikipedia_title": "A", "text": [1]}, "not a page"),
        ({"wikipedia_title": None, "text": []}, "not a page"),
        ([], "a JSON list"),
    ],
)
def test_a_line_that_is_no_page_is_refused_and_leaves_the_file_that_was_there(
    tmp_path: Path, page: Any, complaint: str
) -> None:
    (tmp_path / "out.tsv").write_text("older")
    pages = write_pages(tmp_path / "p.jsonl", {"wikipedia_title": "A", "text": ["A"]}, page)

    with pytest.raises(InvalidInput, match=rf"p\.jsonl:2: .*{complaint}"):
        split(pages, tmp_path / "out.tsv")

    assert (tmp_path / "out.tsv").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tsv", "p.jsonl"]


def test_text_that_is_no_json_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"wikipedia_title": "A", "text": ["A"]}\n{"wiki')

    with pytest.raises(InvalidInput, match=r"p\.jsonl:2: not JSON"):
        split(tmp_path / "p.jsonl", tmp_path / "out.tsv")


@pytest.mark.data
def test_the_published_sample_is_reproduced_row_for_row(tmp_path: Path, data_dir: Path) -> None:
    samples = data_dir / "r1_searcher" / "corpus_samples"
    # It was cut off in its 93rd row.
    *published, cut_off = gzip.decompress((samples / "train_kilt_full_page_sample_100.tsv.gz").read_bytes()).split(
        b"\n"
    )

    split(samples / "filtered_kilt_sample_100.jsonl.gz", tmp_path / "out.tsv")

    ours = (tmp_path / "out.tsv").read_bytes().split(b"\n")
    assert len(published) == 92
    assert ours[:92] == published
    assert ours[92].startswith(cut_off)


def test_the_command_says_in_one_line_where_it_may_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = write_pages(tmp_path / "p.jsonl", {"wikipedia_title": "A", "text": ["A\n"]})
    monkeypatch.setattr(sys, "argv", ["searcher", "data", "split-kilt", str(pages), str(pages / "out.tsv")])

    with pytest.raises(SystemExit) as ended:
        main()

    (line,) = capsys.readouterr().err.splitlines()
    assert (ended.value.code, line.startswith("error: [Errno ")) == (1, True)
