from hypothesis import given
from hypothesis import strategies as st
from trainer_toys import documents, group, policy, trajectory

from services.trainer.processes import join_groups, split_groups

ids = st.lists(st.integers(0, 2**31 - 1), max_size=6)
groups = st.lists(
    st.builds(
        lambda first, docs, second, text: group(
            [trajectory([1], [policy(first, text=text), documents(docs), policy(second)], reward=0.5)]
        ),
        ids,
        ids,
        ids,
        st.text(max_size=8),
    ),
    max_size=4,
)


@given(groups)
def test_groups_reach_the_other_processes_unchanged(drawn) -> None:
    assert split_groups(join_groups(drawn)) == drawn
