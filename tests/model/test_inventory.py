"""A stored inventory reads back as what was stored."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.model import catalogue
from planner.model.counts import count
from planner.model.faults import ConfigError
from planner.model.inventory import from_document, to_document
from planner.model.load import load_model


@pytest.mark.parametrize("name", catalogue.names())
def test_round_trip(name: str, tmp_path: Path) -> None:
    model = load_model(name, folder=tmp_path)
    (tmp_path / "stored.json").write_text(json.dumps(to_document(model)))
    again = load_model("stored.json", folder=tmp_path)
    assert sorted(p.name for p in again.parameters()) == sorted(p.name for p in model.parameters())
    assert {p.name: p for p in again.parameters()} == {p.name: p for p in model.parameters()}
    assert again.inventory_only
    assert len({id(p.layer) for p in again.blocks}) == len({id(p.layer) for p in model.blocks})


def stored() -> dict[str, Any]:
    return {
        "schema": "planner.inventory/1", "name": "x", "model_type": "y", "implementation": "Z",
        "hidden_size": 8, "vocab_size": 10, "max_positions": 4, "tied": True,
        "experts_per_token": 1, "stem": ["", 0], "blocks": [["h.0.", 1], ["h.1.", 1]],
        "tail": [],
        "layers": [
            [{"name": "e", "shape": [10, 8], "component": "embedding", "tp_dim": 0}],
            [{"name": "w", "shape": [4, 8, 8], "component": "routed_experts", "routed": True}],
        ],
    }  # fmt: skip


def test_active_parameters_of_an_imported_mixture() -> None:
    counts = count(from_document(stored(), where="x"))
    assert (counts.total, counts.active) == (80 + 2 * 256, 80 + 2 * 64)


def test_a_mixture_with_unknown_choice_counts_whole() -> None:
    counts = count(from_document({**stored(), "experts_per_token": None}, where="x"))
    assert counts.active == counts.total


BROKEN: list[tuple[str, Any]] = [
    ("layers", 3), ("layers", [[3]]), ("layers", [[{"name": "e"}], []]), ("blocks", [["h.0."]]),
    ("blocks", [["h.0.", 2]]), ("blocks", [["h.0.", -1]]), ("blocks", [[0, 1]]),
    ("blocks", "many"), ("hidden_size", "8"), ("hidden_size", 2**70), ("name", None),
    ("stem", None), ("stem", ["", "0"]), ("experts_per_token", "2"),
    ("layers", [[{"name": "e", "shape": [10], "component": "nose"}], []]),
    ("layers", [[{"name": "e", "shape": [10], "component": ["norm"]}], []]),
    ("layers", [[{"name": "e", "shape": [10], "component": "norm", "tp_dim": 1}], []]),
    ("layers", [[{"name": "e", "shape": [-10], "component": "norm"}], []]),
    ("layers", [[{"name": "e", "shape": [True], "component": "norm"}], []]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), BROKEN)
def test_a_broken_inventory_is_told(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="import it again"):
        from_document({**stored(), key: value}, where="x.json")


@pytest.mark.parametrize(
    "key", [key for key in stored() if key not in ("schema", "experts_per_token", "tied")]
)
def test_a_missing_key_is_told(key: str) -> None:
    document = stored()
    del document[key]
    with pytest.raises(ConfigError, match="import it again"):
        from_document(document, where="x.json")
