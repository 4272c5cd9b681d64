"""What the reward service counts. Labels are names of rule sets and checks, so they are bounded."""

from collections.abc import Sequence

from prometheus_client import Counter, Histogram

from searcher.contracts.score import Score

SCORES = Counter(
    "searcher_reward_scores",
    "Trajectories scored. Flat while a run is active means: rollout finishes nothing; see what it drops and waits for.",
    ["rules"],
)
UNANSWERED = Counter(
    "searcher_reward_unanswered",
    "Trajectories without an answer. A rising share means: turns are cut short (raise max_tokens_per_turn "
    "or max_context_tokens), or the policy learns to avoid answering.",
    ["rules"],
)
FORMAT_ERRORS = Counter(
    "searcher_reward_format_errors",
    "Failed format checks. One check rising against the others names the habit that the policy is picking up; read "
    "some trajectories that fail it.",
    ["rules", "check"],
)
POINTS = Histogram(
    "searcher_reward_points",
    "Total reward of a trajectory. All mass in one bucket means: groups have no spread, so they teach nothing.",
    ["rules"],
    buckets=(-2, -1, -0.5, 0, 0.2, 0.4, 0.6, 0.8, 1, 1.5, 2),
)
GROUP_SECONDS = Histogram(
    "searcher_reward_group_seconds",
    "Time to score one group. Above 0.1 s means: responses are far longer than expected (bound rollout's tokens), or, "
    "for rules that ask others, that those are slow.",
    ["rules"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)
VERDICTS = Counter(
    "searcher_reward_verdicts",
    "What the judge made of answers. Any not_judged means: it is slow, down or refuses, and whole groups earn their F1 "
    "instead; the service's log says why.",
    ["verdict"],
)
REFUSED_DROPIN = Counter(
    "searcher_reward_refused_dropin",
    "Requests to /get_reward that cannot be scored. Their trainer asks again up to a hundred times and then dies; the "
    "service's log says which question or prompt is unknown.",
)


def observe(rules: str, scores: Sequence[Score]) -> None:
    SCORES.labels(rules).inc(len(scores))
    points = POINTS.labels(rules)
    for score in scores:
        points.observe(score.total)
        if score.answer is None:
            UNANSWERED.labels(rules).inc()
        for check in score.format_errors:
            FORMAT_ERRORS.labels(rules, check).inc()
