import gc
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from searcher.contracts.errors import InvalidInput
from services.retriever.building.build import build_index
from services.retriever.serving.library import Library


@pytest.fixture
def index(tmp_path: Path, write_corpus: Callable[..., Path]) -> Path:
    build_index(write_corpus(), tmp_path / "indexes" / "world", kind="bm25")
    return tmp_path / "indexes" / "world"


def names(index_dir: Path) -> list[str]:
    return sorted(Library().open_all(index_dir))


def test_an_index_itself_is_served_as_default(index: Path) -> None:
    assert names(index) == ["default"]


def test_a_single_corpus_is_served_by_its_name_and_as_default(index: Path) -> None:
    assert names(index.parent) == ["default", "world"]


def test_several_corpora_are_served_by_their_names_only(index: Path) -> None:
    shutil.copytree(index, index.parent / "other")

    assert names(index.parent) == ["other", "world"]


def test_a_corpus_named_default_is_the_default_among_several(index: Path) -> None:
    shutil.copytree(index, index.parent / "default")

    assert names(index.parent) == ["default", "world"]


def test_folders_that_no_corpus_can_be_named_after_are_passed_over(index: Path) -> None:
    (index.parent / "lost+found").mkdir()
    (index.parent / ".world.building").mkdir()

    assert names(index.parent) == ["default", "world"]


def test_a_folder_without_a_manifest_is_refused(index: Path) -> None:
    (index.parent / "half").mkdir()

    with pytest.raises(InvalidInput, match=r"half/manifest\.json: no such file"):
        names(index.parent)


def test_an_empty_folder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no index; build one with"):
        names(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not a folder"):
        names(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["passages.jsonl", "offsets.npy", "bm25/data.csc.index.npy", "bm25/vocab.index.json"])
def test_a_missing_file_is_named(index: Path, name: str) -> None:
    (index / name).unlink()

    with pytest.raises(InvalidInput, match=f"{name}: missing"):
        names(index)


def unlist(folder: Path, *names: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: facts for name, facts in manifest["files"].items() if name not in names}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["passages.jsonl", "offsets.npy", "bm25/params.index.json"])
def test_a_manifest_that_does_not_list_what_its_kind_needs_is_refused(index: Path, name: str) -> None:
    unlist(index, name)

    with pytest.raises(InvalidInput, match=f"does not list {name}, which every bm25 index has"):
        names(index)


@pytest.mark.parametrize("name", ["encoder/encoder.json", "encoder/model.onnx", "vectors.npy", "codes/000.faiss"])
def test_a_manifest_of_vectors_must_list_encoder_vectors_and_codes(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path], name: str
) -> None:
    source = write_corpus([{"id": str(number), "text": f"passage {number}"} for number in range(1_000)])
    build_index(source, tmp_path / "index", kind="pqfs", encoder=str(letter_encoder()))
    unlist(tmp_path / "index", name)

    with pytest.raises(InvalidInput, match=f"does not list {name}, which every pqfs index has"):
        names(tmp_path / "index")


@pytest.mark.parametrize("name", ["notes.txt", "bm25/more.npy"])
def test_a_file_that_the_manifest_does_not_list_is_named(index: Path, name: str) -> None:
    (index / name).write_text("not there when this was built")

    with pytest.raises(InvalidInput, match=f"{name}: is not in the manifest"):
        names(index)


def test_hidden_files_are_no_part_of_an_index(index: Path) -> None:
    (index / "bm25" / ".nfs0001").write_text("left by a file system")

    assert names(index) == ["default"]


def test_a_truncated_file_is_named(index: Path) -> None:
    path = index / "passages.jsonl"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(InvalidInput, match=r"passages\.jsonl: \d+ bytes, but the manifest says"):
        names(index)


def test_a_changed_file_is_named(index: Path) -> None:
    path = index / "passages.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Italy", b"Spain"))

    with pytest.raises(InvalidInput, match=r"passages\.jsonl: its sha256 is not the manifest's"):
        names(index)


def test_a_manifest_of_another_version_is_refused(index: Path) -> None:
    path = index / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))

    with pytest.raises(InvalidInput, match="not a manifest of this version"):
        names(index)


def test_an_index_that_scores_its_golden_query_differently_is_refused(index: Path) -> None:
    path = index / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["golden"]["score"] *= 1.1
    path.write_text(json.dumps(manifest))

    with pytest.raises(InvalidInput, match="encoder or library differ"):
        names(index)


def test_another_encoder_than_the_manifests_is_refused(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path]
) -> None:
    build_index(write_corpus(), tmp_path / "flat", kind="flat", encoder=str(letter_encoder()))
    manifest = json.loads((tmp_path / "flat" / "manifest.json").read_text())
    manifest["index"]["encoder"]["pooling"] = "cls"
    (tmp_path / "flat" / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(InvalidInput, match="is not the encoder that"):
        names(tmp_path / "flat")


def relist(folder: Path, name: str) -> None:
    """Let the manifest say of a file what is true now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / name).read_bytes()
    manifest["files"][name] = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("kind", ["flat", "pqfs"])
def test_vectors_that_cannot_be_the_encoders_are_refused(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path], kind: str
) -> None:
    source = write_corpus([{"id": str(number), "text": f"passage {number}"} for number in range(1_000)])
    build_index(source, tmp_path / "index", kind=kind, encoder=str(letter_encoder()))
    vectors_ND = np.load(tmp_path / "index" / "vectors.npy")
    np.save(tmp_path / "index" / "vectors.npy", vectors_ND[:, :-1])
    relist(tmp_path / "index", "vectors.npy")

    with pytest.raises(InvalidInput, match=rf"vectors\.npy: .* vectors have {vectors_ND.shape[1]} dimensions"):
        names(tmp_path / "index")


@pytest.mark.parametrize("name", ["offsets.npy", "bm25/data.csc.index.npy", "bm25/vocab.index.json"])
def test_what_a_library_cannot_read_is_refused_in_its_words(index: Path, name: str) -> None:
    (index / name).write_bytes(b"no such format")
    relist(index, name)

    with pytest.raises(InvalidInput, match=r"world' cannot be served: \w+: "):
        names(index)


def test_corpora_of_one_encoder_share_it(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path]
) -> None:
    encoder = str(letter_encoder())
    for name in ("one", "two"):
        build_index(write_corpus(), tmp_path / "flat" / name, kind="flat", encoder=encoder)
    library = Library(num_threads=1)

    corpora = library.open_all(tmp_path / "flat")
    assert sorted(corpora) == ["one", "two"]
    assert len(library._encoders) == 1

    del corpora
    gc.collect()
    assert len(library._encoders) == 0
