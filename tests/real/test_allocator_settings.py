"""The installed torch's own reading of PYTORCH_ALLOC_CONF, beside the planner's."""

import ctypes
from pathlib import Path

import pytest

from planner.errors import SettingsError
from planner.memory.allocator.settings import read_settings
from planner.units import MIB

pytestmark = pytest.mark.real

TEXTS = [
    "",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:[64:8,128:2,256:4,512:2,1024:4,>:1]",
    "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]",
    "roundup_power2_divisions:[256:2,1024:4]",
    "roundup_power2_divisions:[>:8]",
    "roundup_power2_divisions:[131072:2]",
    "roundup_power2_divisions:3",
    "roundup_power2_divisions:[3:2]",
    "max_split_size_mb:20",
    "max_split_size_mb:19",
    "max_non_split_rounding_mb:19",
    "large_segment_size_mb:11",
    "large_segment_size_mb:10",
    "garbage_collection_threshold:0.9",
    "garbage_collection_threshold:1.0",
    "expandable_segments:True",
    "expandable_segments:1",
]


def of_torch():
    """AcceleratorAllocatorConfig::roundup_power2_divisions of a size in bytes, in libc10."""
    import torch

    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    name = "_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig24roundup_power2_divisionsEm"
    function = library[name]
    function.argtypes, function.restype = [ctypes.c_size_t], ctypes.c_size_t
    return function


@pytest.fixture
def set_in_torch():
    import torch

    settle = torch._C._accelerator_setAllocatorSettings
    yield settle
    settle("roundup_power2_divisions:1,max_split_size_mb:1000000,expandable_segments:False")


@pytest.mark.parametrize("text", TEXTS)
def test_is_read_as_torch_reads_it(text: str, set_in_torch) -> None:
    divisions_of = of_torch()
    try:
        set_in_torch(text)
    except (ValueError, RuntimeError):
        with pytest.raises(SettingsError):
            read_settings(text)
        return
    found = read_settings(text).roundup_power2_divisions
    if "roundup" in text:
        assert found == tuple(divisions_of(MIB << interval) for interval in range(16))
        assert found[0] == divisions_of(1)
        assert found[-1] == divisions_of(2**40)
