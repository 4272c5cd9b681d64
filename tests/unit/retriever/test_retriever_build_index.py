import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from searcher.contracts.errors import InvalidInput
from services.retriever.build_index import build_index, main
from services.retriever.library import Library
from services.retriever.manifest import FlatFacts, manifest_sha256


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_building_again_changes_nothing(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    first = build_index(write_corpus(), tmp_path / "index", kind="bm25")
    written = (tmp_path / "index" / "manifest.json").stat()

    second = build_index(write_corpus(), tmp_path / "index", kind="bm25")

    assert second == first
    assert (tmp_path / "index" / "manifest.json").stat().st_ino == written.st_ino


def test_one_corpus_gives_one_identity_wherever_it_is_built(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    build_index(write_corpus(), tmp_path / "here", kind="bm25")
    build_index(write_corpus(), tmp_path / "there", kind="bm25")

    assert manifest_sha256(tmp_path / "here") == manifest_sha256(tmp_path / "there")


def test_another_source_replaces_the_index(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    build_index(write_corpus(), tmp_path / "index", kind="bm25")

    manifest = build_index(write_corpus([{"id": "1", "text": "new"}]), tmp_path / "index", kind="bm25")

    assert manifest.num_passages == 1
    assert len(Library().open(tmp_path / "index", "c").passages) == 1


def test_a_damaged_index_is_built_again(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    build_index(write_corpus(), tmp_path / "index", kind="bm25")
    (tmp_path / "index" / "offsets.npy").unlink()

    build_index(write_corpus(), tmp_path / "index", kind="bm25")

    assert len(Library().open(tmp_path / "index", "c").passages) == 4


def test_a_failed_build_leaves_the_index_that_was_there(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    build_index(write_corpus(), tmp_path / "index", kind="bm25")
    before = listing(tmp_path)

    with pytest.raises(InvalidInput, match="neither title nor text"):
        build_index(write_corpus([{"id": "1", "text": " "}]), tmp_path / "index", kind="bm25")

    assert len(Library().open(tmp_path / "index", "c").passages) == 4
    assert listing(tmp_path) == before


def test_what_a_killed_build_left_behind_does_no_harm(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    (tmp_path / ".index.building").mkdir()
    (tmp_path / ".index.building" / "passages.jsonl").write_text("half a lin")

    build_index(write_corpus(), tmp_path / "index", kind="bm25")

    assert len(Library().open(tmp_path / "index", "c").passages) == 4
    assert not (tmp_path / ".index.building").exists()


def test_a_folder_with_other_content_is_never_replaced(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("Precious.")

    with pytest.raises(InvalidInput, match="exists and is not an index"):
        build_index(write_corpus(), tmp_path / "thesis", kind="bm25")

    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "Precious."


@pytest.mark.parametrize(("kind", "encoder"), [("flat", None), ("bm25", "minilm")])
def test_an_encoder_belongs_to_a_flat_index_only(
    tmp_path: Path, write_corpus: Callable[..., Path], kind: Any, encoder: str | None
) -> None:
    with pytest.raises(InvalidInput, match="a flat index needs one and a bm25 index none"):
        build_index(write_corpus(), tmp_path / "index", kind=kind, encoder=encoder)


def test_a_flat_index_carries_its_encoder(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path]
) -> None:
    encoder = letter_encoder()

    manifest = build_index(write_corpus(), tmp_path / "index", kind="flat", encoder=str(encoder))
    encoder.rename(tmp_path / "gone")

    assert isinstance(manifest.index, FlatFacts)
    assert manifest.index.encoder.name == "letters"
    corpus = Library(num_threads=1).open(tmp_path / "index", "c")
    rows_QK, _ = corpus.index.search(["rome is the capital of italy"], 1)
    assert json.loads(corpus.passages.line(rows_QK[0, 0]))["id"] == "a1"


def test_a_flat_index_is_the_same_for_every_block_size(
    tmp_path: Path,
    write_corpus: Callable[..., Path],
    letter_encoder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = str(letter_encoder())
    whole = build_index(write_corpus(), tmp_path / "whole", kind="flat", encoder=encoder)
    monkeypatch.setattr("services.retriever.build_index.BLOCK_PASSAGES", 3)

    in_blocks = build_index(write_corpus(), tmp_path / "blocks", kind="flat", encoder=encoder)

    assert in_blocks.files["vectors.npy"] == whole.files["vectors.npy"]


def test_the_command_says_what_it_built(
    tmp_path: Path, write_corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([str(write_corpus()), "--out", str(tmp_path / "index")])

    assert code == 0
    assert "bm25, 4 passages" in capsys.readouterr().out


def test_the_command_refuses_bad_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(tmp_path / "missing.jsonl"), "--out", str(tmp_path / "index")])

    assert code == 2
    assert "missing.jsonl is not a file" in capsys.readouterr().err
