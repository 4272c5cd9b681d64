"""`python -m services.retriever.building`: options in, a progress bar and what was decided out."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.retriever.building.build import build_index
from services.retriever.building.corpus import Progress
from services.retriever.building.options import (
    add_encoder_options,
    add_skip_bad_lines,
    at_least_one,
    encoder_choice,
    encoder_key,
    exit_code_of,
)
from services.retriever.building.request import KINDS, BuildOptions


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return exit_code_of(lambda: _build(options))


def _build(options: argparse.Namespace) -> None:
    with _progress_bar() as (on_progress, say):
        manifest = build_index(
            options.source,
            options.out,
            kind=options.kind,
            encoder=encoder_choice(options),
            options=BuildOptions(
                encoder_cache=options.encoder_cache,
                embeddings=options.embeddings,
                hybrid=options.hybrid,
                reranker=options.reranker,
                refine_dtype=options.refine_dtype,
                recall=options.recall,
                queries=options.queries,
                skip_bad_lines=options.skip_bad_lines,
                num_threads=options.threads,
                encoder_key=encoder_key(options),
            ),
            on_progress=on_progress,
            say=say,
        )
    num_bytes = sum(file.num_bytes for file in manifest.files.values())
    recall = f", recall@{manifest.recall.k} {manifest.recall.recall:.4f}" if manifest.recall else ""
    skipped = f", {manifest.skipped_lines:,} bad lines skipped" if manifest.skipped_lines else ""
    kind = manifest.index.kind
    print(f"{options.out}: {kind}, {manifest.num_passages:,} passages{skipped}, {num_bytes / 1e6:,.1f} MB{recall}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.retriever.building", description="Build an index.")
    parser.add_argument("source", type=Path, help="JSONL or TSV, each may be gzipped")
    parser.add_argument("--out", type=Path, required=True, help="folder of the index")
    parser.add_argument("--kind", choices=KINDS, default="bm25")
    add_encoder_options(parser, cache="beside --out")
    parser.add_argument("--embeddings", type=Path, help="where vectors are kept by content (default: beside --out)")
    parser.add_argument("--hybrid", action="store_true", help="match words as well, joined by rank")
    parser.add_argument("--reranker", type=Path, help="folder of a cross-encoder that orders the best anew")
    parser.add_argument("--refine-dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--recall", type=float, default=0.99, help="that a quantised index is tuned to (0.99)")
    parser.add_argument("--queries", type=Path, help="JSONL with questions to measure recall on")
    add_skip_bad_lines(parser)
    parser.add_argument("--threads", type=at_least_one, help="default: as many as the process may use cores")
    return parser


@contextmanager
def _progress_bar() -> Iterator[tuple[Progress, Any]]:
    """On stderr, with the time that is left; what is said goes above it."""
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

        yield on_progress, lambda line: bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by libgomp when faiss is loaded, see the service's
    sys.exit(main())
