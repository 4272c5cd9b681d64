"""A batch and its report -> the line of metrics.jsonl, under the names that users of TRL and verl know."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, pstdev

from searcher.contracts.experience import ScoredGroup
from searcher.contracts.report import Report
from searcher.contracts.score import Score
from searcher.contracts.trajectory import Source, StopReason, Trajectory
from services.trainer.engine import StepReport

Figures = dict[str, float]


def score_of(trajectory: Trajectory) -> Score:
    assert trajectory.score is not None, f"trajectory {trajectory.id} has no score"
    return trajectory.score


def rewards_of(groups: Sequence[ScoredGroup]) -> list[list[float]]:
    """Per group, per sample."""
    return [[score_of(trajectory).total for trajectory in group.trajectories] for group in groups]


def search_rate(groups: Sequence[ScoredGroup]) -> float:
    return fmean(bool(trajectory.searches) for group in groups for trajectory in group.trajectories)


def format_rate(groups: Sequence[ScoredGroup]) -> float:
    return fmean(score_of(trajectory).format_ok for group in groups for trajectory in group.trajectories)


def batch_figures(groups: Sequence[ScoredGroup], *, step: int) -> Figures:
    """What the trajectories say. `step` is that of the weights which learn from them: staleness counts from it."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    rewards = rewards_of(groups)
    lengths = [trajectory.num_policy_tokens for trajectory in trajectories]
    return {
        "reward": fmean(reward for group in rewards for reward in group),
        "reward_std": fmean(pstdev(group) for group in rewards),
        "frac_reward_zero_std": fmean(max(group) == min(group) for group in rewards),
        "completions/mean_length": fmean(lengths),
        "completions/max_length": float(max(lengths)),
        "completions/mean_length_with_documents": fmean(len(trajectory.token_ids) for trajectory in trajectories),
        "completions/clipped_ratio": fmean(t.stop_reason is StopReason.OUT_OF_TOKENS for t in trajectories),
        "search_rate": search_rate(groups),
        "format_rate": format_rate(groups),
        "searches_per_question": fmean(len(trajectory.searches) for trajectory in trajectories),
        **_means({part: [score_of(t).parts.get(part, 0.0) for t in trajectories] for part in _parts(trajectories)}),
        **_answers(trajectories),
        **_staleness(trajectories, step),
    }


def report_figures(report: StepReport) -> Figures:
    """What the optimiser says; means over the step's updates."""
    mean = {name: fmean(asdict(update)[name] for update in report.updates) for name in asdict(report.updates[0])}
    return {
        "loss": mean["loss"],
        "grad_norm": fmean(report.grad_norms),
        "learning_rate": report.learning_rate,
        "entropy": mean["entropy"],
        "kl": mean["reference_kl"],
        "policy_kl": mean["policy_kl"],
        "clip_ratio/region_mean": mean["clip_fraction"],
        "sampling/sampling_logp_difference/mean": mean["logprob_difference_mean"],
        "sampling/sampling_logp_difference/max": max(update.logprob_difference_max for update in report.updates),
        "sampling/importance_sampling_ratio/mean": mean["importance_mean"],
        "sampling/importance_sampling_ratio/capped": mean["importance_capped"],
    }


def evaluation_figures(report: Report) -> Figures:
    overall = report.overall
    return {
        "eval/f1": overall.f1,
        "eval/em": overall.em,
        "eval/cover_em": overall.cover_em,
        "eval/search_rate": overall.search_rate,
        "eval/format_rate": overall.format_rate,
        "eval/searches_per_question": overall.searches_mean,
        **{f"eval/f1_{hops}hop": metrics.f1 for hops, metrics in report.by_hops.items()},
        **{f"eval/em_{hops}hop": metrics.em for hops, metrics in report.by_hops.items()},
    }


def num_tokens(groups: Sequence[ScoredGroup]) -> int:
    """Prompts, documents and policy text: everything that goes through the model."""
    return sum(len(t.prompt_ids) + len(t.token_ids) for group in groups for t in group.trajectories)


def _parts(trajectories: Sequence[Trajectory]) -> list[str]:
    return sorted({part for trajectory in trajectories for part in score_of(trajectory).parts})


def _means(values: Mapping[str, Sequence[float]]) -> Figures:
    return {f"rewards/{part}/mean": fmean(numbers) for part, numbers in values.items()}


def _answers(trajectories: Sequence[Trajectory]) -> Figures:
    figures = {
        "f1": fmean(score_of(trajectory).f1 for trajectory in trajectories),
        "em": fmean(score_of(trajectory).em for trajectory in trajectories),
    }
    for hops in sorted({t.question.hops for t in trajectories if t.question.hops is not None}):
        these = [trajectory for trajectory in trajectories if trajectory.question.hops == hops]
        figures[f"f1_{hops}hop"] = fmean(score_of(trajectory).f1 for trajectory in these)
        figures[f"searches_{hops}hop"] = fmean(len(trajectory.searches) for trajectory in these)
    return figures


def _staleness(trajectories: Sequence[Trajectory], step: int) -> Figures:
    """Optimiser steps between a token's weights and the weights that learn from it."""
    ages = [
        step - weight_step
        for trajectory in trajectories
        for segment in trajectory.segments
        if segment.source is Source.POLICY
        for weight_step in segment.weight_steps
        if weight_step >= 0
    ]
    return {"staleness/mean": fmean(ages) if ages else 0.0, "staleness/max": float(max(ages, default=0))}
