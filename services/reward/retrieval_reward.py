"""A group -> what its searching earns or costs. Stage 1 pays for it, stage 2 does not, a budget saves."""

from statistics import pstdev

from services.reward.answer_reward import f1_if_format_right, is_right
from services.reward.format_reward import published_tag_counts
from services.reward.response import Group, Points, Response, each


def searched(points: float) -> Points:
    """For at least one search that the system really made; more earn nothing more."""
    return each(lambda response: points if response.item.num_searches >= 1 else 0.0)


def fewest_searches(points: float) -> Points:
    """For the right answers with the fewest searches of all right ones: `points` per standard deviation of the right
    ones' searches, at most for two. So nobody earns anything where all right answers took equally many."""

    def earned(group: Group) -> list[float]:
        right = [is_right(response) for response in group.responses]
        counts = [response.item.num_searches for response in group.responses]
        spent = [count for count, is_it in zip(counts, right, strict=True) if is_it]
        if not spent:
            return [0.0] * len(counts)
        bonus = points * min(pstdev(spent), 2.0)
        return [bonus if is_it and count == min(spent) else 0.0 for count, is_it in zip(counts, right, strict=True)]

    return earned


def search_price(points: float) -> Points:
    """Each search costs `points`, all of them at most half of what the answer earns. A wrong answer pays nothing: the
    policy would unlearn to search where it needs it most."""
    return each(lambda response: -min(points * response.item.num_searches, 0.5 * f1_if_format_right(response)))


# ---------------------------------------------------------------------------------------------------------------------
# Published


def published_searched(points: float) -> Points:
    """The published stage-1 server: at least one search by the count of tags, and all of them in step."""
    return each(lambda response: points if _tags_of_a_search(response) else 0.0)


def really_searched_in_step(points: float) -> Points:
    """The paper's stage 1: the policy searched, and the tags say so too."""
    return each(lambda response: points if response.item.num_searches >= 1 and _tags_of_a_search(response) else 0.0)


def _tags_of_a_search(response: Response) -> bool:
    counts = published_tag_counts(response)
    return min(counts) == max(counts) >= 1
