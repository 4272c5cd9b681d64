"""Files of questions or passages -> what is in them, what they share, or the first line that is wrong."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from rich.table import Table

from searcher.cli.console import console
from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import Question
from searcher.overlap import Shared, overlap
from searcher.questions import QUESTION_FIELDS, load_questions, rows

CORPUS_FIELDS = frozenset({"text", "contents"})


def check(path: Path) -> None:
    first = next(rows(path), None)
    if first is None:
        raise InvalidInput(f"{path}: is empty")
    if first.fields.keys() & set(QUESTION_FIELDS):
        facts = question_facts(load_questions(path))
    elif first.fields.keys() & CORPUS_FIELDS:
        facts = corpus_facts(path)
    else:
        raise InvalidInput(
            f"{first.where}: neither `question` nor `text` is among its fields {', '.join(sorted(first.fields))}"
        )
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)


def show_overlap(files: Sequence[Path], *, list_all: bool, as_json: bool) -> bool:
    """Print it for every pair; return whether there is any."""
    if len(files) < 2:
        raise InvalidInput(f"give two files or more to compare, not {len(files)}")
    questions = [load_questions(path) for path in files]
    found = {
        (first, second): overlap(questions[first], questions[second])
        for first, second in combinations(range(len(files)), 2)
    }
    if as_json:
        for (first, second), shared in found.items():
            print(json.dumps(_as_json(files[first], files[second], shared)))
    else:
        console.print(_overlap_table(files, found))
        for (first, second), shared in found.items() if list_all else ():
            console.print(f"\n{files[first]} and {files[second]}", soft_wrap=True, markup=False)
            for each in shared:
                line = f"  {each.first.id} = {each.second.id} (same {each.same}) {each.first.question}"
                console.print(line, soft_wrap=True, markup=False)
    return any(found.values())


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
    for row in rows(path):
        text = row.fields.get("text", row.fields.get("contents"))
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput(f"{row.where}: `text` is missing or empty")
        name = str(row.fields.get("id", row.number))
        if name in ids:
            raise InvalidInput(f"{row.where}: the id {name!r} occurs twice; ids must be unique")
        ids.add(name)
        texts[hash(text)] += 1
        num_characters += len(text)
        num_titles += bool(row.fields.get("title"))
    return {
        "passages": f"{len(ids):,}",
        "with a title": f"{num_titles:,}",
        "characters per passage": f"{num_characters / len(ids):.0f}",
        "same text as another": f"{sum(count - 1 for count in texts.values()):,}",
    }


def _overlap_table(files: Sequence[Path], found: dict[tuple[int, int], list[Shared]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "and"):
        table.add_column(column, overflow="fold")
    for column in ("same text", "same id only"):
        table.add_column(column, justify="right")
    for (first, second), shared in found.items():
        of_kind = Counter(each.same for each in shared)
        table.add_row(str(files[first]), str(files[second]), f"{of_kind['text']:,}", f"{of_kind['id']:,}")
    return table


def _as_json(first: Path, second: Path, shared: Sequence[Shared]) -> dict[str, object]:
    of_kind = Counter(each.same for each in shared)
    pairs = [[each.first.id, each.second.id] for each in shared]
    return {"a": str(first), "b": str(second), "text": of_kind["text"], "id": of_kind["id"], "ids": pairs}
