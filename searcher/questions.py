"""A question file as people have it -> questions: the one reader of evaluation, training and selection.

Read are JSONL, a JSON list (HotpotQA's and 2WikiMultiHopQA's originals), TriviaQA's JSON object, and CSV or TSV with a
header (Bamboogle, PopQA); plain or gzipped, UTF-8 with or without a byte order mark. The form is told from the content.

A row needs a question and its answer or answers. It may have an id, aliases of the answer, hops and gold passages.
"""

import csv
import gzip
import json
import math
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydantic import ValidationError

from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import Question
from searcher.qa.answer import normalize_answer

ID_FIELDS = ("id", "_id", "idx", "qid", "question_id", "QuestionId")
QUESTION_FIELDS = ("question", "Question")
ANSWER_FIELDS = ("answers", "golden_answers", "answer", "Answer", "possible_answers")
"""The first that a row has is taken: `answers` before `answer`, so that nothing accepted is lost."""
ALIAS_FIELDS = ("aliases", "answer_aliases")
"""Accepted beside the answer."""
MAX_ANSWERS = 256
"""What a `Question` holds."""

_UTF16 = "not UTF-8 but UTF-16; convert it: iconv -f UTF-16 -t UTF-8 IN > OUT"
_NOT_TEXT: Mapping[bytes, str] = {
    b"PAR1": "Parquet; write it as JSONL first: "
    "python -c \"import pandas; pandas.read_parquet('IN').to_json('OUT.jsonl', orient='records', lines=True)\"",
    b"PK\x03\x04": "a ZIP archive; unpack it first",
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
}


@dataclass(frozen=True)
class Row:
    """One row of a file, and what to call it in an error."""

    number: int
    where: str
    """`file:12` for a line, `file: item 12` for an element of a JSON list; both count from 1."""
    fields: dict[str, Any]


def load_questions(path: Path, *, corpus: str = "default", limit: int | None = None) -> list[Question]:
    """In the file's order. Raises InvalidInput with file, line and field for anything malformed.

    Where a row has no id, its number serves.
    """
    questions: list[Question] = []
    places: dict[str, str] = {}
    for row in rows(path):
        if limit is not None and len(questions) >= limit:
            break
        question = question_of(row, corpus=corpus)
        if question.id in places:
            raise InvalidInput(f"{row.where}: the id {question.id!r} occurs twice (see {places[question.id]})")
        places[question.id] = row.where
        questions.append(question)
    if not questions:
        raise InvalidInput(f"{path}: holds no questions")
    return questions


def balanced_sample(questions: Sequence[Question], count: int, *, seed: int) -> list[Question]:
    """A fixed sample with as many questions of each hop count as there are; all questions if there are no more."""
    by_hops: dict[int | None, list[Question]] = {}
    for question in random.Random(seed).sample(questions, len(questions)):
        by_hops.setdefault(question.hops, []).append(question)
    in_turn = chain.from_iterable(zip_longest(*(by_hops[hops] for hops in sorted(by_hops, key=str))))
    return [question for question in in_turn if question is not None][:count]


def question_of(row: Row, *, corpus: str = "default") -> Question:
    """Raises InvalidInput that names the row and the field as the file calls it."""
    text_field, text = _first(row, QUESTION_FIELDS)
    if isinstance(text, str) and not text.strip():
        raise InvalidInput(f"{row.where}: {text_field}: is blank")
    answer_field, answers = _answers(row)
    try:
        return Question(
            id=_id(row),
            question=text,
            answers=answers,
            hops=_hops(row.fields),
            gold_ids=row.fields.get("gold_ids") or (),
            corpus=corpus,
        )
    except ValidationError as error:
        names = {"question": text_field, "answers": answer_field}
        raise InvalidInput(f"{row.where}: {_explain(error, names)}") from None


def rows(path: Path) -> Iterator[Row]:
    """Every row, as it is read. Raises InvalidInput for a file that is missing, empty, no text, or cut off."""
    with _opened(path) as file:
        lines = _lines(path, file)
        first = next((line for line in lines if line[1].strip()), None)
        if first is None:
            raise InvalidInput(f"{path}: is empty")
        start, all_lines = first[1].lstrip()[:1], chain([first], lines)
        if start == "[" or (start == "{" and _is_whole_document(first[1])):
            yield from _json_rows(path, all_lines)
        elif start == "{":
            yield from _jsonl_rows(path, all_lines)
        else:
            yield from _table_rows(path, first[0], (line for _, line in all_lines))


# --- fields -----------------------------------------------------------------------------------------------------------


def _first(row: Row, names: Sequence[str]) -> tuple[str, Any]:
    for name in names:
        if name in row.fields:
            return name, row.fields[name]
    there = ", ".join(map(repr, row.fields)) or "nothing"
    raise InvalidInput(f"{row.where}: {names[0]}: is missing; the row has {there}")


def _id(row: Row) -> Any:
    given = next((row.fields[name] for name in ID_FIELDS if row.fields.get(name) not in (None, "")), row.number)
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise InvalidInput(f"{row.where}: id: expected text or a number, got {_short(given)}")
    return str(given)


def _answers(row: Row) -> tuple[str, Any]:
    """All accepted answers, each once, and the field they come from."""
    field, value = _first(row, ANSWER_FIELDS)
    here = f"{row.where}: {field}"
    if isinstance(value, dict):  # TriviaQA and SQuAD nest them
        value, aliases = _nested(here, value)
    else:
        if isinstance(value, str) and (field == "possible_answers" or (field != "answer" and value.startswith('["'))):
            value = _list_in_text(here, value)
        aliases = [alias for name in ALIAS_FIELDS for alias in _texts(f"{row.where}: {name}", row.fields.get(name))]
    answers = value if isinstance(value, list) else [value]
    if not answers:
        raise InvalidInput(f"{here}: is an empty list; a question needs at least one answer")
    for answer in answers:
        if not _is_answer(answer):
            raise InvalidInput(f"{here}: expected text or a list of texts, got {_short(value)}")
        if isinstance(answer, str) and not answer.strip():
            raise InvalidInput(f"{here}: is blank" if len(answers) == 1 else f"{here}: one of the answers is blank")
    return field, _at_most(MAX_ANSWERS, list(dict.fromkeys([*answers, *aliases])))


def _is_answer(value: Any) -> bool:
    """Numbers and booleans are written as text later; NaN and infinity answer nothing."""
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _nested(here: str, value: dict[str, Any]) -> tuple[Any, list[str]]:
    """TriviaQA's {Value, Aliases} (or its lower-case copy), SQuAD's {text: […]}."""
    for main, aliases in (("Value", "Aliases"), ("value", "aliases"), ("text", "")):
        if main in value:
            return value[main], _texts(f"{here}.{aliases}", value.get(aliases))
    raise InvalidInput(f"{here}: expected text, a list of texts or an object with `Value`, got {_short(value)}")


def _texts(here: str, value: Any) -> list[str]:
    """Aliases; a blank one accepts nothing and is left out."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(alias, str) for alias in value):
        raise InvalidInput(f"{here}: expected a list of texts, got {_short(value)}")
    return [alias for alias in value if alias.strip()]


def _list_in_text(here: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise InvalidInput(f"{here}: expected a JSON list, got {_short(text)}") from None


def _at_most(count: int, answers: list[Any]) -> list[Any]:
    """Beyond the limit, answers go that are equal to another one for every metric."""
    if len(answers) <= count:
        return answers
    distinct: dict[str, Any] = {}
    for answer in answers:
        distinct.setdefault(normalize_answer(str(answer)), answer)
    return list(distinct.values())


def _hops(fields: Mapping[str, Any]) -> Any:
    """As the row says; else MuSiQue's steps; else HotpotQA's and 2WikiMultiHopQA's number of supporting pages."""
    if fields.get("hops") is not None:
        return fields["hops"]
    metadata = fields.get("metadata")
    for source in (fields, metadata if isinstance(metadata, dict) else {}):
        steps = source.get("question_decomposition") or source.get("decomposition")
        if isinstance(steps, list) and steps:
            return len(steps)
        facts = source.get("supporting_facts")
        titles = facts.get("title") if isinstance(facts, dict) else facts
        if isinstance(titles, list) and titles:
            return len({str(title[0]) if isinstance(title, list) and title else str(title) for title in titles})
    return None


def _explain(error: ValidationError, names: Mapping[str, str]) -> str:
    problems = []
    for problem in error.errors():
        field, *inside = problem["loc"]
        place = ".".join(str(part) for part in (names.get(str(field), field), *inside))
        problems.append(f"{place}: {problem['msg']} (got {_short(problem['input'])})")
    return "; ".join(problems)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else f"{text[:60]}…"


# --- forms ------------------------------------------------------------------------------------------------------------


def _jsonl_rows(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    for number, line in lines:
        if line.strip():
            yield Row(number, f"{path}:{number}", _object(f"{path}:{number}", _parsed(path, line, first_line=number)))


def _json_rows(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    (first_line, first), *rest = lines
    document = _parsed(path, "".join([first, *(line for _, line in rest)]), first_line=first_line)
    items = document.get("Data", document.get("data")) if isinstance(document, dict) else document
    if not isinstance(items, list):
        raise InvalidInput(f"{path}: a JSON object without a list `Data`; expected a list of questions or JSONL")
    for number, item in enumerate(items, start=1):
        yield Row(number, f"{path}: item {number}", _object(f"{path}: item {number}", item))


def _table_rows(path: Path, first_line: int, lines: Iterable[str]) -> Iterator[Row]:
    header_line, rest = next(iter(lines := iter(lines))), lines
    delimiter = "\t" if "\t" in header_line else ","
    reader = csv.reader(chain([header_line], rest), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        if not set(header) & set(QUESTION_FIELDS):
            shown = _short(header_line.strip())
            raise InvalidInput(f"{path}:{first_line}: not JSON, nor a table whose header names `question`: {shown}")
        for number, cells in enumerate(reader, start=1):
            where = f"{path}:{first_line - 1 + reader.line_num}"
            if cells and len(cells) != len(header):
                raise InvalidInput(f"{where}: has {len(cells)} columns, the header has {len(header)}")
            if cells:
                yield Row(number, where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise InvalidInput(f"{path}:{first_line - 1 + reader.line_num}: not a table: {error}") from None


def _is_whole_document(line: str) -> bool:
    """Whether a file that starts with this line is one JSON object rather than one per line."""
    if not line.rstrip().endswith("}"):
        return True
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value.get("Data", value.get("data")), list) and not value.keys() & set(QUESTION_FIELDS)


def _parsed(path: Path, text: str, *, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"{path}:{first_line - 1 + error.lineno}"
        raise InvalidInput(f"{line}: not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}:{first_line}: not JSON: {error}") from None


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{where}: not a JSON object but {_short(value)}")
    return value


# --- bytes ------------------------------------------------------------------------------------------------------------


def _opened(path: Path) -> BinaryIO:
    """Gzip is told from the content: a name may lie."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such file") from None
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}") from None
    return cast(BinaryIO, gzip.open(path, "rb")) if start[:2] == b"\x1f\x8b" else path.open("rb")


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Numbered from 1, with their ends."""
    try:
        for number, line in enumerate(file, start=1):
            if number == 1:
                _refuse_other_forms(path, line)
            try:
                yield number, line.decode("utf-8").removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                place = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
                raise InvalidInput(
                    f"{path}:{number}: not UTF-8: {place}; if it is Windows-1252 or Latin-1: "
                    "iconv -f WINDOWS-1252 -t UTF-8 IN > OUT"
                ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidInput(f"{path}: damaged gzip: {error}") from None


def _refuse_other_forms(path: Path, first_line: bytes) -> None:
    for magic, name in _NOT_TEXT.items():
        if first_line.startswith(magic):
            raise InvalidInput(f"{path}: is {name}")
    if b"\0" in first_line:
        raise InvalidInput(f"{path}: not UTF-8 text: holds NUL bytes, so it is binary or UTF-16")
