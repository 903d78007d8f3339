"""Every model of the catalogue against lists and totals that `planner` did not make."""

import gzip
import json
from pathlib import Path

import pytest

from planner.model import catalogue
from planner.model.counts import count
from planner.model.load import load_model

INVENTORIES = Path(__file__).parents[1] / "data" / "inventories"
ENTRIES = catalogue.entries()
LISTED = [entry for entry in ENTRIES if (INVENTORIES / f"{entry.name}.jsonl.gz").exists()]

ACTIVE = {  # everything a token passes, embedding and head included; the note says what is printed
    "deepseek-v3": 37_552_282_624,  # 37B
    "deepseek-v3.1": 37_552_282_624,  # 37B
    "deepseek-v2-lite": 2_661_150_208,  # 2.4B, without embeddings
    "glm-4.5": 33_632_251_904,  # 32B
    "gpt-oss-20b": 4_187_440_704,  # 3.6B, without the embedding
    "mixtral-8x7b-v0.1": 12_879_925_248,  # 12.9B
    "qwen1.5-moe-a2.7b": 2_689_173_504,  # 2.7B
    "qwen3-30b-a3b": 3_353_032_704,  # 3.3B
}

PUBLISHED = {  # by their publishers or on model hubs; see index.json
    "bloom-176b": 176_247_271_424,
    "gemma-3-12b": 12_187_325_040,
    "gpt-neox-20b": 20_554_567_680,
    "gpt2": 124_439_808,
    "gpt3-175b": 174_604_259_328,
    "llama-2-7b": 6_738_415_616,
    "llama-3-70b": 70_553_706_496,
    "mixtral-8x7b-v0.1": 46_702_792_704,
    "olmo-2-32b": 32_234_279_936,
    "phi-2": 2_779_683_840,
    "qwen-7b": 7_721_324_544,
    "qwen2-72b": 72_706_203_648,
    "qwen3-30b-a3b": 30_532_122_624,
    "starcoder2-7b": 7_173_923_840,
}


def test_the_catalogue_and_its_index_name_the_same_models() -> None:
    assert {entry.name for entry in ENTRIES} == set(catalogue.names())
    assert len(LISTED) >= len(ENTRIES) - 1


@pytest.mark.parametrize("entry", LISTED, ids=lambda entry: entry.name)
def test_names_shapes_and_order(entry: catalogue.Entry) -> None:
    with gzip.open(INVENTORIES / f"{entry.name}.jsonl.gz", "rt") as lines:
        listed = [(row["name"], tuple(row["shape"])) for row in map(json.loads, lines)]
    model = load_model(entry.name, folder=Path())
    assert [(p.name, p.shape) for p in model.parameters()] == listed


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_totals_of_the_index(entry: catalogue.Entry) -> None:
    assert load_model(entry.name, folder=Path()).num_parameters == entry.parameters
    assert entry.source


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_published_totals(name: str, total: int) -> None:
    assert load_model(name, folder=Path()).num_parameters == total


def test_published_totals_of_deepseek_v3_count_the_routers_buffers() -> None:
    """58 blocks with experts keep one value for each of 256 experts."""
    model = load_model("deepseek-v3", folder=Path())
    assert model.num_parameters + 58 * 256 == 671_026_419_200


def test_bert_has_no_pooler_but_a_head() -> None:
    """The often printed 109,482,240 is the encoder with its pooler (a dense layer of 768)."""
    counts = count(load_model("bert-base-uncased", folder=Path()))
    head_norm = 2 * 768
    encoder = counts.total - counts.by_component["head"] - head_norm
    assert encoder + 768 * 768 + 768 == 109_482_240


@pytest.mark.parametrize(("name", "active"), ACTIVE.items())
def test_active_parameters(name: str, active: int) -> None:
    assert count(load_model(name, folder=Path())).active == active


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_counts_add_up(entry: catalogue.Entry) -> None:
    model = load_model(entry.name, folder=Path())
    counts = count(model)
    assert sum(counts.by_component.values()) == counts.total == model.num_parameters
    assert counts.active <= counts.total
    assert (counts.active == counts.total) == ("routed_experts" not in counts.by_component)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("gpt-3", "gpt3-175b"),
        ("GPT3", "gpt3-175b"),
        ("deepseek-r1", "deepseek-v3"),
        ("mixtral-8x7b", "mixtral-8x7b-v0.1"),
        ("bert", "bert-base-uncased"),
    ],
)
def test_other_names(alias: str, name: str) -> None:
    assert load_model(alias, folder=Path()).name == name


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_cuts_are_dims_that_exist_and_equal_blocks_are_one_value(entry: catalogue.Entry) -> None:
    model = load_model(entry.name, folder=Path())
    for parameter in model.parameters():
        assert parameter.tp_dim is None or parameter.tp_dim < len(parameter.shape)
        assert parameter.routed == (parameter.component == "routed_experts")
    layers = [placed.layer for placed in model.blocks]
    assert len({id(layer) for layer in layers}) == len(set(layers))
