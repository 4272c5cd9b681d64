"""A questions or corpus file -> what is in it, or the first line that is wrong."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from searcher.cli.console import console
from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import Question
from searcher.recipes import load_questions

QUESTION_KEYS = frozenset({"question"})
CORPUS_KEYS = frozenset({"text", "contents"})


def check(path: Path) -> None:
    first = _first_row(path)
    if first.keys() & QUESTION_KEYS:
        facts = question_facts(load_questions(path))
    elif first.keys() & CORPUS_KEYS:
        facts = corpus_facts(path)
    else:
        raise InvalidInput(f"{path}:1: neither `question` nor `text` is among its fields {sorted(first)}")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)


def question_facts(questions: list[Question]) -> dict[str, str]:
    hops = Counter("unknown" if q.hops is None else str(q.hops) for q in questions)
    texts = Counter(q.question for q in questions)
    return {
        "questions": f"{len(questions):,}",
        "hops": ", ".join(f"{key}: {count:,}" for key, count in sorted(hops.items())),
        "answers per question": f"{sum(len(q.answers) for q in questions) / len(questions):.2f}",
        "with gold passages": f"{sum(bool(q.gold_ids) for q in questions):,}",
        "asked more than once": f"{sum(count - 1 for count in texts.values()):,}",
    }


def corpus_facts(path: Path) -> dict[str, str]:
    """Raises InvalidInput with the line of a passage without text or of an id that occurs twice."""
    ids, texts = set[str](), Counter[int]()
    num_characters = num_titles = 0
    for number, row in _rows(path):
        text = row.get("text", row.get("contents"))
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput(f"{path}:{number}: `text` is missing or empty")
        name = str(row.get("id", number))
        if name in ids:
            raise InvalidInput(f"{path}:{number}: the id {name!r} occurs twice; ids must be unique")
        ids.add(name)
        texts[hash(text)] += 1
        num_characters += len(text)
        num_titles += bool(row.get("title"))
    return {
        "passages": f"{len(ids):,}",
        "with a title": f"{num_titles:,}",
        "characters per passage": f"{num_characters / len(ids):.0f}",
        "same text as another": f"{sum(count - 1 for count in texts.values()):,}",
    }


def _first_row(path: Path) -> dict[str, Any]:
    for _, row in _rows(path):
        return row
    raise InvalidInput(f"{path}: is empty")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InvalidInput(f"{path}:{number}: not a JSON object")
                    yield number, row
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{path}:{number}: not JSON: {error}") from None
    except (UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise InvalidInput(f"{path}: not UTF-8 text: {error}") from None
