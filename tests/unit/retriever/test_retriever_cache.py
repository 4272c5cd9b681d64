import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.retriever.cache import HitCache, Hits


def hits() -> Hits:
    return Hits(np.array([0]), np.array([1.0], dtype=np.float32))


def test_the_answer_not_used_for_longest_is_forgotten_first() -> None:
    cache = HitCache(2)
    cache.put(("c", "first", 3), hits())
    cache.put(("c", "second", 3), hits())
    cache.get(("c", "first", 3))

    cache.put(("c", "third", 3), hits())

    assert cache.get(("c", "second", 3)) is None
    assert cache.get(("c", "first", 3)) is not None


def test_the_same_query_with_another_k_is_another_answer() -> None:
    cache = HitCache(2)
    cache.put(("c", "q", 3), hits())

    assert cache.get(("c", "q", 5)) is None


@given(max_entries=st.integers(0, 4), keys=st.lists(st.sampled_from("abcdefgh"), max_size=40))
def test_a_cache_never_grows_beyond_its_limit(max_entries: int, keys: list[str]) -> None:
    cache = HitCache(max_entries)

    for key in keys:
        cache.put(("c", key, 1), hits())

    assert len(cache) == min(max_entries, len(set(keys)))
