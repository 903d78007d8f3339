"""What PyTorch's memory viewer is given."""

import json
import pickletools

import pytest

from planner.rehearse.replay import Modelled
from planner.rehearse.snapshot import snapshot, write_snapshot
from planner.units import MIB
from tests.rehearse.test_replay import make, recorded

# The opcodes of torch/utils/viz/MemoryViz.js, by pickletools' names.
VIEWER_READS = {
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "SHORT_BINUNICODE", "BINUNICODE", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT",
    "DICT", "SETITEM", "SETITEMS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
}  # fmt: skip


@pytest.fixture
def trace():
    books, trace, stream = recorded()
    with books.phase("forward"):
        weights = make(books, 1, 30 * MIB - 8, "weights")
        weights.site = "runtime/engine.py:12 step"
        make(books, 2, 1000, "activations")
        books.strike(1, weights)
        stream.number = 3
        make(books, 3, 5 * MIB, "buckets")
    return trace


def test_events_and_segments(trace):
    told = snapshot(trace, Modelled())
    (events,) = told["device_traces"]
    assert [event["action"] for event in events] == [
        *("segment_alloc", "alloc", "segment_alloc", "alloc"),
        *("free_requested", "free_completed", "segment_alloc", "alloc"),
    ]
    born, dead = events[1], events[4]
    assert (born["size"], born["category"], born["stream"]) == (30 * MIB - 8, "weights", 0)
    assert (dead["addr"], dead["size"]) == (born["addr"], born["size"])
    assert [frame["name"] for frame in born["frames"]] == ["step", "weights", "forward"]
    assert born["frames"][0]["filename"] == "deepspeed/runtime/engine.py"
    assert dead["frames"] == born["frames"]
    sizes = {each["total_size"]: each for each in told["segments"]}
    assert sorted(sizes) == [2 * MIB, 20 * MIB, 30 * MIB]
    assert [b["state"] for b in sizes[30 * MIB]["blocks"]] == ["inactive"]
    large = sizes[20 * MIB]
    assert (large["stream"], large["allocated_size"], large["segment_type"]) == (
        3,
        5 * MIB,
        "large",
    )
    small = sizes[2 * MIB]
    assert [b["requested_size"] for b in small["blocks"]] == [1000, 0]
    assert [b["size"] for b in small["blocks"]] == [1024, 2 * MIB - 1024]


def test_out_of_memory_is_the_last_event(trace):
    told = snapshot(trace, Modelled(capacity_bytes=31 * MIB))
    last = told["device_traces"][0][-1]
    assert (last["action"], last["size"], last["device_free"]) == ("oom", 2 * MIB, MIB)
    assert last["frames"][0]["name"] == "activations"


def test_json_and_pickle(trace, tmp_path):
    write_snapshot(trace, Modelled(), [tmp_path / "a.json", tmp_path / "a.pickle"])
    written = json.loads((tmp_path / "a.json").read_text())
    assert written == json.loads(json.dumps(snapshot(trace, Modelled())))
    content = (tmp_path / "a.pickle").read_bytes()
    assert {opcode.name for opcode, *_ in pickletools.genops(content)} <= VIEWER_READS


def test_every_rank_has_a_file_of_its_own(tmp_path):
    path = tmp_path / "trace.pickle"
    assert Modelled(snapshots=(path,)).snapshots_of(3) == (path,)
    many = Modelled(snapshots=(path,), many=True)
    assert many.snapshots_of(3) == (tmp_path / "trace-rank3.pickle",)
