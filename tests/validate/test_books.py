"""Books of storages, without torch."""

import pytest

from planner.validate.books import HOST, OTHER, Books


def opened(books, key, size, label=OTHER):
    entry = books.open(key)
    entry.label = label
    books.resize(entry, size)
    return entry


def test_the_terms_at_the_peak_are_those_that_were_alive_then():
    books = Books()
    opened(books, 1, 100, "weights")
    with books.phase("forward"):
        short = opened(books, 2, 70, "transient")
        books.strike(2, short)
        opened(books, 3, 50, "activations")
    (span,) = books.readings
    assert (span.start_bytes, span.peak_bytes, span.end_bytes) == (100, 170, 150)
    assert span.peak_terms == {"transient": 70, "weights": 100}
    assert span.end_terms == {"activations": 50, "weights": 100}


def test_a_name_found_at_the_end_counts_for_the_whole_phase():
    books = Books()

    def naming(phase, alive):
        for entry in alive:
            entry.label = f"named in {phase}"

    books.naming = naming
    with books.phase("init"):
        opened(books, 1, 10)
        short = opened(books, 2, 5)
        books.strike(2, short)
    assert books.readings[0].peak_terms == {"named in init": 10, OTHER: 5}


def test_what_lies_on_the_host_raises_no_peak():
    books = Books()
    with books.phase("step"):
        host = opened(books, 1, 1000, HOST)
        opened(books, 2, 10, "weights")
        books.strike(1, host)
        short = opened(books, 3, 20, "step_copies")
        books.strike(3, short)
    (span,) = books.readings
    assert (span.start_bytes, span.peak_bytes, span.end_bytes) == (0, 30, 10)
    assert span.peak_terms == {"step_copies": 20, "weights": 10}


def test_what_turns_out_to_be_the_hosts_is_no_longer_counted():
    books = Books()
    entry = opened(books, 1, 1000, "init_copies")
    opened(books, 2, 10, "weights")
    opened(books, 3, 500, HOST)
    assert books.now_bytes == 1010
    books.rename(entry, HOST)
    assert books.now_bytes == 10
    books.resize(entry, 400)
    assert books.now_bytes == 10
    books.rename(entry, "weights")
    assert books.now_bytes == 410


def test_a_storage_that_shrinks_is_counted_at_its_new_size():
    books = Books()
    with books.phase("init"):
        entry = opened(books, 1, 64, "weights")
        books.resize(entry, 0)
        books.resize(entry, 16)
    (span,) = books.readings
    assert (span.peak_bytes, span.end_bytes) == (64, 16)


def test_an_address_used_again_is_another_storage():
    books = Books()
    old = opened(books, 1, 10)
    new = opened(books, 1, 30)
    books.strike(1, old)
    assert books.now_bytes == 30
    assert books.find(1) is new


def test_a_phase_that_fails_is_read_up_to_there():
    books = Books()
    with pytest.raises(ZeroDivisionError), books.phase("forward"):
        opened(books, 1, 8 // (opened(books, 2, 8, "activations").size - 8))
    assert books.readings[0].end_terms == {"activations": 8}
