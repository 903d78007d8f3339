"""The fold against a walk that keeps one dictionary per rank."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from planner.layout.ranks import PartitionIndex
from planner.memory.terms import Term
from planner.memory.timeline import EVERYONE, Timeline

INDICES = [PartitionIndex(dense, dense // 2) for dense in range(4)]

change = st.tuples(
    st.sampled_from(["", "forward", "backward"]),
    st.sampled_from(list(Term)),
    st.integers(-(10**12), 10**12),
    st.one_of(st.none(), st.tuples(st.integers(0, 4), st.integers(0, 4))),
    st.sampled_from(["dense", "expert"]),
)


def build(changes):
    timeline = Timeline()
    timeline.phase("init")
    for phase, term, delta, owners, group in changes:
        if phase:
            timeline.phase(phase)
        timeline.add(term, delta, EVERYONE if owners is None else owners, group)
    return timeline


def walked(changes, index):
    """Per phase: (peak, terms at the first highest point, end), one change after the other."""
    held = Counter()
    now = "init"
    phases = {"init": (0, {}, 0)}
    for phase, term, delta, owners, group in changes:
        if phase:
            now = phase
            if now not in phases or sum(held.values()) > phases[now][0]:
                phases[now] = (sum(held.values()), dict(held), 0)
        place = index.expert if group == "expert" else index.dense
        if owners is None or owners[0] <= place < owners[1]:
            held[term] += delta
        total = sum(held.values())
        if total > phases[now][0]:
            phases[now] = (total, dict(held), total)
        phases[now] = (*phases[now][:2], total)
    return phases


@given(st.lists(change, max_size=12), st.lists(change, max_size=12), st.booleans())
def test_what_is_booked_again_is_what_was_booked(before, changes, owned):
    before = [each if owned else (*each[:3], None, "dense") for each in before]
    changes = [("", *each[1:]) if owned else ("", *each[1:3], None, "dense") for each in changes]

    def add_all(timeline):
        for _, term, delta, owners, group in changes:
            timeline.add(term, delta, EVERYONE if owners is None else owners, group)

    plain, again = build(before), build(before)
    for name in ("first", "second", "third"):
        plain.phase(name)
        add_all(plain)
        again.phase(name)
        again.once("key", lambda: add_all(again))
    for index in INDICES:
        assert again.fold(index) == plain.fold(index)
    assert again.peaks(INDICES) == plain.peaks(INDICES)


@given(st.lists(change, max_size=30))
def test_the_fold_is_the_walk(changes):
    timeline = build(changes)
    for index in INDICES:
        expected = walked(changes, index)
        for peak in timeline.fold(index):
            top, terms, end = expected[peak.phase]
            assert peak.peak_bytes == top == sum(peak.terms.values())
            assert peak.terms == {term: size for term, size in terms.items() if size}
            assert peak.end_bytes == end == sum(peak.end_terms.values())


@given(st.lists(change, max_size=30))
def test_all_ranks_at_once_are_the_ranks_one_by_one(changes):
    timeline = build(changes)
    one_by_one = [max(p.peak_bytes for p in timeline.fold(index)) for index in INDICES]
    assert timeline.peaks(INDICES) == one_by_one


def test_what_everyone_frees_beside_what_some_keep_is_no_peak():
    timeline = Timeline()
    timeline.phase("forward")
    timeline.add(Term.ACTIVATIONS, 10)
    timeline.phase("backward")
    timeline.add(Term.ACTIVATIONS, -10)
    timeline.add(Term.OWNED_GRADIENTS, 5, (1, 2))
    timeline.phase("step")
    assert timeline.peaks(INDICES) == [10, 10, 10, 10]


def test_a_phase_ends_with_what_is_left():
    timeline = Timeline()
    timeline.phase("forward")
    timeline.add(Term.WEIGHTS, 7)
    timeline.spike(Term.TRANSIENT, 5)
    timeline.phase("backward")
    timeline.add(Term.WEIGHTS, -7)
    forward, backward = timeline.fold(PartitionIndex(0, 0))
    assert (forward.peak_bytes, forward.end_bytes) == (12, 7)
    assert (backward.peak_bytes, backward.end_bytes) == (7, 0)


def test_only_owners_see_a_change_that_has_owners():
    timeline = Timeline()
    timeline.phase("step")
    timeline.add(Term.OWNED_GRADIENTS, 10, (1, 3))
    timeline.add(Term.OWNED_GRADIENTS, 100, (0, 1), "expert")
    peaks = [timeline.fold(index)[0].peak_bytes for index in INDICES]
    assert peaks == [100, 110, 10, 0]
