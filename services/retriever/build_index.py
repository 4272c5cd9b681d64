"""A corpus file -> an index folder.

    source --write_passages--> passages.jsonl, offsets.npy --write_bm25 | write_vectors--> index --> manifest.json

Everything is written beside the place where it belongs and moved there at the end, so a folder with a manifest is
complete. Building what is there already is instant. Memory holds one block of passages (`flat`) or the corpus' word
numbers (`bm25`).

`python -m services.retriever.build_index SOURCE --out DIR --kind bm25|flat [--encoder minilm]`
"""

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Literal

from searcher.contracts.errors import InvalidInput
from services.retriever.corpus import PassageStore, Progress, file_sha256, write_passages
from services.retriever.encoder import OnnxEncoder, read_card
from services.retriever.export_encoder import KNOWN_MODELS, encoder_folder
from services.retriever.index import write_bm25, write_vectors
from services.retriever.library import ENCODER_FOLDER, Library
from services.retriever.manifest import (
    MANIFEST_FILE,
    Bm25Facts,
    FlatFacts,
    Golden,
    Manifest,
    SourceFacts,
    file_facts,
    read_manifest,
    verify,
)

BLOCK_PASSAGES = 1_024
_GOLDEN_WORDS = 12


def build_index(
    source: Path,
    out: Path,
    *,
    kind: Literal["bm25", "flat"],
    encoder: str | None = None,
    encoder_cache: Path | None = None,
    on_progress: Progress = lambda stage, done, total: None,
) -> Manifest:
    """Index `source` into the folder `out`; return at once if it holds just that. Replaces an older index there.

    `encoder` (`flat` only) is a known name, exported once into `encoder_cache` (default: `.encoders` beside `out`), or
    the path of an encoder folder. Raises InvalidInput for a bad source, an unknown encoder, or an `out` that holds
    something else than an index.
    """
    if (kind == "flat") != (encoder is not None):
        raise InvalidInput(f"encoder: a flat index needs one and a bm25 index none; got {encoder!r} for {kind}")
    if not source.is_file():
        raise InvalidInput(f"corpus: {source} is not a file")
    out.parent.mkdir(parents=True, exist_ok=True)
    with _lock(out):
        _refuse_other_content(out)
        origin = SourceFacts(name=source.name, sha256=file_sha256(source))
        encoder_at = encoder and encoder_folder(encoder, encoder_cache or out.parent / ".encoders")
        facts = FlatFacts(encoder=read_card(encoder_at)) if encoder_at else Bm25Facts()
        if (existing := _complete_index(out)) and (existing.source.sha256, existing.index) == (origin.sha256, facts):
            return existing
        with _new_folder(out) as folder:
            return _write(source, folder, origin, facts, encoder_at or None, on_progress)


def _write(
    source: Path,
    folder: Path,
    origin: SourceFacts,
    facts: Bm25Facts | FlatFacts,
    encoder_at: Path | None,
    on_progress: Progress,
) -> Manifest:
    num_passages = write_passages(source, folder, on_progress=on_progress)
    library = Library()
    with PassageStore(folder) as passages:
        blocks = _blocks(passages, num_passages)
        if isinstance(facts, FlatFacts):
            assert encoder_at is not None
            _bring_along(encoder_at, folder / ENCODER_FOLDER)
            encoder = OnnxEncoder(encoder_at, num_threads=library.num_threads)
            write_vectors(blocks, folder, num_passages=num_passages, encoder=encoder, on_progress=on_progress)
        else:
            write_bm25(chain.from_iterable(_reporting(blocks, num_passages, on_progress)), folder, facts=facts)
        query = " ".join(passages.searchable_texts(0, 1)[0].split()[:_GOLDEN_WORDS])
    _, scores_QK = library.index(folder, facts).search([query], 1)
    manifest = Manifest(
        source=origin,
        num_passages=num_passages,
        index=facts,
        golden=Golden(query=query, score=float(scores_QK[0, 0])),
        files=file_facts(folder),
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2))
    return manifest


def _blocks(passages: PassageStore, num_passages: int) -> Iterator[list[str]]:
    for start in range(0, num_passages, BLOCK_PASSAGES):
        yield passages.searchable_texts(start, start + BLOCK_PASSAGES)


def _reporting(blocks: Iterator[list[str]], num_passages: int, on_progress: Progress) -> Iterator[list[str]]:
    done = 0
    for texts in blocks:
        yield texts
        done += len(texts)
        on_progress("indexing", done, num_passages)


def _bring_along(encoder_at: Path, folder: Path) -> None:
    """An index carries its encoder, so it can be copied anywhere; on one disk the files are shared by hard links."""

    def link_or_copy(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)

    shutil.copytree(encoder_at, folder, copy_function=link_or_copy)


def _complete_index(folder: Path) -> Manifest | None:
    try:
        manifest = read_manifest(folder)
        verify(folder, manifest)
    except InvalidInput:
        return None
    return manifest


def _refuse_other_content(out: Path) -> None:
    if out.exists() and not (out / MANIFEST_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"out: {out} exists and is not an index; name another folder")


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Builders of one folder wait for each other; the second finds it done. The lock dies with its process."""
    with (out.parent / f".{out.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end of the block, and goes if the block fails."""
    building, old = (out.parent / f".{out.name}.{state}" for state in ("building", "old"))
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir()
    try:
        yield building
        if out.exists():
            out.rename(old)
        building.rename(out)
    finally:
        for leftover in (building, old):
            shutil.rmtree(leftover, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m services.retriever.build_index", description="Build an index.")
    parser.add_argument("source", type=Path, help="JSONL or TSV, each may be gzipped")
    parser.add_argument("--out", type=Path, required=True, help="folder of the index")
    parser.add_argument("--kind", choices=("bm25", "flat"), default="bm25")
    parser.add_argument("--encoder", help=f"for flat: {', '.join(KNOWN_MODELS)}, or an encoder folder")
    parser.add_argument("--encoder-cache", type=Path, help="where exported encoders are kept (default: beside --out)")
    options = parser.parse_args(arguments)
    try:
        with _progress_bar() as on_progress:
            manifest = build_index(
                options.source,
                options.out,
                kind=options.kind,
                encoder=options.encoder,
                encoder_cache=options.encoder_cache,
                on_progress=on_progress,
            )
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    num_bytes = sum(file.num_bytes for file in manifest.files.values())
    print(f"{options.out}: {manifest.index.kind}, {manifest.num_passages:,} passages, {num_bytes / 1e6:,.1f} MB")
    return 0


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """On stderr, with the time that is left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        "left",
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield on_progress


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by libgomp when faiss is loaded, see __main__
    sys.exit(main())
