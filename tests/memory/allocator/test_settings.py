import pytest

from planner.errors import SettingsError
from planner.memory.allocator.settings import Settings, read_settings
from planner.units import MIB


def test_nothing_is_the_defaults() -> None:
    assert read_settings("") == Settings()


def test_what_may_be_set() -> None:
    text = (
        "expandable_segments:True, max_split_size_mb:128,garbage_collection_threshold:0.8,"
        "max_non_split_rounding_mb:30,large_segment_size_mb:64,per_process_memory_fraction:0.5,"
        "roundup_power2_divisions:4,pinned_use_background_threads:True,backend:native"
    )
    assert read_settings(text) == Settings(
        expandable_segments=True,
        max_split_bytes=128 * MIB,
        garbage_collection_threshold=0.8,
        max_non_split_rounding_bytes=30 * MIB,
        large_segment_bytes=64 * MIB,
        per_process_memory_fraction=0.5,
        roundup_power2_divisions=(4,) * 16,
    )


# As torch 2.13 itself answers; tests/real/test_allocator_settings.py asks it.
DIVISIONS = [
    pytest.param("[256:1,512:2,1024:4,>:8]", [1] * 9 + [2, 4] + [8] * 5, id="documented"),
    pytest.param("[256:2,1024:4]", [2] * 9 + [0, 4] + [0] * 5, id="gap"),
    pytest.param("[64:8,128:2,>:0]", [8] * 7 + [2] + [0] * 8, id="off-at-the-end"),
]


@pytest.mark.parametrize(("value", "expected"), DIVISIONS)
def test_divisions_of_intervals(value: str, expected: list[int]) -> None:
    settings = read_settings(f"max_split_size_mb:64,roundup_power2_divisions:{value}")
    assert settings.roundup_power2_divisions == tuple(expected)
    assert settings.max_split_bytes == 64 * MIB


BROKEN = [
    ("max_split_size_mb:19", "at least 20"),
    ("max_split_size_mb:many", "'many' is no value"),
    ("large_segment_size_mb:10", "at least 11"),
    ("garbage_collection_threshold:1.2", "between 0 and 1"),
    ("per_process_memory_fraction:0", "above 0, up to 1"),
    ("roundup_power2_divisions:3", "a power of two"),
    ("roundup_power2_divisions:[300:2]", "a power of two"),
    ("expandable_segments:yes", "True or False"),
    ("backend:cudaMallocAsync", "only the native allocator"),
    ("foo:1", "choose from expandable_segments"),
    ("expandable_segments", "write key:value"),
    ("expandable_segments:True;max_split_size_mb:64", "True or False"),
]


@pytest.mark.parametrize(("text", "why"), BROKEN)
def test_what_pytorch_refuses_is_refused_with_the_mend(text: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        read_settings(text)
