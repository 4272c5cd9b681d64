"""Labelled questions -> a JSONL that trains as it is and says of every row where its label comes from."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from searcher.selection.difficulty import Labelled
from searcher.selection.journal import Asking


def write_selection(path: Path, chosen: Sequence[Labelled], asking: Asking) -> None:
    """All of it or nothing: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for each in chosen:
            file.write(json.dumps(_row(each, asking), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _row(each: Labelled, asking: Asking) -> dict[str, Any]:
    question = each.question.model_dump(mode="json", exclude={"corpus"}, exclude_none=True)
    if not question["gold_ids"]:
        del question["gold_ids"]
    unused = {"recorded_in"} if asking.recorded_in is None else {"rules", "seed", "plan", "weights"}
    how = asking.model_dump(mode="json", exclude=unused)
    asked = {"rollouts": each.num_asked, "first_correct": each.first_correct, "at_most": how.pop("rollouts")}
    return {**question, "difficulty": each.difficulty.value, "selection": {**asked, **how}}
