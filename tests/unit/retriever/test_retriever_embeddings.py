import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from searcher.contracts.errors import InvalidInput, SearcherError
from services.retriever.building.__main__ import main as build_main
from services.retriever.building.embeddings import EmbeddingCache, in_blocks, main
from services.retriever.encoders.card import EncoderCard, Pooling, read_card
from services.retriever.encoders.export import encoder_folder
from services.retriever.encoders.protocol import Vectors

CARD = EncoderCard(name="toy", weights_sha256="0" * 64, dim=2, pooling=Pooling.MEAN, max_tokens=8)


class LengthEncoder:
    """A text's vector is (its length, 1). Notes what it was asked for."""

    card = CARD

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        raise AssertionError("queries are not kept")

    def encode_passages(self, passages: Sequence[str]) -> Vectors:
        self.encoded += passages
        return np.array([[len(passage), 1] for passage in passages], dtype=np.float32)


def vectors_file(cache: EmbeddingCache) -> Path:
    return cache.folder / "vectors.f32"


def test_what_was_encoded_once_is_never_encoded_again(tmp_path: Path) -> None:
    encoder = LengthEncoder()
    with EmbeddingCache(tmp_path, CARD) as cache:
        cache.encode(["a", "bb"], encoder)

    with EmbeddingCache(tmp_path, CARD) as cache:
        vectors = cache.encode(["ccc", "bb", "a"], encoder)

    assert vectors.tolist() == [[3, 1], [2, 1], [1, 1]]
    assert encoder.encoded == ["a", "bb", "ccc"]


def test_vectors_of_another_model_are_refused_before_one_is_used(tmp_path: Path) -> None:
    class Reversed(LengthEncoder):
        def encode_passages(self, passages: Sequence[str]) -> Vectors:
            return super().encode_passages(passages)[:, ::-1]

    with EmbeddingCache(tmp_path, CARD) as cache:
        cache.encode(["aaa"], LengthEncoder())

    with (
        EmbeddingCache(tmp_path, CARD) as cache,
        pytest.raises(
            InvalidInput, match=r"toy-\w+ holds vectors of another model than toy is now; delete that folder"
        ),
    ):
        list(cache.encode_blocks([["new"], ["newer", "aaa"]], Reversed()))


class NanEncoder(LengthEncoder):
    def encode_passages(self, passages: Sequence[str]) -> Vectors:
        vectors_ND = super().encode_passages(passages)
        vectors_ND[[passage == "bad" for passage in passages]] = np.nan
        return vectors_ND


def test_what_is_no_number_is_not_kept(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path, CARD) as cache:
        with pytest.raises(SearcherError, match=r"toy gives no numbers .* for 'bad'"):
            cache.encode(["good", "bad"], NanEncoder())

        assert cache.lookup(["good", "bad"])[1] == [0, 1]


def test_a_few_known_vectors_are_compared_once(tmp_path: Path) -> None:
    texts, encoder = ["x" * length for length in range(1, 21)], LengthEncoder()
    with EmbeddingCache(tmp_path, CARD) as cache:
        cache.encode(texts, LengthEncoder())

    with EmbeddingCache(tmp_path, CARD) as cache:
        list(cache.encode_blocks([texts, texts], encoder))

    assert encoder.encoded == texts[:8]


def test_the_vectors_of_minilm_stay_where_they_are(tmp_path: Path) -> None:
    """Hours of encoding lie under this name."""
    minilm = EncoderCard(
        name="minilm",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        dim=384,
        pooling=Pooling.MEAN,
        max_tokens=256,
    )

    with EmbeddingCache(tmp_path, minilm) as cache:
        assert cache.folder.name == "minilm-db3ec7477207"


def test_a_text_that_comes_twice_is_encoded_once(tmp_path: Path) -> None:
    encoder = LengthEncoder()

    with EmbeddingCache(tmp_path, CARD) as cache:
        vectors = cache.encode(["a", "bb", "a"], encoder)

        assert len(cache) == 2
    assert vectors.tolist() == [[1, 1], [2, 1], [1, 1]]
    assert encoder.encoded == ["a", "bb"]


def test_what_another_process_kept_meanwhile_is_not_kept_twice(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path, CARD) as cache, EmbeddingCache(tmp_path, CARD) as other:

        class SlowEncoder(LengthEncoder):
            def encode_passages(self, passages: Sequence[str]) -> Vectors:
                other.encode(["a", "bb"], LengthEncoder())
                return super().encode_passages(passages)

        vectors = cache.encode(["bb", "ccc"], SlowEncoder())

        assert vectors.tolist() == [[2, 1], [3, 1]]
        assert len(cache) == 3
        assert vectors_file(cache).stat().st_size == 3 * 2 * 4


def test_bytes_of_a_killed_writer_are_overwritten(tmp_path: Path) -> None:
    encoder = LengthEncoder()
    with EmbeddingCache(tmp_path, CARD) as cache:
        cache.encode(["a"], encoder)
        with vectors_file(cache).open("ab") as file:
            file.write(b"half a ro")

    with EmbeddingCache(tmp_path, CARD) as cache:
        cache.encode(["bb"], encoder)

        assert cache.encode(["bb", "a"], encoder).tolist() == [[2, 1], [1, 1]]
    assert encoder.encoded == ["a", "bb"]


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_row_is_encoded_again(tmp_path: Path, damage: str) -> None:
    encoder = LengthEncoder()
    with EmbeddingCache(tmp_path, CARD) as cache:
        cache.encode(["a", "bb"], encoder)
        if damage == "truncated":
            os.truncate(vectors_file(cache), 12)
        else:
            content = bytearray(vectors_file(cache).read_bytes())
            content[9] ^= 1
            vectors_file(cache).write_bytes(content)

    with EmbeddingCache(tmp_path, CARD) as cache:
        vectors = cache.encode(["a", "bb"], encoder)
        again = cache.encode(["a", "bb"], encoder)

    assert vectors.tolist() == again.tolist() == [[1, 1], [2, 1]]
    assert encoder.encoded == ["a", "bb", "bb"]


def test_two_writers_of_one_folder_keep_each_others_rows(tmp_path: Path) -> None:
    encoder = LengthEncoder()
    with EmbeddingCache(tmp_path, CARD) as one, EmbeddingCache(tmp_path, CARD) as other:
        one.encode(["a"], encoder)
        other.encode(["bb"], encoder)
        one.encode(["ccc"], encoder)

        assert other.encode(["a", "bb", "ccc"], encoder).tolist() == [[1, 1], [2, 1], [3, 1]]
    assert encoder.encoded == ["a", "bb", "ccc"]


def test_a_writer_that_fails_leaves_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with EmbeddingCache(tmp_path, CARD) as cache:
        monkeypatch.setattr(os, "fdatasync", disk_full)
        with pytest.raises(OSError, match="No space"):
            cache.encode(["a"], LengthEncoder())
        monkeypatch.undo()

        assert len(cache) == 0
        assert cache.encode(["a"], LengthEncoder()).tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        ({"weights_sha256": "1" * 64}, True),
        ({"pooling": Pooling.CLS}, True),
        ({"passage_prefix": "passage: "}, True),
        ({"max_tokens": 9}, True),
        ({"query_prefix": "query: "}, False),
    ],
)
def test_only_what_decides_a_passages_vector_makes_another_encoder(
    tmp_path: Path, change: dict[str, object], is_another: bool
) -> None:
    with EmbeddingCache(tmp_path, CARD) as cache:
        cache.encode(["a"], LengthEncoder())

    with EmbeddingCache(tmp_path, CARD.model_copy(update=change)) as other:
        _, missing = other.lookup(["a"])

    assert bool(missing) is is_another


def test_a_lookup_of_many_texts_finds_them_all(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(1_300)]
    with EmbeddingCache(tmp_path, CARD) as cache:
        for block in in_blocks(texts, 400):
            cache.encode(block, LengthEncoder())

        vectors, missing = cache.lookup(texts[::-1])

    assert missing == []
    assert vectors[:, 0].tolist() == [len(text) for text in texts[::-1]]


def test_a_folder_of_something_else_is_not_taken_for_a_cache(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path, CARD) as cache:
        folder = cache.folder
    (folder / "rows.sqlite").write_bytes(b"not a database, but long enough to be read as one" * 40)

    with pytest.raises(sqlite3.DatabaseError):
        EmbeddingCache(tmp_path, CARD)


def test_a_corpus_is_encoded_ahead_in_shards_that_share_a_folder(
    tmp_path: Path,
    write_corpus: Callable[..., Path],
    letter_encoder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passages = [{"id": str(n), "text": "abcdefghij"[n]} for n in range(10)]
    command = [str(write_corpus(passages)), "--encoder", str(letter_encoder()), "--into", str(tmp_path / "kept")]
    monkeypatch.setattr("services.retriever.building.embeddings.in_blocks", lambda texts: in_blocks(texts, 2))
    card = read_card(encoder_folder(str(tmp_path / "letters"), tmp_path / "kept" / ".encoders"))

    def missing() -> list[int]:
        with EmbeddingCache(tmp_path / "kept", card) as cache:
            return cache.lookup([passage["text"] for passage in passages])[1]

    assert main([*command, "--shard", "1/2", "--threads", "1"]) == 0
    assert missing() == [0, 1, 4, 5, 8, 9]  # blocks 1 and 3 of 5 were its own
    assert main([*command, "--shard", "0/2", "--threads", "1"]) == 0
    assert missing() == []


def test_what_was_encoded_ahead_with_a_builds_options_is_all_that_the_build_needs(
    tmp_path: Path,
    write_corpus: Callable[..., Path],
    letter_encoder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write_corpus()
    source.write_text(source.read_text() + "not json\n")
    shared = ["--encoder", str(letter_encoder()), "--max-tokens", "8", "--query-prefix", "q", "--skip-bad-lines"]
    assert main([str(source), *shared, "--into", str(tmp_path / "kept"), "--threads", "1"]) == 0

    def not_needed(*_: object) -> None:
        raise AssertionError("all vectors are known")

    monkeypatch.setattr(EmbeddingCache, "store", not_needed)
    build = [str(source), *shared, "--embeddings", str(tmp_path / "kept"), "--threads", "1"]
    assert build_main([*build, "--out", str(tmp_path / "index"), "--kind", "flat"]) == 0


def test_encoding_ahead_says_what_it_skipped_and_stops_at_it_otherwise(
    tmp_path: Path,
    write_corpus: Callable[..., Path],
    letter_encoder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_corpus()
    source.write_text("not json\n" + source.read_text())
    command = [str(source), "--encoder", str(letter_encoder()), "--into", str(tmp_path / "kept"), "--threads", "1"]

    assert main(command) == 2
    assert main([*command, "--skip-bad-lines"]) == 0

    assert f"skipped {source}:1: not JSON" in capsys.readouterr().err
