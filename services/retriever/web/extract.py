"""One page -> its main text. As a script: pages on stdin, texts on stdout, until stdin ends. extractor.py runs it.

It imports nothing of ours, so that a page that kills it takes nothing along.

    stdin   length of the content type and of the page (two big-endian 32-bit numbers), then both
    stdout  length of the text, then the text; once at start an empty one: ready
"""

import codecs
import os
import re
import resource
import struct
import sys
from contextlib import suppress
from typing import BinaryIO

MAX_TEXT_CHARACTERS = 200_000
"""Of a page that is a book, the beginning."""
MAX_MEMORY_BYTES = 2 * 1024**3
_NICENESS = 5
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE | re.ASCII)
_NEVER_A_PAGES = frozenset({"idna", "punycode", "undefined", "utf-7", "unicode-escape", "raw-unicode-escape"})
"""Python knows them, browsers do not; some decode in quadratic time."""


def main_text(page: bytes, content_type: str) -> str:
    """What a reader came for, without navigation, comments and advertisements; "" if nothing is found."""
    document = _decoded(page, content_type)
    if content_type.lower().lstrip().startswith("text/plain"):
        text = document if isinstance(document, str) else document.decode("utf-8", "replace")
    else:
        import trafilatura  # half a second

        text = trafilatura.extract(document, include_comments=False, favor_recall=True) or ""
    return text[:MAX_TEXT_CHARACTERS].encode("utf-8", "replace").decode().replace("\x00", "").strip()


def _decoded(page: bytes, content_type: str) -> str | bytes:
    """Bytes where the server does not say how, or names what decodes no page: the page may say better."""
    charset = _CHARSET.search(content_type)
    if charset is not None:
        with suppress(LookupError):
            if codecs.lookup(charset.group(1)).name not in _NEVER_A_PAGES:
                return page.decode(charset.group(1), "replace")
    return page


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    os.nice(_NICENESS)
    pages, texts = sys.stdin.buffer, sys.stdout.buffer
    main_text(b"<p>warm</p>", "text/html")
    _say(texts, "")
    while header := pages.read(8):
        kind_bytes, page_bytes = struct.unpack(">II", header)
        content_type, page = pages.read(kind_bytes).decode("latin-1"), pages.read(page_bytes)
        _say(texts, main_text(page, content_type))


def _say(texts: BinaryIO, text: str) -> None:
    content = text.encode()
    texts.write(struct.pack(">I", len(content)) + content)
    texts.flush()


if __name__ == "__main__":
    main()
