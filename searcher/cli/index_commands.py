"""`searcher index …`: the commands' arguments and help. What they do is imported when they run."""

from pathlib import Path
from typing import Annotated

import typer

index_app = typer.Typer(help="Build what the retriever searches in.", no_args_is_help=True)


@index_app.command("build")
def build(
    corpus: Annotated[Path, typer.Argument(help="JSONL with id, title, text (or contents), or TSV; gzipped or not.")],
    out: Annotated[Path, typer.Option(help="Directory of the index.")],
    kind: Annotated[
        str, typer.Option(help="bm25 (words); flat, fp16, pqfs, rabitq, ivf (vectors); auto (what fits this machine).")
    ] = "bm25",
    encoder: Annotated[
        str | None, typer.Option(help="For vectors: a known name, e.g. minilm or bge-large-en-v1.5, or a folder.")
    ] = None,
    encoder_checkpoint: Annotated[
        Path | None, typer.Option(help="The model's Hugging Face files.", show_default="where they are kept")
    ] = None,
    encoder_backend: Annotated[
        str | None, typer.Option(help="onnx, torch or openai-http.", show_default="the encoder's own")
    ] = None,
    encoder_url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible server that encodes, e.g. http://127.0.0.1:8080/v1.")
    ] = None,
    encoder_key_file: Annotated[
        Path | None, typer.Option(help="File with the key that this server asks for.", show_default="no key")
    ] = None,
    query_prefix: Annotated[
        str | None, typer.Option(help="Goes before queries.", show_default="the encoder's own")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longer passages are cut.", min=8, show_default="the encoder's own")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Where vectors are kept by content.", show_default=".embeddings beside --out")
    ] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Match words as well, joined by rank.")] = False,
    reranker: Annotated[
        Path | None, typer.Option(help="Folder of a cross-encoder that orders the best anew.", show_default="none")
    ] = None,
    refine_dtype: Annotated[
        str, typer.Option(help="Of the vectors that decide in pqfs, rabitq and ivf: float32 or float16.")
    ] = "float32",
    recall: Annotated[float, typer.Option(help="That pqfs, rabitq and ivf are tuned to.", min=0.0, max=1.0)] = 0.99,
    queries: Annotated[
        Path | None,
        typer.Option(help="JSONL with questions to measure recall on.", show_default="words of the passages"),
    ] = None,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Count lines that are no passages instead of stopping there.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="Of the encoder.", min=1, show_default="all cores")] = None,
) -> None:
    """Passages -> an index directory. A build that was killed goes on where it was."""
    from searcher.cli import index

    more: dict[str, object] = {
        "--encoder-checkpoint": encoder_checkpoint,
        "--encoder-backend": encoder_backend,
        "--encoder-url": encoder_url,
        "--encoder-key-file": encoder_key_file,
        "--query-prefix": query_prefix,
        "--max-tokens": max_tokens,
        "--embeddings": embeddings,
        "--hybrid": hybrid,
        "--reranker": reranker,
        "--refine-dtype": refine_dtype,
        "--recall": recall,
        "--queries": queries,
        "--skip-bad-lines": skip_bad_lines,
        "--threads": threads,
    }
    index.build(corpus, out, kind=kind, encoder=encoder, more=more)
