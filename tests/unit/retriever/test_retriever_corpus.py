import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searcher.contracts.errors import InvalidInput
from services.retriever.building.corpus import read_passages, write_passages
from services.retriever.index.passages import PassageStore


def fields(path: Path) -> list[tuple[str, str, str]]:
    return [(passage.id, passage.title, passage.text) for passage in read_passages(path)]


def ignore(stage: str, done: int, total: int) -> None: ...


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"id": "7", "title": "Rome", "text": "A city."}', ("7", "Rome", "A city.")),
        ('{"id": 7, "text": "A city.", "source": "wiki"}', ("7", "", "A city.")),
        ('{"id": "7", "title": null, "text": "A city.", "url": null}', ("7", "", "A city.")),
        ('{"id": "7", "contents": "\\"Rome\\"\\nA city.\\nIn Italy."}', ("7", "Rome", "A city.\nIn Italy.")),
        ('{"id": "7", "contents": "Rome\\nA city."}', ("7", "Rome", "A city.")),
    ],
)
def test_jsonl_is_read_in_our_form_and_in_search_r1s(tmp_path: Path, line: str, expected: tuple[str, str, str]) -> None:
    (tmp_path / "c.jsonl").write_text(line + "\n\n")

    assert fields(tmp_path / "c.jsonl") == [expected]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("3\tTitle: Lucy Mair Text:  Lucy was here.  She left.\r", ("3", "Lucy Mair", "Lucy was here.  She left.")),
        ('3\t"Title: PFL Text:  The ""PFL"" is a league."\r', ("3", "PFL", 'The "PFL" is a league.')),
        ("3\tAlbedo   Albedo is a measure.", ("3", "Albedo", "Albedo is a measure.")),
        ("3\tno title at all", ("3", "", "no title at all")),
        ('3\t"Heroes" is a song by "Bowie"', ("3", "", '"Heroes" is a song by "Bowie"')),
        ("3\ta\tb", ("3", "", "a\tb")),
    ],
)
def test_tsv_is_read_in_the_forms_of_r1_searcher(tmp_path: Path, line: str, expected: tuple[str, str, str]) -> None:
    (tmp_path / "c.tsv").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\n")

    assert fields(tmp_path / "c.tsv") == [expected]


def test_a_gzipped_corpus_reads_like_a_plain_one(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    plain = write_corpus()
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))

    assert fields(packed) == fields(plain)


def test_beirs_name_for_an_id_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"_id": "7", "title": "Rome", "text": "A city.", "metadata": {}}\n')

    assert [passage.id for passage in read_passages(path)] == ["7"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"id": "2", "text": ', "not JSON"),
        (b"[1, 2]", "a JSON list, not an object"),
        (b'{"id": "2", "body": "x"}', "has ['body', 'id']"),
        (b'{"text": "x"}', 'has no "id"'),
        (b'{"id": true, "text": "x"}', "must be strings"),
        (b'{"id": "", "text": "x"}', "empty"),
        (b'{"id": "2", "text": "x", "title": 0}', "must be strings"),
        (b'{"id": "2", "text": "x", "title": []}', "must be strings"),
        (b'{"id": "2", "text": "x", "url": false}', "must be strings"),
        pytest.param(b"[" * 100_000, "not JSON: maximum recursion depth", id="nested too deep"),
        (b'{"id": "a\\tb", "text": "x"}', "a tab or a line break"),
        (b'{"id": "2", "title": " ", "text": ""}', "neither title nor text"),
        (b'{"id": "2", "text": "caf\xe9"}', "not UTF-8"),
        (b'{"id": "2", "text": "\\ud83d"}', "not UTF-8"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"id": "1", "text": "fine"}\n' + line + b"\n")

    with pytest.raises(InvalidInput) as refused:
        fields(path)

    assert f"{path}:2: " in str(refused.value)
    assert complaint in str(refused.value)


def test_brackets_that_are_nested_too_deep_are_one_bad_line(tmp_path: Path) -> None:
    path, skipped = tmp_path / "c.jsonl", list[str]()
    path.write_text("[" * 100_000 + '\n{"id": "1", "text": "fine"}\n')

    passages = list(read_passages(path, on_bad_line=skipped.append))

    assert [passage.id for passage in passages] == ["1"]
    assert [line.split(": ")[0] for line in skipped] == [f"{path}:1"]


def test_a_tsv_line_without_a_tab_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("1\tfine\nno tab\n")

    with pytest.raises(InvalidInput, match=r"c\.tsv:2: no tab"):
        fields(tmp_path / "c.tsv")


@pytest.mark.parametrize("name", ["c.csv", "c.parquet", "c.gz"])
def test_other_kinds_of_file_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")

    with pytest.raises(InvalidInput, match=r"neither \.jsonl nor \.tsv"):
        fields(tmp_path / name)


def test_a_truncated_gzip_file_is_refused(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(write_corpus().read_bytes())[:-12])

    with pytest.raises(InvalidInput, match="unreadable after line"):
        fields(packed)


def test_an_id_that_occurs_twice_is_refused_with_both_lines(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    source = write_corpus([{"id": "x", "text": "1"}, {"id": "y", "text": "2"}, {"id": "x", "text": "3"}])

    with pytest.raises(InvalidInput, match=r":3: the id 'x' was used in line 1"):
        write_passages(source, tmp_path, on_progress=ignore)


def test_an_empty_corpus_is_refused(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    with pytest.raises(InvalidInput, match="holds no passages"):
        write_passages(write_corpus([]), tmp_path, on_progress=ignore)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(bodies=st.lists(texts, min_size=1, max_size=20))
def test_a_store_gives_back_every_passage_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    rows = [{"id": str(number), "title": body[:3], "text": body} for number, body in enumerate(bodies)]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write_passages(folder / "c.jsonl", folder, on_progress=ignore)

    with PassageStore(folder) as store:
        assert [json.loads(store.line(row)) for row in range(len(store))] == rows


def test_progress_ends_at_its_total(write_corpus: Callable[..., Path]) -> None:
    source = write_corpus()
    seen: list[tuple[str, int, int]] = []

    list(read_passages(source, on_progress=lambda stage, done, total: seen.append((stage, done, total))))

    assert seen[-1] == ("reading", source.stat().st_size, source.stat().st_size)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "count", "first_title"),
    [
        ("train_np_title_abs_sample_100.tsv.gz", 100, "Professional Football League of Ukraine"),
        ("train_kilt_full_page_sample_100.tsv.gz", 93, "A"),
    ],
)
def test_the_published_samples_of_r1_searcher_are_read_whole(
    data_dir: Path, name: str, count: int, first_title: str
) -> None:
    passages = fields(data_dir / "r1_searcher" / "corpus_samples" / name)

    assert len(passages) == count
    assert passages[0][:2] == ("0", first_title)
    assert all(title and not title.startswith('"') for _, title, _ in passages)


@pytest.mark.data
def test_the_csv_quotes_of_the_published_sample_are_undone(data_dir: Path) -> None:
    samples = data_dir / "r1_searcher" / "corpus_samples"

    (_, _, text), *_ = fields(samples / "train_np_title_abs_sample_100.tsv.gz")

    assert text.startswith('Professional Football League of Ukraine (Ukrainian: "Професіональна футбольна')
    assert text.endswith("professional clubs in Ukraine.")
