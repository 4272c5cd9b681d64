"""A response -> what its searching earns. Stage 1 pays for it; stage 2 leaves it to the answer."""

from services.reward.format_reward import published_tag_counts
from services.reward.response import Points, Response


def searched(points: float) -> Points:
    """For at least one search that the system really made; more earn nothing more."""
    return lambda response, errors: points if response.item.num_searches >= 1 else 0.0


def published_searched(points: float) -> Points:
    """The published stage-1 server: at least one search by the count of tags, and all of them in step."""
    return lambda response, errors: points if _tags_of_a_search(response) else 0.0


def really_searched_in_step(points: float) -> Points:
    """The paper's stage 1: the policy searched, and the tags say so too."""
    return lambda response, errors: points if response.item.num_searches >= 1 and _tags_of_a_search(response) else 0.0


def _tags_of_a_search(response: Response) -> bool:
    counts = published_tag_counts(response.solution)
    return min(counts) == max(counts) >= 1
