"""Recipe + weights -> the question to the evaluator: the same fixed sample, greedily, at every step of a run."""

import hashlib
from collections.abc import Sequence

from searcher.contracts.question import Question
from searcher.contracts.recipe import Recipe
from searcher.contracts.report import EvaluationRequest
from searcher.contracts.weights import WeightVersion


def evaluation_request(recipe: Recipe, weights: WeightVersion, questions: Sequence[Question]) -> EvaluationRequest:
    """Judged by the last stage's rules throughout, so that the curve is of one measure.

    The id follows from what is asked: a step repeated after a crash finds its evaluation done.
    """
    unnamed = EvaluationRequest(
        id="unnamed",
        title=f"{recipe.name}, step {weights.step}",
        questions=tuple(questions),
        plan=recipe.evaluation_plan,
        rules=recipe.stages[-1].rules,
        weights=weights.name,
    )
    if recipe.evaluation is not None and recipe.evaluation.alongside:
        unnamed = unnamed.model_copy(update={"version": weights})
    content = hashlib.sha256(unnamed.model_dump_json().encode()).hexdigest()
    return unnamed.model_copy(update={"id": f"{weights.run_id}-{weights.step:06d}-{content[:8]}"})
