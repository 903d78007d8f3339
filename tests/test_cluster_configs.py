"""Every file in cluster_configs/ loads, says where its hardware figures are from, and is shipped
with the degrees that its heading names."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.spec.devices import devices, links
from planner.spec.load import load

FILES = sorted((Path(__file__).parents[1] / "cluster_configs").glob("*.yaml"))
by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
HARDWARE = re.compile(r"^  (device|intra_node_link|inter_node_link): ")

DEGREES = {  # (devices, dp, tp, pp, ep, zero_stage, micro-steps), worked out by hand
    "bloom-176b-384xa100": (384, 8, 4, 12, 1, 1, 128),
    "deepseek-v3-2048xh800": (2048, 128, 1, 16, 64, 1, 120),
    "gpt3-175b-1024xa100": (1024, 8, 8, 16, 1, 1, 192),
    "llama-2-7b-1node-offload": (8, 8, 1, 1, 1, 3, 8),
    "llama-3-70b-megatron-64xh100": (64, 2, 8, 4, 1, 0, 64),
    "llama-3-8b-8xh100": (8, 8, 1, 1, 1, 3, 8),
    "llama-3-8b-qlora-1x4090": (1, 1, 1, 1, 1, 0, 16),
    "mixtral-8x7b-16xa100": (16, 16, 1, 1, 8, 2, 16),
    "qwen-7b-8xl40s": (8, 8, 1, 1, 1, 2, 16),
    "qwen2-72b-64xh100": (64, 2, 8, 4, 1, 1, 256),
    "this-machine-cpu": (2, 2, 1, 1, 1, 2, 2),
}


def raw(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_table_of_degrees_names_every_file() -> None:
    assert [path.stem for path in FILES] == sorted(DEGREES)


@by_file
def test_hardware_has_a_source(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    figures = [line for line in lines if HARDWARE.match(line)]
    assert figures
    assert [line for line in figures if "# source: " not in line] == []


@by_file
def test_devices_and_links_are_in_the_catalogues(path: Path) -> None:
    cluster = raw(path)["cluster"]
    assert cluster["device"] in devices()
    assert {cluster[key] for key in cluster if key.endswith("_link")} <= set(links())


@by_file
def test_the_file_loads_with_the_degrees_that_it_should_have(path: Path) -> None:
    spec = load(path)
    layout = spec.layout
    degrees = (layout.dp, layout.tp, layout.pp, layout.ep, layout.zero_stage)
    assert (spec.cluster.num_devices, *degrees, spec.micro_steps) == DEGREES[path.stem]


@by_file
def test_the_name_says_how_many_devices_there_are(path: Path) -> None:
    cluster = raw(path)["cluster"]
    count = re.search(r"-(\d+)x(\w+)$", path.stem)
    if count is None:
        assert cluster["nodes"] == 1
    else:
        assert int(count[1]) == cluster["nodes"] * cluster["devices_per_node"]
        assert count[2] in cluster["device"]


def test_offload_is_told_what_the_host_has() -> None:
    (path,) = [path for path in FILES if path.stem == "llama-2-7b-1node-offload"]
    spec = load(path)
    zero = spec.deepspeed.zero_optimization
    assert (zero.offload_optimizer.device, zero.offload_param.device) == ("cpu", "cpu")
    assert spec.cluster.host_memory_bytes == 512 * 2**30
