import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searcher.contracts.errors import InvalidInput, UpstreamUnavailable
from searcher.contracts.search import Recall
from searcher.files import file_sha256
from services.retriever.building.__main__ import main
from services.retriever.building.build import build_index
from services.retriever.building.request import BuildOptions
from services.retriever.encoders.known import EncoderChoice
from services.retriever.encoders.local import OnnxEncoder
from services.retriever.encoders.protocol import Vectors
from services.retriever.index import manifest as manifest_module
from services.retriever.index.manifest import FlatFacts, HybridFacts, QuantisedFacts, manifest_sha256
from services.retriever.index.protocol import Scores
from services.retriever.index.rerank import OnnxReranker
from services.retriever.serving.library import Library


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


def test_what_lies_in_an_index_and_is_no_part_of_it_is_not_lost(
    tmp_path: Path, write_corpus: Callable[..., Path]
) -> None:
    build_index(write_corpus(), tmp_path / "index", kind="bm25")
    (tmp_path / "index" / "notes.txt").write_text("Precious.")

    with pytest.raises(InvalidInput, match=r"notes\.txt is no part of the index there"):
        build_index(write_corpus(many_passages(3)), tmp_path / "index", kind="bm25")

    assert (tmp_path / "index" / "notes.txt").read_text() == "Precious."


@pytest.mark.parametrize(("kind", "encoder"), [("flat", None), ("bm25", "minilm")])
def test_an_encoder_belongs_to_an_index_of_vectors_only(
    tmp_path: Path, write_corpus: Callable[..., Path], kind: Any, encoder: str | None
) -> None:
    with pytest.raises(InvalidInput, match=f"a {kind} index needs"):
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
    monkeypatch.setattr("services.retriever.building.build.BLOCK_PASSAGES", 3)

    options = BuildOptions(embeddings=tmp_path / "other-embeddings")
    in_blocks = build_index(write_corpus(), tmp_path / "blocks", kind="flat", encoder=encoder, options=options)

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


def test_the_command_says_in_one_line_where_it_may_not_write(
    tmp_path: Path, write_corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    code = main([str(write_corpus()), "--out", str(tmp_path / "file" / "index")])

    assert code == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: [Errno ")


def test_a_folder_with_a_manifest_of_something_else_is_left_alone(
    tmp_path: Path, write_corpus: Callable[..., Path]
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "a web app"}')
    (tmp_path / "app" / "thesis.txt").write_text("years of work")

    with pytest.raises(InvalidInput, match=r"^out: .*name another folder"):
        build_index(write_corpus(), tmp_path / "app", kind="bm25")

    assert (tmp_path / "app" / "thesis.txt").read_text() == "years of work"


def test_beside_a_damaged_manifest_nothing_else_is_lost(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    build_index(write_corpus(), tmp_path / "index", kind="bm25")
    (tmp_path / "index" / "manifest.json").write_text("{")
    (tmp_path / "index" / "notes.txt").write_text("mine")

    with pytest.raises(InvalidInput, match=r"notes\.txt is no part of the index"):
        build_index(write_corpus(), tmp_path / "index", kind="bm25")

    (tmp_path / "index" / "notes.txt").unlink()
    assert build_index(write_corpus(), tmp_path / "index", kind="bm25").num_passages == 4


def test_what_came_into_the_folder_during_the_build_is_not_lost(
    tmp_path: Path, write_corpus: Callable[..., Path]
) -> None:
    notes = tmp_path / "index" / "notes.txt"

    def write_notes(*_: object) -> None:
        notes.parent.mkdir(exist_ok=True)
        notes.write_text("mine")

    with pytest.raises(InvalidInput, match="exists and is not an index"):
        build_index(write_corpus(), tmp_path / "index", kind="bm25", on_progress=write_notes)

    assert notes.read_text() == "mine"


@pytest.mark.parametrize("name", ["embeddings", "encoder_cache"])
def test_what_is_kept_between_builds_cannot_lie_in_the_index(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path], name: str
) -> None:
    options = BuildOptions(**{name: tmp_path / "index" / "kept"})

    with pytest.raises(InvalidInput, match=f"^{name}: .* is replaced as a whole"):
        build_index(write_corpus(), tmp_path / "index", kind="flat", encoder=str(letter_encoder()), options=options)


def test_a_disk_without_room_is_an_error_and_not_the_end_of_the_process(
    tmp_path: Path,
    write_corpus: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_room(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)

    assert main([str(write_corpus()), "--out", str(tmp_path / "index")]) == 1
    assert "No space left on device; what was done is kept" in capsys.readouterr().err


def test_questions_that_cannot_be_read_are_refused_before_anything_is_encoded(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path]
) -> None:
    stages: list[str] = []

    with pytest.raises(InvalidInput, match=r"queries: .*missing\.jsonl"):
        build_index(
            write_corpus(),
            tmp_path / "index",
            kind="flat",
            encoder=str(letter_encoder()),
            options=BuildOptions(queries=tmp_path / "missing.jsonl"),
            on_progress=lambda stage, *_: stages.append(stage),
        )

    assert stages == []


# -- kinds of vectors -------------------------------------------------------------------------------------------------


def many_passages(count: int) -> list[dict[str, str]]:
    """Words of random letters: as vectors of letters they are all different."""
    random = np.random.default_rng(0)
    texts = ("".join(random.choice(list("abcdefghijklmnopqrstuvwxyz"), size=14)) for _ in range(count))
    return [{"id": str(number), "text": text} for number, text in enumerate(texts)]


@pytest.mark.parametrize("kind", ["flat", "fp16", "pqfs", "rabitq", "ivf"])
def test_every_kind_finds_what_it_was_built_for_and_says_how_well(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path], kind: Any
) -> None:
    source, said = write_corpus(many_passages(1_200)), list[str]()

    manifest = build_index(source, tmp_path / "index", kind=kind, encoder=str(letter_encoder()), say=said.append)

    assert manifest.index.kind == kind
    assert manifest.recall is not None
    assert manifest.recall.recall >= 0.97
    assert (manifest.recall.k, manifest.recall.num_queries, manifest.recall.queries) == (10, 256, "passages")
    assert said[0].startswith("recall@10 ")
    corpus = Library(num_threads=1).open(tmp_path / "index", "c")
    wanted = [f"{number}" for number in (0, 600, 1_199)]
    rows_QK, scores_QK = corpus.index.search([many_passages(1_200)[int(number)]["text"] for number in wanted], 1)
    assert [json.loads(corpus.passages.line(row))["id"] for row in rows_QK[:, 0]] == wanted
    assert scores_QK == pytest.approx(np.ones((3, 1)), abs=1e-3)


def test_a_quantised_index_notes_how_it_was_tuned(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path]
) -> None:
    options = BuildOptions(refine_dtype="float16")

    manifest = build_index(
        write_corpus(many_passages(1_200)), tmp_path / "i", kind="ivf", encoder=str(letter_encoder()), options=options
    )

    assert isinstance(manifest.index, QuantisedFacts)
    assert manifest.index.factory == "IVF16,PQ3x4fs"
    assert manifest.index.candidates in (5, 10, 20, 40, 80, 160)
    assert 1 <= (manifest.index.num_probes or 0) <= 16
    assert np.load(tmp_path / "i" / "vectors.npy", mmap_mode="r").dtype == np.float16


def test_recall_is_measured_on_questions_where_they_are_given(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path]
) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "capital of Italy"}\n{"question": "a singer"}\n')
    options = BuildOptions(queries=tmp_path / "q.jsonl")

    manifest = build_index(write_corpus(), tmp_path / "i", kind="flat", encoder=str(letter_encoder()), options=options)

    assert manifest.recall == Recall(recall=1.0, k=4, num_queries=2, queries="questions")


def test_auto_takes_what_fits_and_says_why(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path]
) -> None:
    said = list[str]()

    dense = build_index(write_corpus(), tmp_path / "dense", kind="auto", encoder=str(letter_encoder()), say=said.append)
    words = build_index(write_corpus(), tmp_path / "words", kind="auto", say=said.append)

    assert (dense.index.kind, words.index.kind) == ("flat", "bm25")
    assert said[0].startswith("kind flat: ")
    assert said[-1] == "kind bm25: no encoder was named, so words are matched"


def test_a_corpus_too_small_for_codes_is_refused(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path]
) -> None:
    with pytest.raises(InvalidInput, match="at least 1,000 passages, and there are 4; use flat"):
        build_index(write_corpus(), tmp_path / "index", kind="pqfs", encoder=str(letter_encoder()))


def test_a_hybrid_index_finds_by_words_and_by_vectors(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path]
) -> None:
    manifest = build_index(
        write_corpus(),
        tmp_path / "index",
        kind="flat",
        encoder=str(letter_encoder()),
        options=BuildOptions(hybrid=True),
    )

    assert isinstance(manifest.index, HybridFacts)
    index = Library(num_threads=1).open(tmp_path / "index", "c").index
    rows_QK, scores_QK = index.search(["Rome is the capital of Italy."], 4)
    assert rows_QK[0, 0] == 0
    assert scores_QK[0, 0] == pytest.approx(2 / 61)  # first in both lists
    assert set(rows_QK[0].tolist()) == {0, 1, 2, 3}


def test_an_index_carries_its_reranker(
    tmp_path: Path, write_corpus: Callable[..., Path], counting_reranker: Path
) -> None:
    options = BuildOptions(reranker=counting_reranker)

    manifest = build_index(write_corpus(), tmp_path / "index", kind="bm25", options=options)
    counting_reranker.rename(tmp_path / "gone")

    assert manifest.reranker is not None
    rows_QK, scores_QK = Library(num_threads=1).open(tmp_path / "index", "c").index.search(["the capital of"], 2)
    assert rows_QK.tolist() == [[1, 0]]  # "Paris Paris is …" is longer than "Rome Rome is …"
    assert scores_QK[0, 0] > scores_QK[0, 1]


@pytest.mark.parametrize("missing", ["model.onnx", "tokenizer.json"])
def test_a_reranker_that_cannot_be_used_stops_a_build_at_its_start(
    tmp_path: Path, write_corpus: Callable[..., Path], counting_reranker: Path, missing: str
) -> None:
    stages: list[str] = []
    (counting_reranker / missing).unlink()

    with pytest.raises(InvalidInput, match=f"{missing}: cannot be read: "):
        build_index(
            write_corpus(),
            tmp_path / "i",
            kind="bm25",
            options=BuildOptions(reranker=counting_reranker),
            on_progress=lambda stage, done, total: stages.append(stage),
        )

    assert set(stages) <= {"hashing the corpus"}


def test_a_length_that_the_reranker_does_not_have_stops_a_build_at_its_start(
    tmp_path: Path, write_corpus: Callable[..., Path], counting_reranker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(self: OnnxReranker, query: str, passages: Sequence[str]) -> Scores:
        raise RuntimeError("invalid expand shape\nat node 7")

    monkeypatch.setattr(OnnxReranker, "scores", too_long)

    with pytest.raises(InvalidInput, match=r"cannot score a pair .*RuntimeError: invalid expand shape$"):
        build_index(write_corpus(), tmp_path / "i", kind="bm25", options=BuildOptions(reranker=counting_reranker))


def test_another_reranker_than_the_manifests_is_refused(
    tmp_path: Path, write_corpus: Callable[..., Path], counting_reranker: Path
) -> None:
    build_index(write_corpus(), tmp_path / "i", kind="bm25", options=BuildOptions(reranker=counting_reranker))
    manifest = json.loads((tmp_path / "i" / "manifest.json").read_text())
    manifest["reranker"]["depth"] = 7
    (tmp_path / "i" / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(InvalidInput, match="is not the reranker that"):
        Library(num_threads=1).open(tmp_path / "i", "c")


# -- building again, and going on -------------------------------------------------------------------------------------


def test_what_changes_the_index_builds_it_anew(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path]
) -> None:
    encoder = str(letter_encoder())
    first = build_index(write_corpus(), tmp_path / "index", kind="flat", encoder=encoder)

    changed = EncoderChoice(encoder, changes={"query_prefix": "q"})
    second = build_index(write_corpus(), tmp_path / "index", kind="flat", encoder=changed)

    assert isinstance(second.index, FlatFacts)
    assert second.index.encoder.query_prefix == "q"
    assert second.files["vectors.npy"] == first.files["vectors.npy"]


def test_vectors_that_are_known_are_not_encoded_again(
    tmp_path: Path,
    write_corpus: Callable[..., Path],
    letter_encoder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = str(letter_encoder())
    passages = [{"id": "1", "text": "one"}, {"id": "2", "text": "two"}]
    build_index(write_corpus(passages), tmp_path / "first", kind="flat", encoder=encoder)
    encoded: list[str] = []

    def encode(self: OnnxEncoder, texts: Sequence[str]) -> Vectors:
        encoded.extend(texts)
        return original(self, texts)

    original = OnnxEncoder.encode_passages
    monkeypatch.setattr(OnnxEncoder, "encode_passages", encode)
    build_index(
        write_corpus([*passages, {"id": "3", "text": "three"}]), tmp_path / "second", kind="flat", encoder=encoder
    )

    tried_out, *encoded = encoded
    assert tried_out.startswith("a a a")
    assert encoded == ["one", "two", "three"]  # the first two to be compared with what is known


def test_another_model_under_the_same_card_gives_another_index(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path]
) -> None:
    source, encoder = write_corpus(), letter_encoder()
    first = build_index(source, tmp_path / "index", kind="flat", encoder=str(encoder))
    first_vectors_ND = np.load(tmp_path / "index" / "vectors.npy")

    shift_axes(encoder / "model.onnx")
    second = build_index(source, tmp_path / "index", kind="flat", encoder=str(encoder))

    assert second.request_sha256 != first.request_sha256
    assert np.load(tmp_path / "index" / "vectors.npy") == pytest.approx(np.roll(first_vectors_ND, 1, axis=1))


def shift_axes(model_file: Path) -> None:
    """Write another model over the one-hot model of letters: each letter on the next axis."""
    import onnx

    model = onnx.load(model_file)
    table = np.roll(np.eye(27, dtype=np.float32), 1, axis=1)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(table, "table"))
    onnx.save(model, model_file)


def test_another_reranker_under_the_same_card_gives_another_index(
    tmp_path: Path, write_corpus: Callable[..., Path], counting_reranker: Path
) -> None:
    source, options = write_corpus(), BuildOptions(reranker=counting_reranker)
    first = build_index(source, tmp_path / "index", kind="bm25", options=options)

    with (counting_reranker / "tokenizer.json").open("a") as file:
        file.write(" ")
    second = build_index(source, tmp_path / "index", kind="bm25", options=options)

    assert second.files["reranker/tokenizer.json"] != first.files["reranker/tokenizer.json"]


def test_an_outage_of_the_encoder_loses_nothing(
    tmp_path: Path,
    write_corpus: Callable[..., Path],
    letter_encoder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, said = str(letter_encoder()), list[str]()
    monkeypatch.setattr("services.retriever.building.build.BLOCK_PASSAGES", 2)

    def fails_at_the_second_block(self: OnnxEncoder, texts: Sequence[str]) -> Vectors:
        if any("Beyoncé" in text for text in texts):
            raise UpstreamUnavailable("encoder did not answer")
        return original(self, texts)

    original = OnnxEncoder.encode_passages
    with monkeypatch.context() as outage:
        outage.setattr(OnnxEncoder, "encode_passages", fails_at_the_second_block)
        with pytest.raises(UpstreamUnavailable):
            build_index(write_corpus(), tmp_path / "index", kind="flat", encoder=encoder)
    manifest = build_index(write_corpus(), tmp_path / "index", kind="flat", encoder=encoder, say=said.append)

    assert said[0] == "going on with a build that was interrupted"
    assert manifest.num_passages == 4
    assert not (tmp_path / ".index.building").exists()


@pytest.mark.parametrize("stage", ["reading", "encoding", "writing codes"])
def test_a_build_that_was_killed_goes_on_and_gives_the_same_index(
    tmp_path: Path, write_corpus: Callable[..., Path], letter_encoder: Callable[..., Path], stage: str
) -> None:
    source, encoder = write_corpus(many_passages(3_000)), str(letter_encoder())
    script = f"""
import os, signal
from pathlib import Path
from services.retriever.building.build import build_index
def die(stage, done, total):
    if stage == {stage!r} and done > total // 3:
        os.kill(os.getpid(), signal.SIGKILL)
build_index(Path({str(source)!r}), Path({str(tmp_path / "index")!r}), kind="pqfs", encoder={encoder!r}, on_progress=die)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    left = sorted(path.name for path in (tmp_path / ".index.building").iterdir())

    resumed = build_index(source, tmp_path / "index", kind="pqfs", encoder=encoder)

    whole = build_index(source, tmp_path / "whole", kind="pqfs", encoder=encoder)
    assert killed.returncode == -signal.SIGKILL
    assert "manifest.json" not in left
    assert resumed == whole
    assert manifest_sha256(tmp_path / "index") == manifest_sha256(tmp_path / "whole")
    assert listing(tmp_path / "index") == listing(tmp_path / "whole")


def kill_a_build(source: Path, out: Path, *, where: str) -> None:
    """`where` is Python that ends the process somewhere, with `die()`."""
    script = f"""
import os, signal
from pathlib import Path
from services.retriever.building import build, workspace
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
{where}
build.build_index(Path({str(source)!r}), Path({str(out)!r}), kind="bm25")
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL


IN_THE_FINAL_HASHING = "build.file_facts = die"
BEFORE_THE_SWAP = "workspace._put_in_place = die"
BETWEEN_THE_RENAMES = """
rename = Path.rename
Path.rename = lambda path, to: die() if path.name == '.index.building' else rename(path, to)
"""


@pytest.mark.parametrize("where", [IN_THE_FINAL_HASHING, BEFORE_THE_SWAP, BETWEEN_THE_RENAMES])
def test_a_build_that_was_killed_at_its_end_is_not_begun_again(
    tmp_path: Path, write_corpus: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    build_index(write_corpus(many_passages(3)), tmp_path / "index", kind="bm25")
    kill_a_build(write_corpus(), tmp_path / "index", where=where)

    def begun_again(*_: object, **__: object) -> None:
        raise AssertionError("the words were indexed already")

    monkeypatch.setattr("services.retriever.building.build.write_bm25", begun_again)
    resumed = build_index(write_corpus(), tmp_path / "index", kind="bm25")

    monkeypatch.undo()
    assert resumed == build_index(write_corpus(), tmp_path / "whole", kind="bm25")
    assert listing(tmp_path / "index") == listing(tmp_path / "whole")
    assert listing(tmp_path) == {"corpus.jsonl", "index", ".index.lock", "whole", ".whole.lock"}


def test_a_complete_index_takes_its_place_whatever_is_built_next(
    tmp_path: Path, write_corpus: Callable[..., Path]
) -> None:
    kill_a_build(write_corpus(), tmp_path / "index", where=BETWEEN_THE_RENAMES)

    with pytest.raises(InvalidInput, match="neither title nor text"):
        build_index(write_corpus([{"id": "1", "text": " "}]), tmp_path / "index", kind="bm25")

    assert len(Library().open(tmp_path / "index", "c").passages) == 4


def test_an_index_that_was_moved_away_is_put_back_where_nothing_came_in_its_place(
    tmp_path: Path, write_corpus: Callable[..., Path]
) -> None:
    build_index(write_corpus(), tmp_path / "index", kind="bm25")
    kill_a_build(write_corpus(many_passages(3)), tmp_path / "index", where=BETWEEN_THE_RENAMES)
    shutil.rmtree(tmp_path / ".index.building" / "bm25")

    with pytest.raises(InvalidInput, match="neither title nor text"):
        build_index(write_corpus([{"id": "1", "text": " "}]), tmp_path / "index", kind="bm25")

    assert len(Library().open(tmp_path / "index", "c").passages) == 4


def test_a_link_is_followed_and_stays(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    (tmp_path / "link").symlink_to("real")
    build_index(write_corpus(), tmp_path / "link", kind="bm25")

    build_index(write_corpus(many_passages(3)), tmp_path / "link", kind="bm25")

    assert (tmp_path / "link").is_symlink()
    assert len(Library().open(tmp_path / "real", "c").passages) == 3


def test_a_second_builder_says_that_it_waits(tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    said = list[str]()
    with (tmp_path / ".index.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def say(line: str) -> None:
            said.append(line)
            fcntl.flock(lock, fcntl.LOCK_UN)

        build_index(write_corpus(), tmp_path / "index", kind="bm25", say=say)

    assert said == [f"another build of {tmp_path / 'index'} is under way; waiting for its end"]


def test_bad_lines_stop_the_build_unless_they_are_counted(
    tmp_path: Path, write_corpus: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_corpus()
    source.write_bytes(
        source.read_bytes() + b'not json\n{"id": "9", "text": "caf\xe9"}\n{"id": "a5", "text": "fine"}\n'
    )

    with pytest.raises(InvalidInput, match=r"corpus\.jsonl:5: not JSON"):
        build_index(source, tmp_path / "index", kind="bm25")
    code = main([str(source), "--out", str(tmp_path / "index"), "--skip-bad-lines"])

    output = capsys.readouterr()
    assert code == 0
    assert "5 passages, 2 bad lines skipped" in output.out
    assert f"skipped {source}:5: not JSON" in output.err
    assert f"skipped {source}:6: not UTF-8 text" in output.err
    assert Library().open(tmp_path / "index", "c").manifest.skipped_lines == 2


# -- large files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def of_large_files(
    tmp_path: Path, write_corpus: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[str]]:
    """An index whose files all count as large, and the names of those that are hashed from now on."""
    monkeypatch.setattr(manifest_module, "_ALWAYS_HASHED_BYTES", 0)
    build_index(write_corpus(), tmp_path / "index", kind="bm25")
    hashed: list[str] = []

    def note(path: Path) -> str:
        hashed.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(manifest_module, "file_sha256", note)
    return tmp_path / "index", hashed


def test_a_large_file_is_not_hashed_again_where_it_was_built(of_large_files: tuple[Path, list[str]]) -> None:
    folder, hashed = of_large_files

    Library().open(folder, "c")

    assert hashed == []


def test_a_copied_large_file_is_hashed_once(tmp_path: Path, of_large_files: tuple[Path, list[str]]) -> None:
    folder, hashed = of_large_files
    shutil.copytree(folder, tmp_path / "copy")

    Library().open(tmp_path / "copy", "c")
    first = list(hashed)
    Library().open(tmp_path / "copy", "c")

    assert "passages.jsonl" in first
    assert hashed == first


def test_a_large_file_that_was_changed_is_refused_by_name(of_large_files: tuple[Path, list[str]]) -> None:
    folder, _ = of_large_files
    before = (folder / "passages.jsonl").stat()
    (folder / "passages.jsonl").write_bytes((folder / "passages.jsonl").read_bytes().replace(b"Italy", b"Spain"))
    os.utime(folder / "passages.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))  # hides nothing

    with pytest.raises(InvalidInput, match=r"passages\.jsonl: its sha256 is not the manifest's"):
        Library().open(folder, "c")


class _AsksForAKey(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        allowed = self.headers["Authorization"] == "Bearer open-sesame"
        rows = [{"index": n, "embedding": [1.0] + [0.0] * 383} for n in range(len(texts))]
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": rows} if allowed else {"error": "no key"}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url_that_asks_for_a_key() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _AsksForAKey) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_a_servers_key_is_sent_and_written_nowhere(
    tmp_path: Path, write_corpus: Callable[..., Path], url_that_asks_for_a_key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = ("--encoder", "minilm", "--encoder-url", url_that_asks_for_a_key)
    build = [str(write_corpus()), "--out", str(tmp_path / "built" / "index"), "--kind", "flat", *encoder]
    key_file = tmp_path / "key"
    key_file.write_text("open-sesame\n")

    assert main(build) == 1
    assert "HTTP 401" in capsys.readouterr().err
    assert main([*build, "--encoder-key-file", str(tmp_path / "nowhere")]) == 2
    assert "encoder_key_file: " in capsys.readouterr().err
    assert main([*build, "--encoder-key-file", str(key_file)]) == 0
    written = [path for path in (tmp_path / "built").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if b"open-sesame" in path.read_bytes()]
