"""What the evaluator counts. The API exports the first four, each worker the others."""

from prometheus_client import Counter, Gauge, Histogram

OPEN = Gauge(
    "searcher_evaluator_open",
    "Evaluations in hand. Queued above 0 for long: no worker runs, or all are busy with others.",
    ["state"],
)
IDLE_SECONDS = Gauge(
    "searcher_evaluator_idle_seconds",
    "Longest time that an open evaluation has waited for an answer. Rising: look at workers, then at rollout.",
)
FINISHED = Counter(
    "searcher_evaluator_finished",
    "Evaluations closed. State failed: GET /v1/evaluations names the reason of each.",
    ["state"],
)
RESENT = Counter(
    "searcher_evaluator_chunks_resent",
    "Chunks sent again because nobody kept their lease. Rising: workers die or rollout is down.",
)
ANSWERED = Counter(
    "searcher_evaluator_questions_answered", "Questions answered. Flat while evaluations are open: stuck."
)
CHUNK_SECONDS = Histogram(
    "searcher_evaluator_chunk_seconds",
    "Time from taking a chunk to its last answer and verdict. Close to the rollout timeout: make chunks smaller.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
)
OUTAGES = Counter(
    "searcher_evaluator_outages",
    "Chunks put back because rollout, or the model they are for, did not answer. Rising: look there; they wait.",
)
NOT_JUDGED = Counter(
    "searcher_evaluator_not_judged",
    "Answers that the judge gave no verdict on. Rising: look at the judge, then resume the evaluations.",
)
