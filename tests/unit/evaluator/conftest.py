"""Evaluated questions with few words."""

from collections.abc import Callable
from typing import Any

import pytest

from searcher.contracts.report import EvaluatedQuestion


@pytest.fixture
def row() -> Callable[..., EvaluatedQuestion]:
    def make(row_id: str, **fields: Any) -> EvaluatedQuestion:
        default: dict[str, Any] = {
            "question": f"Question {row_id}?",
            "answers": ("yes",),
            "hops": None,
            "answer": "yes",
            "em": 1.0,
            "cover_em": 1.0,
            "cover_em_strict": 1.0,
            "f1": 1.0,
            "reward": 1.0,
            "format_ok": True,
            "num_searches": 0,
            "queries": (),
            "evidence": None,
            "num_tokens": 10,
            "stop_reason": "answered",
            "response": "So. </think>\n\n<answer> yes </answer>",
        }
        return EvaluatedQuestion(id=row_id, **(default | fields))

    return make
