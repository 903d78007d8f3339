"""From the books to the allocator, without torch."""

from planner.memory.allocator.caching import CachingAllocator
from planner.memory.allocator.settings import DEFAULTS
from planner.rehearse.replay import Modelled, replay, with_reserved
from planner.rehearse.trace import Kind, Trace
from planner.units import MIB
from planner.validate.books import Books
from planner.validate.job import RankResult, Reading


class Stream:
    number = 0


def recorded():
    """Books that tell a trace, and the stream on which its tensors are made."""
    stream = Stream()
    trace = Trace(stream=lambda: stream.number)
    trace.books = books = Books(recorder=trace)
    return books, trace, stream


def make(books, key, size, label="other"):
    entry = books.open(key)
    entry.label = label
    books.resize(entry, size)
    return entry


def result_of(books):
    readings = tuple(Reading(step=0, **span._asdict()) for span in books.readings)
    return RankResult(rank=0, outcome="done", readings=readings)


def test_each_phase_has_the_most_that_was_reserved_in_it():
    books, trace, _ = recorded()
    with books.phase("forward"):
        first = make(books, 1, 30 * MIB)
        books.strike(1, first)
        make(books, 2, 24 * MIB)  # in the place of the first, 6 MiB stay free
    with books.phase("backward"):
        make(books, 3, 12 * MIB)
    result = with_reserved(result_of(books), trace, Modelled())
    assert [each.peak_bytes for each in result.readings] == [30 * MIB, 36 * MIB]
    assert [each.reserved_bytes for each in result.readings] == [30 * MIB, 42 * MIB]
    assert result.refused is None


def test_a_storage_that_changes_its_size_is_allocated_anew_before_the_old_one_goes():
    books, trace, _ = recorded()
    entry = make(books, 1, 30 * MIB)
    books.resize(entry, 40 * MIB)
    books.resize(entry, 0)
    books.resize(entry, 30 * MIB)
    assert [(move.kind, move.number) for move in trace.moves] == [
        (Kind.ALLOCATE, 0),
        (Kind.ALLOCATE, 1),
        (Kind.FREE, 0),
        (Kind.FREE, 1),
        (Kind.ALLOCATE, 2),
    ]


def test_streams_keep_their_blocks_and_wait_for_each_other():
    books, trace, stream = recorded()
    with books.phase("backward"):
        bucket = make(books, 1, 30 * MIB)
        trace.used(1, 7)
        trace.used(99, 7)  # a storage that is not booked
        books.strike(1, bucket)
        make(books, 2, 30 * MIB)
        stream.number = 7
        make(books, 3, 30 * MIB)
    with books.phase("step"):
        trace.synchronized(7)
        stream.number = 0
        make(books, 4, 30 * MIB)
    late = CachingAllocator(prompt=False)
    assert replay(trace, late).peak_reserved_bytes == [90 * MIB, 90 * MIB]
    prompt = CachingAllocator()
    assert replay(trace, prompt).peak_reserved_bytes == [60 * MIB, 90 * MIB]
    readings = with_reserved(result_of(books), trace, Modelled()).readings
    assert [each.reserved_bytes for each in readings] == [60 * MIB, 90 * MIB]
    assert [each.reserved_high_bytes for each in readings] == [90 * MIB, 90 * MIB]


def test_an_emptied_cache_is_empty():
    books, trace, _ = recorded()
    with books.phase("init"):
        books.strike(1, make(books, 1, 30 * MIB))
        trace.emptied()
    with books.phase("forward"):
        make(books, 2, 40 * MIB)
    assert replay(trace, CachingAllocator()).peak_reserved_bytes == [30 * MIB, 40 * MIB]


def test_the_allocation_that_does_not_fit_is_told_with_its_label():
    books, trace, _ = recorded()
    with books.phase("forward"):
        make(books, 1, 60 * MIB, "weights")
    with books.phase("backward"):
        make(books, 2, 31 * MIB, "gradients")
    modelled = Modelled(settings=DEFAULTS, capacity_bytes=90 * MIB)
    result = with_reserved(result_of(books), trace, modelled)
    refused = result.refused
    assert (refused.phase, refused.label) == ("backward", "gradients")
    assert (refused.wanted_bytes, refused.allocated_bytes) == (32 * MIB, 60 * MIB)
    assert [each.reserved_bytes for each in result.readings] == [60 * MIB, None]
    assert result.outcome == "done"  # the engine itself went on
