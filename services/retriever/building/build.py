"""A corpus file -> an index folder.

    source --write_passages--> passages.jsonl, offsets.npy --> bm25 and/or vectors, codes --> manifest.json

Everything is written in a folder beside the place where it belongs, stage by stage, and moved there at the end: a
folder with a manifest is complete, and a build that was killed, wherever that was, goes on with the stage it was in.
Vectors come from a cache by content, so what was encoded once is not encoded again. Memory holds one block of the
corpus; besides that one shard of codes (`ivf`: all), or the vocabulary (`bm25`). Building what is there already is
instant.

`python -m services.retriever.building SOURCE --out DIR --kind bm25|flat|fp16|pqfs|rabitq|ivf|auto [--encoder NAME]`
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np

from searcher.contracts.errors import InvalidInput
from searcher.contracts.search import Recall
from services.retriever.building.corpus import BadLines, Progress, source_form, write_passages
from services.retriever.building.embeddings import EmbeddingCache
from services.retriever.building.kinds import (
    VectorKind,
    choose_kind,
    factory_of,
    num_lists,
    shard_rows_of,
    this_machine,
)
from services.retriever.building.recall import Trial, read_questions, sample_queries, tuned
from services.retriever.building.request import BuildOptions, Kind, Request, request_of
from services.retriever.building.workspace import (
    STAGES_FILE,
    building_folder,
    complete_index,
    finish_interrupted,
    only_builder,
    refuse_other_content,
    remove,
)
from services.retriever.encoders.card import EncoderCard
from services.retriever.encoders.export import encoder_folder
from services.retriever.encoders.known import EncoderChoice
from services.retriever.encoders.opening import open_encoder, try_out
from services.retriever.encoders.protocol import Encoder, Vectors
from services.retriever.index.bm25 import write_bm25
from services.retriever.index.dense import open_nearest, write_vectors
from services.retriever.index.exact import half_vectors, write_half_vectors
from services.retriever.index.layout import (
    BM25_FOLDER,
    CODES_FOLDER,
    ENCODER_FOLDER,
    HALF_VECTORS_FILE,
    OFFSETS_FILE,
    RERANKER_CARD_FILE,
    RERANKER_FOLDER,
    VECTORS_FILE,
)
from services.retriever.index.manifest import (
    MANIFEST_FILE,
    Bm25Facts,
    DenseFacts,
    FlatFacts,
    Fp16Facts,
    Golden,
    HybridFacts,
    IndexFacts,
    Manifest,
    QuantisedFacts,
    RerankerCard,
    SourceFacts,
    file_facts,
    note_verified,
)
from services.retriever.index.opening import open_index, reranked
from services.retriever.index.passages import PassageStore
from services.retriever.index.protocol import Matrix
from services.retriever.index.quantised import Quantised, train_codes, write_codes
from services.retriever.index.rerank import try_out_reranker

Block = TypeVar("Block", list[str], Vectors)
BLOCK_PASSAGES = 1_024
_GOLDEN_WORDS = 12
_TRAINING_ROWS = 65_536
_TRAINING_ROWS_PER_LIST = 64


def build_index(
    source: Path,
    out: Path,
    *,
    kind: Kind,
    encoder: EncoderChoice | str | None = None,
    options: BuildOptions | None = None,
    on_progress: Progress = lambda stage, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Index `source` into the folder `out`; return at once if it holds just that. Replaces an older index there.

    `encoder` is for all kinds but `bm25`; `auto` without one is `bm25`. Raises InvalidInput for a bad source, an
    unknown encoder, or an `out` that holds something else than an index; UpstreamUnavailable if a remote encoder stays
    away, after which the same build goes on where it was.
    """
    options = options or BuildOptions()
    if kind == "auto" and encoder is None:
        kind = "bm25"
        say("kind bm25: no encoder was named, so words are matched")
    if (kind == "bm25") != (encoder is None):
        raise InvalidInput(f"encoder: a {kind} index needs {'none' if kind == 'bm25' else 'one'}; got {encoder!r}")
    if kind == "bm25" and options.hybrid:
        raise InvalidInput("hybrid: joins words with vectors; name a kind of vector index and an encoder")
    if not source.is_file():
        raise InvalidInput(f"corpus: {source} is not a file")
    if options.queries:
        read_questions(options.queries)  # lest hours of encoding end at a line of theirs
    out = out.resolve()  # what a link leads to is replaced, not the link
    for name, kept in (("embeddings", options.embeddings), ("encoder_cache", options.encoder_cache)):
        if kept and kept.resolve().is_relative_to(out):
            raise InvalidInput(f"{name}: {kept} lies in {out}, which is replaced as a whole; name a folder elsewhere")
    out.parent.mkdir(parents=True, exist_ok=True)
    with only_builder(out, say):
        refuse_other_content(out)
        finish_interrupted(out)
        encoder_at = encoder and encoder_folder(encoder, options.encoder_cache or out.parent / ".encoders")
        request = request_of(
            source, kind, encoder_at or None, options, on_bytes=partial(on_progress, "hashing the corpus")
        )
        if (existing := complete_index(out)) and existing.request_sha256 == request.sha256:
            return existing
        num_threads = options.num_threads or len(os.sched_getaffinity(0))
        opened = partial(open_encoder, num_threads=num_threads, server_key=options.encoder_key)
        if encoder_at:
            try_out(opened(encoder_at))
        if options.reranker:
            try_out_reranker(options.reranker)
        with building_folder(out, request.sha256) as folder:
            build = _Build(
                source, folder, request, encoder_at or None, out, options, num_threads, opened, on_progress, say
            )
            return build.run()


@dataclass
class _Build:
    """The stages, in order. Each writes under another name and renames, so what has its name is whole."""

    source: Path
    folder: Path
    request: Request
    encoder_at: Path | None
    out: Path
    options: BuildOptions
    num_threads: int
    opened: Callable[[Path], Encoder]
    on_progress: Progress
    say: Callable[[str], None]

    def run(self) -> Manifest:
        skipped = self._write_passages()
        with PassageStore(self.folder) as passages:
            facts, recall = self._write_index(passages)
            query = " ".join(passages.searchable_texts(0, 1)[0].split()[:_GOLDEN_WORDS])
            index = open_index(self.folder, facts, encoder_of=self.opened, num_threads=self.num_threads)
            if card := self.request.reranker:
                self._once(RERANKER_FOLDER, lambda into: self._write_reranker(card, into))
                index = reranked(index, self.folder, card, passages=passages, num_threads=self.num_threads)
            _, scores_QK = index.search([query], 1)
            manifest = Manifest(
                source=SourceFacts(
                    name=self.source.name, sha256=self.request.source_sha256, form=source_form(self.source)
                ),
                num_passages=len(passages),
                index=facts,
                reranker=self.request.reranker,
                recall=recall,
                skipped_lines=skipped,
                request_sha256=self.request.sha256,
                golden=Golden(query=query, score=float(scores_QK[0, 0])),
                files=file_facts(self.folder, on_bytes=partial(self.on_progress, "hashing the index")),
            )
        note_verified(self.folder, manifest)
        unfinished = self.folder / f".{MANIFEST_FILE}.unfinished"
        unfinished.write_text(manifest.model_dump_json(indent=2))
        unfinished.rename(self.folder / MANIFEST_FILE)
        return manifest

    def _once(self, name: str, write: Callable[[Path], object]) -> Path:
        """The file or folder `name`, written now unless an earlier, killed build had finished it."""
        path, unfinished = self.folder / name, self.folder / f"{name}.unfinished"
        if not path.exists():
            remove(unfinished)
            write(unfinished)
            unfinished.rename(path)
        return path

    # -- passages -----------------------------------------------------------------------------------------------------

    def _write_passages(self) -> int:
        """The number of bad lines that were passed over."""
        if (self.folder / OFFSETS_FILE).exists() and "skipped_lines" in self._decided():
            self.say("going on with a build that was interrupted")
            return int(self._decided()["skipped_lines"])
        bad_lines = BadLines()
        write_passages(
            self.source,
            self.folder,
            on_progress=self.on_progress,
            on_bad_line=bad_lines if self.options.skip_bad_lines else None,
        )
        for line in bad_lines.first:
            self.say(f"skipped {line}")
        self._decide("skipped_lines", bad_lines.count)
        return bad_lines.count

    def _decided(self) -> dict[str, Any]:
        """What an interrupted build had found out or chosen, which holds for the one that goes on with it."""
        path = self.folder / STAGES_FILE
        decided: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return decided

    def _decide(self, name: str, value: object) -> None:
        unfinished = self.folder / f"{STAGES_FILE}.unfinished"
        unfinished.write_text(json.dumps(self._decided() | {name: value}))
        unfinished.rename(self.folder / STAGES_FILE)

    def _write_reranker(self, card: RerankerCard, into: Path) -> None:
        assert self.options.reranker is not None
        shutil.copytree(self.options.reranker, into)  # not by links: somebody may write another model into that folder
        (into / RERANKER_CARD_FILE).write_text(card.model_dump_json(indent=2))

    # -- indexes ------------------------------------------------------------------------------------------------------

    def _write_index(self, passages: PassageStore) -> tuple[IndexFacts, Recall | None]:
        if self.encoder_at is None or self.options.hybrid:
            bm25 = Bm25Facts()
            self._once(BM25_FOLDER, partial(self._write_bm25, passages, bm25))
        if self.encoder_at is None:
            return bm25, None
        encoder_at = self.encoder_at
        self._once(ENCODER_FOLDER, lambda into: _bring_along(encoder_at, into))
        dense, recall = self._write_dense(passages, self.opened(encoder_at))
        return (HybridFacts(dense=dense, bm25=bm25) if self.options.hybrid else dense), recall

    def _write_bm25(self, passages: PassageStore, facts: Bm25Facts, into: Path) -> None:
        blocks = _reporting("counting words", _blocks(passages), len(passages), self.on_progress)
        on_postings = partial(self.on_progress, "sorting by words")
        write_bm25(chain.from_iterable(blocks), into, facts=facts, on_postings=on_postings)

    def _write_dense(self, passages: PassageStore, encoder: Encoder) -> tuple[DenseFacts, Recall]:
        card, num_passages = encoder.card, len(passages)
        kind = self._vector_kind(num_passages, card.dim)
        with EmbeddingCache(self.options.embeddings or self.out.parent / ".embeddings", card) as cache:
            vectors = cache.encode_blocks(_blocks(passages), encoder)
            blocks = _reporting("encoding", vectors, num_passages, self.on_progress)
            vectors_ND: Matrix
            if kind == "fp16":
                path = self._once(
                    HALF_VECTORS_FILE,
                    lambda into: write_half_vectors(blocks, into, num_rows=num_passages, dim=card.dim),
                )
                vectors_ND = half_vectors(path, dim=card.dim)
            else:
                dtype = "float32" if kind == "flat" else self.options.refine_dtype
                self._once(
                    VECTORS_FILE,
                    lambda into: write_vectors(blocks, into, num_passages=num_passages, dim=card.dim, dtype=dtype),
                )
                vectors_ND = np.load(self.folder / VECTORS_FILE, mmap_mode="r")
        queries = read_questions(self.options.queries) if self.options.queries else sample_queries(passages)
        trial = Trial.of(encoder.encode_queries(queries), vectors_ND, of_questions=self.options.queries is not None)
        if kind == "flat" or kind == "fp16":
            facts: DenseFacts = FlatFacts(encoder=card) if kind == "flat" else Fp16Facts(encoder=card)
        else:
            facts = self._write_codes(kind, card, vectors_ND, trial)
        recall = trial.facts(open_nearest(self.folder, facts, num_threads=self.num_threads))
        self.say(_said(facts, recall))
        if recall.recall < self.options.recall and isinstance(facts, QuantisedFacts):
            self.say(
                f"recall is below the {self.options.recall} that were asked for; a more exact kind is flat or fp16"
            )
        return facts, recall

    def _vector_kind(self, num_passages: int, dim: int) -> VectorKind:
        kind = self.request.kind
        if kind == "auto" and "kind" not in self._decided():
            choice = choose_kind(num_passages, dim, this_machine())
            self.say(f"kind {choice.kind}: {choice.reason}")
            self._decide("kind", choice.kind)
        return cast(VectorKind, self._decided()["kind"] if kind == "auto" else kind)

    def _write_codes(
        self,
        kind: Literal["pqfs", "rabitq", "ivf"],
        card: EncoderCard,
        vectors_ND: Matrix,
        trial: Trial,
    ) -> QuantisedFacts:
        num_passages = len(vectors_ND)
        factory = factory_of(kind, num_passages, card.dim)
        lists = num_lists(num_passages) if kind == "ivf" else None

        def write(into: Path) -> None:
            self.on_progress("training codes", 0, 1)
            codes = train_codes(factory, training_sample(vectors_ND, lists))
            self.on_progress("training codes", 1, 1)
            starts = range(0, num_passages, BLOCK_PASSAGES)
            blocks: Iterator[Vectors] = (
                np.asarray(vectors_ND[start : start + BLOCK_PASSAGES], dtype=np.float32) for start in starts
            )
            blocks = _reporting("writing codes", blocks, num_passages, self.on_progress)
            write_codes(codes, blocks, into, shard_rows=shard_rows_of(kind, num_passages))

        path = self._once(CODES_FOLDER, write)
        index = Quantised(path, vectors_ND, candidates=1, num_probes=None, num_threads=self.num_threads)
        settings = tuned(index, trial, wanted=self.options.recall, num_lists=lists)
        return QuantisedFacts(
            kind=kind,
            dtype=self.options.refine_dtype,
            encoder=card,
            factory=factory,
            candidates=settings.candidates,
            num_probes=settings.num_probes,
        )


def _said(facts: DenseFacts, recall: Recall) -> str:
    of = "questions" if recall.queries == "questions" else "stretches of passages"
    settings = ""
    if isinstance(facts, QuantisedFacts):
        probes = f", {facts.num_probes} lists a query" if facts.num_probes else ""
        settings = f" with {facts.candidates} candidates a result{probes}"
    return f"recall@{recall.k} {recall.recall:.4f} against exact search, on {recall.num_queries} {of}{settings}"


def _blocks(passages: PassageStore) -> Iterator[list[str]]:
    for start in range(0, len(passages), BLOCK_PASSAGES):
        yield passages.searchable_texts(start, start + BLOCK_PASSAGES)


def _reporting(stage: str, blocks: Iterator[Block], total: int, on_progress: Progress) -> Iterator[Block]:
    done = 0
    for block in blocks:
        yield block
        done += len(block)
        on_progress(stage, done, total)


def training_sample(vectors_ND: Matrix, num_lists: int | None) -> Vectors:
    """Rows from all over the corpus, the same at every build."""
    wanted = max(_TRAINING_ROWS, _TRAINING_ROWS_PER_LIST * (num_lists or 0))
    rows = np.random.default_rng(0).choice(len(vectors_ND), size=min(wanted, len(vectors_ND)), replace=False)
    return np.asarray(vectors_ND[np.sort(rows)], dtype=np.float32)


def _bring_along(source: Path, folder: Path) -> None:
    """An index carries its encoder, so it can be copied anywhere; on one disk the files are shared by hard links."""

    def link_or_copy(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)

    shutil.copytree(source, folder, copy_function=link_or_copy)
