"""What rollout counts."""

from prometheus_client import Counter, Gauge, Histogram

from searcher.contracts.trajectory import Trajectory

TRAJECTORIES = Counter(
    "searcher_rollout_trajectories",
    "Finished trajectories. A rising share of out_of_tokens: the plan's limits are too small, or the policy rambles.",
    ["stop_reason"],
)
TOKENS = Counter(
    "searcher_rollout_tokens",
    "Response tokens by source (policy, documents). Its rate for `policy` is the throughput of sampling.",
    ["source"],
)
SEARCHES = Histogram(
    "searcher_rollout_searches_per_trajectory",
    "Falls to 0 when the policy stops searching, nears the plan's limit when it only searches.",
    buckets=(0, 1, 2, 3, 4, 6, 8, 16, 32, 64),
)
TURNS = Counter("searcher_rollout_turns", "Turns that an engine finished.")
TURN_SECONDS = Histogram(
    "searcher_rollout_turn_seconds",
    "From asking for a turn to having it, waiting for engines and weight updates included. Add engines when it grows.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
)
RESENT = Counter(
    "searcher_rollout_turns_resent",
    "Turns sent again because their engine failed. Steady growth: an engine crashes or hangs, read its log.",
)
RETRIEVAL_SECONDS = Histogram(
    "searcher_rollout_retrieval_seconds",
    "One search as rollout sees it, retries included. If it rivals turn_seconds, the retriever needs replicas.",
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
DROPPED = Counter(
    "searcher_rollout_dropped",
    "Work thrown away and asked again, by the service that failed. Any growth is an outage of that service.",
    ["reason"],
)
GROUPS = Counter(
    "searcher_rollout_groups",
    "Groups delivered to the trainer; `dropped` says why one is empty. Anything but `none`: the run's tasks are wrong.",
    ["dropped"],
)
QUESTIONS_IN_FLIGHT = Gauge("searcher_rollout_questions_in_flight", "Questions of training runs held now.")
TRAJECTORIES_IN_FLIGHT = Gauge("searcher_rollout_trajectories_in_flight", "Trajectories being sampled now.")
WEIGHT_UPDATE_SECONDS = Histogram(
    "searcher_rollout_weight_update_seconds",
    "One engine's update: fetch, verify, pause, load, resume. Sampling stands still for most of it.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
WEIGHT_UPDATE_FAILURES = Counter(
    "searcher_rollout_weight_update_failures",
    "Updates that failed; repeated until they succeed. Growth: the announced file is missing or damaged, read the log.",
    ["engine"],
)
ENGINE_STATE = Gauge(
    "searcher_rollout_engine_state",
    "1 for the state an engine is in. `updating` for long: see weight_update_failures; `down`: start the engine.",
    ["engine", "state"],
)


def observe(trajectory: Trajectory) -> None:
    """Count a finished trajectory."""
    TRAJECTORIES.labels(trajectory.stop_reason.value).inc()
    SEARCHES.observe(len(trajectory.searches))
    for segment in trajectory.segments:
        TOKENS.labels(segment.source.value).inc(len(segment.token_ids))
