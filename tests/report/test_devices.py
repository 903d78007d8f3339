import json

import pytest
from rich.console import Console

from planner.report.devices import document, render
from planner.spec.devices import links, names


def test_the_document_is_json_with_every_device_and_link() -> None:
    told = json.loads(json.dumps(document()))
    assert told["schema"] == "planner.devices/1"
    assert [row["name"] for row in told["devices"]] == list(names())
    assert [row["name"] for row in told["links"]] == list(links())


def test_sizes_in_the_document_are_bytes_and_rates_are_per_second() -> None:
    (row,) = [row for row in document()["devices"] if row["name"] == "h100-sxm-80gb"]
    assert row["memory_bytes"] == round(79.1 * 2**30)
    assert row["memory_bandwidth_bytes_per_second"] == 3.35e12
    assert row["workspace_bytes"] == 2 * 32 * 2**20


@pytest.mark.parametrize("width", [70, 80, 100, 120, 200])
def test_every_device_has_one_whole_line_at_any_usual_width(width: int) -> None:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(render(width=width))
    lines = captured.get().splitlines()
    for name in names():
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    (h100,) = [line.split() for line in lines if line.startswith("h100-sxm-80gb ")]
    assert h100[:6] == ["h100-sxm-80gb", "79.10", "3350", "989.5", "67", "64.00"]
    assert h100[6:] == (["nvlink4", "450", "pcie5", "63"] if width >= 100 else [])
