"""Corpus files -> passages -> a store of them.

source (JSONL or TSV)  --read_passages-->  SourcePassage, one at a time  --write_passages-->  PassageStore
"""

import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from searcher.contracts.errors import InvalidInput
from services.retriever.index.layout import OFFSETS_FILE, PASSAGES_FILE
from services.retriever.index.manifest import SourceForm

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); `total` is constant within a stage."""
BadLine = Callable[[str], None]
"""Called with file, line number and what is wrong there."""
Fields = tuple[str, str, str] | tuple[str, str, str, str]
"""id, title, text, and url where the source has one."""
_INT64 = struct.Struct("<q")
_HASHES_AT_ONCE = 1_000_000
_BAD_LINES_SHOWN = 10
_LINE_BREAKS_OR_TABS = re.compile(r"[\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True)
class SourcePassage:
    """A passage as its source has it; `line_number` counts from 1."""

    line_number: int
    id: str
    title: str
    text: str
    url: str = ""
    """Where the text was found; empty for most corpora. Passages of one page share it."""


# ---------------------------------------------------------------------------------------------------------------------
# Reading sources


def read_passages(
    source: Path,
    *,
    on_progress: Progress = lambda stage, done, total: None,
    on_bad_line: BadLine | None = None,
) -> Iterator[SourcePassage]:
    """Passages in the order of the file. Blank lines are skipped.

    Raises InvalidInput with file and line for anything that is not a passage; where `on_bad_line` is given, it gets
    that message and the line is passed over. A file that cannot be read to its end is an error in any case.
    """
    parse = _parser_for(source)
    num_bytes = source.stat().st_size
    with source.open("rb") as raw:
        lines = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if source.suffix == ".gz" else raw
        number = 0
        try:
            for number, line in enumerate(lines, start=1):
                if number % 1024 == 0:
                    on_progress("reading", min(raw.tell(), num_bytes), num_bytes)
                try:
                    passage = _passage(line, number, parse)
                except (UnicodeError, _NotAPassage) as error:
                    reason = f"not UTF-8 text: {error}" if isinstance(error, UnicodeError) else str(error)
                    if on_bad_line is None:
                        raise InvalidInput(f"{source}:{number}: {reason}") from None
                    on_bad_line(f"{source}:{number}: {reason}")
                    continue
                if passage:
                    yield passage
        except (gzip.BadGzipFile, zlib.error, EOFError, OSError) as error:
            raise InvalidInput(f"{source}: unreadable after line {number}: {error}") from None
    on_progress("reading", num_bytes, num_bytes)


def _passage(line: bytes, number: int, parse: Callable[[str], Fields]) -> SourcePassage | None:
    """None for a blank line."""
    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    return SourcePassage(number, *_checked(*parse(text))) if text.strip() else None


class _NotAPassage(ValueError):
    """Says what is wrong with a line; the reader adds file and number."""


def _parser_for(source: Path) -> Callable[[str], Fields]:
    if not source.is_file():
        raise InvalidInput(f"corpus: {source} is not a file")
    suffix = Path(source.name.removesuffix(".gz")).suffix
    if suffix == ".jsonl":
        return _parse_json
    if suffix == ".tsv":
        return _parse_tsv
    raise InvalidInput(f"corpus: {source.name} is neither .jsonl nor .tsv (each may be gzipped, .gz)")


def _checked(passage_id: str, title: str, text: str, url: str = "") -> tuple[str, str, str, str]:
    if not passage_id or _LINE_BREAKS_OR_TABS.search(passage_id):
        raise _NotAPassage(f"the id {passage_id!r} is empty or holds a tab or a line break")
    if not title.strip() and not text.strip():
        raise _NotAPassage(f"the passage {passage_id!r} has neither title nor text")
    (passage_id + title + text + url).encode()  # half a surrogate pair, written as \ud800, is valid JSON but no text
    return passage_id, title, text, url


def _parse_json(line: str) -> Fields:
    """`{"id", "title", "text"}`, or Search-R1's `{"id", "contents"}` with the quoted title as the first line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # the latter for brackets in brackets, some thousand deep
        raise _NotAPassage(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise _NotAPassage(f"a JSON {type(row).__name__}, not an object")
    passage_id = row.get("id", row.get("_id"))  # BEIR's name for it
    if isinstance(passage_id, int) and not isinstance(passage_id, bool):
        passage_id = str(passage_id)
    if "text" in row:
        title, text = _or_empty(row.get("title")), row["text"]
    elif isinstance(row.get("contents"), str):
        title, _, text = row["contents"].partition("\n")
        title = title.removeprefix('"').removesuffix('"')
    else:
        raise _NotAPassage(f'needs "id" and "text" (and "title"), or "id" and "contents"; has {sorted(row)}')
    if passage_id is None:
        raise _NotAPassage(f'has no "id"; has {sorted(row)}')
    url = _or_empty(row.get("url"))
    if not (isinstance(passage_id, str) and isinstance(title, str) and isinstance(text, str) and isinstance(url, str)):
        raise _NotAPassage('"id", "title", "text" and "url" must be strings')
    return passage_id, title, text, url


def _or_empty(value: object) -> object:
    return "" if value is None else value


def _parse_tsv(line: str) -> Fields:
    r"""R1-Searcher's `idx \t text`; text is `Title: <title> Text:  <text>` (HotpotQA) or `<title>   <text>` (KILT)."""
    passage_id, tab, text = line.partition("\t")
    if not tab:
        raise _NotAPassage("no tab: expected `idx <tab> text`")
    text = _without_csv_quotes(text)
    if _is_hotpotqa(text):
        title, _, text = text.removeprefix("Title: ").partition(" Text:")
        return passage_id, title, text.strip()
    title, gap, rest = text.partition("   ")
    return (passage_id, title, rest) if gap else (passage_id, "", text)


def source_form(source: Path) -> SourceForm:
    """By the first line of a TSV: a file is of one form throughout. Call it for sources that could be read."""
    if _parser_for(source) is _parse_json:
        return SourceForm.JSONL
    with gzip.open(source) if source.suffix == ".gz" else source.open("rb") as lines:
        for line in lines:
            text = _without_csv_quotes(line.decode("utf-8-sig", errors="replace").partition("\t")[2].strip())
            if text:
                return SourceForm.HOTPOTQA if _is_hotpotqa(text) else SourceForm.KILT
    return SourceForm.JSONL


def _is_hotpotqa(text: str) -> bool:
    return text.startswith("Title: ") and " Text:" in text


def _without_csv_quotes(text: str) -> str:
    """The published abstracts went through a CSV writer: `"He said ""no""."` is undone, `"Heroes" is a song` is not."""
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return text
    inside = text[1:-1]
    return inside.replace('""', '"') if '"' not in inside.replace('""', "") else text


class BadLines:
    """All are counted, the first are kept."""

    def __init__(self) -> None:
        self.count, self.first = 0, list[str]()

    def __call__(self, message: str) -> None:
        self.count += 1
        if len(self.first) < _BAD_LINES_SHOWN:
            self.first.append(message)


# ---------------------------------------------------------------------------------------------------------------------
# Into a store


def write_passages(source: Path, folder: Path, *, on_progress: Progress, on_bad_line: BadLine | None = None) -> int:
    """Write `source` into `folder` and return the number of passages. Raises InvalidInput if an id occurs twice.

    Offsets are written last: a folder that has them is complete. Memory holds one passage, whatever the corpus' size.
    """
    offset = num_passages = 0
    raw_offsets, raw_hashes = folder / "offsets.unfinished", folder / "ids.unfinished"
    with (
        (folder / PASSAGES_FILE).open("wb") as blob,
        raw_offsets.open("wb") as offsets,
        raw_hashes.open("wb") as id_hashes,
    ):
        offsets.write(_INT64.pack(0))
        for passage in read_passages(source, on_progress=on_progress, on_bad_line=on_bad_line):
            row = {"id": passage.id, "title": passage.title, "text": passage.text}
            if passage.url:
                row["url"] = passage.url
            offset += blob.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
            offsets.write(_INT64.pack(offset))
            id_hashes.write(_INT64.pack(hash(passage.id)))
            num_passages += 1
    if not num_passages:
        raise InvalidInput(f"corpus: {source} holds no passages")
    _refuse_duplicates(source, raw_hashes, tolerant=on_bad_line is not None)
    raw_hashes.unlink()
    np.save(folder / f"unfinished.{OFFSETS_FILE}", np.memmap(raw_offsets, dtype=np.int64, mode="r"))
    raw_offsets.unlink()
    (folder / f"unfinished.{OFFSETS_FILE}").rename(folder / OFFSETS_FILE)
    return num_passages


def _refuse_duplicates(source: Path, raw_hashes: Path, *, tolerant: bool) -> None:
    """Ids are compared by hash, sorted on disk; only where two are equal is the source read again."""
    hashes_N = np.memmap(raw_hashes, dtype=np.int64, mode="r+")
    hashes_N.sort()
    suspects = set[int]()
    for start in range(0, len(hashes_N), _HASHES_AT_ONCE):
        block = hashes_N[start : start + _HASHES_AT_ONCE + 1]
        suspects.update(block[1:][block[1:] == block[:-1]].tolist())
    first_seen: dict[str, int] = {}
    for passage in read_passages(source, on_bad_line=_ignore if tolerant else None) if suspects else ():
        if hash(passage.id) not in suspects:
            continue
        if passage.id in first_seen:
            raise InvalidInput(
                f"{source}:{passage.line_number}: the id {passage.id!r} was used in line {first_seen[passage.id]}; "
                "ids must be unique"
            )
        first_seen[passage.id] = passage.line_number


def _ignore(message: str) -> None: ...
