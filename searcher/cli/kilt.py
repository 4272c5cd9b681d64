"""KILT pages -> R1-Searcher's TSV of 100-word passages, by the original rule, row for row.

    {"wikipedia_title": "A", "text": ["A\\n", "A (named …", …]}     ->     0 <tab> A   A A (named …

The paragraphs of a page are joined, list and section marks removed, and the words cut into windows of 100: no overlap,
no heed of sentences, the last one may be short. The first paragraph is the title, so the first window repeats it.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from searcher.contracts.errors import InvalidInput

WORDS_PER_PASSAGE = 100
_MARKS = ("BULLET::::", "Section::::")


def passages_of(page: dict[str, Any]) -> Iterator[str]:
    """The passages of a page, each after its title and three spaces. Raises KeyError or TypeError if it is no page."""
    title, text = page["wikipedia_title"], "".join(page["text"])
    if not isinstance(title, str):
        raise TypeError("wikipedia_title is no text")
    for mark in _MARKS:
        text = text.replace(mark, "")
    words = text.split()
    for start in range(0, len(words), WORDS_PER_PASSAGE):
        yield f"{title}   {' '.join(words[start : start + WORDS_PER_PASSAGE])}"


def split(pages: Path, out: Path) -> int:
    """Write the passages of all pages, numbered from 0, and return how many; each file may be gzipped (.gz).

    A file that is there is replaced only by a whole one. Raises InvalidInput with the line that is no page.
    """
    unfinished = out.with_name(f".{out.name}.unfinished")
    count = 0
    try:
        with _opened(unfinished, "wb", packed=out.suffix == ".gz") as target:
            for number, page in _pages(pages):
                try:
                    for passage in passages_of(page):
                        target.write(f"{count}\t{passage}\n".encode())
                        count += 1
                except (KeyError, TypeError, UnicodeEncodeError) as error:
                    raise InvalidInput(
                        f"{pages}:{number}: not a page with wikipedia_title and a list of text: {error!r}"
                    ) from None
        unfinished.rename(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _pages(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with _opened(path, "rb", packed=path.suffix == ".gz") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    page = json.loads(line)
                    if not isinstance(page, dict):
                        raise InvalidInput(f"{path}:{number}: a JSON {type(page).__name__}, not an object")
                    yield number, page
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidInput(f"{path}:{number}: not JSON: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(f"{path}: unreadable after line {number}: {error}") from None


def _opened(path: Path, mode: str, *, packed: bool) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, mode) if packed else path.open(mode))
