import pytest
from pydantic import ValidationError

from searcher.contracts.question import Question, RolloutRequest
from searcher.contracts.weights import WeightVersion, step_of


@pytest.mark.parametrize(
    ("field", "given", "read"),
    [
        ("answer", "Paris", ("Paris",)),
        ("answers", ["Paris", "City of Light"], ("Paris", "City of Light")),
        ("golden_answers", ["Paris"], ("Paris",)),
        ("answer", True, ("yes",)),
        ("answer", False, ("no",)),
        ("answer", 1984, ("1984",)),
    ],
)
def test_answers_are_read_in_every_form_people_have(field: str, given: object, read: tuple[str, ...]) -> None:
    assert Question.model_validate({"id": 7, "question": "?", field: given}).answers == read


@pytest.mark.parametrize("answer", ["", [], [""], None, {"a": 1}])
def test_a_question_without_an_answer_is_refused(answer: object) -> None:
    with pytest.raises(ValidationError):
        Question.model_validate({"id": "1", "question": "?", "answer": answer})


def test_a_request_is_bounded_by_its_number_of_trajectories() -> None:
    questions = [{"id": str(i), "question": "?", "answer": "a"} for i in range(512)]

    with pytest.raises(ValidationError, match="at most 4096"):
        RolloutRequest.model_validate({"questions": questions, "num_samples": 9})


def test_an_unknown_field_is_an_error_not_a_silent_default() -> None:
    with pytest.raises(ValidationError, match="temprature"):
        RolloutRequest.model_validate(
            {"questions": [{"id": "1", "question": "?", "answer": "a"}], "plan": {"temprature": 1}}
        )


def test_a_version_name_tells_its_step() -> None:
    version = WeightVersion(run_id="demo-7", step=42, location="file:///w", sha256="ab" * 32, num_bytes=1)

    assert version.name == "demo-7-abababab-000042"
    assert step_of(version.name) == 42
    assert step_of("default") == -1
