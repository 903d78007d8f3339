"""``planner params`` and ``planner models`` as documents and as text."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from planner.model.description import Model
from planner.model.inventory import from_document, to_document
from planner.model.load import load_model
from planner.report import models
from planner.report.params import params_document, render, said_size


def known(name: str) -> Model:
    return load_model(name, folder=Path())


def drawn(renderable: RenderableType, width: int) -> str:
    console = Console(file=StringIO(), width=width, highlight=False)
    console.print(renderable)
    return console.file.getvalue()


def test_the_document_of_deepseek_v3() -> None:
    document = json.loads(json.dumps(params_document(known("deepseek-v3"), context_tokens=1000)))
    assert document["schema"] == "planner.params/1"
    parameters = document["parameters"]
    assert parameters["total"] == 671_026_404_352 == sum(parameters["by_component"].values())
    assert parameters["active"] == 37_552_282_624
    assert document["bytes"] == {
        "fp32": 4 * 671_026_404_352,
        "bf16": 2 * 671_026_404_352,
        "int8": 671_026_404_352,
        "int4": 671_026_404_352 // 2,
    }
    run = document["inference"]
    assert run["weights_bytes"] == document["bytes"]["bf16"]
    assert run["kv_cache_bytes"] == 1000 * 61 * 576 * 2


@pytest.mark.parametrize("width", [80, 200])
def test_a_7b_shows_28_14_and_7_gb_beside_the_exact_figures(width: int) -> None:
    text = drawn(render(known("llama-2-7b"), width=width), width)
    for figure in ("6,738,415,616", "28 GB", "14 GB", "7 GB", "26.95", "13.48", "6.74"):
        assert figure in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("gpt-3", ["174,604,259,328", "MHA"]),
        ("bert", ["109,514,298", "109,482,240", "an encoder keeps no cache"]),
        ("qwen-14b", ["14,167,290,880"]),
        ("qwen2-72b", ["80 layers, hidden 8192, 64 heads (GQA, 8 key/value)"]),
        ("deepseek-v3.1", ["671,026,404,352", "37,552,282,624 active", "MLA, latent 512"]),
        ("falcon-7b", ["71 heads (MQA)"]),
    ],
)
def test_what_people_look_for(name: str, figures: list[str]) -> None:
    text = drawn(render(known(name), width=200), 200)
    for figure in figures:
        assert figure in text


def test_devices_cut_the_model_and_say_what_they_hold_twice() -> None:
    text = drawn(render(known("qwen2-72b"), tp=8, width=200), 200)
    assert "each of 8 devices" in text
    assert "held more than once" in text


def test_an_imported_model_shows_its_parameters_and_says_what_it_cannot() -> None:
    imported = from_document(to_document(known("llama-2-7b")), where="x")
    text = drawn(render(imported, width=80), 80)
    assert "6,738,415,616" in text
    assert "inference: not known" in text
    assert params_document(imported)["inference"] is None


@pytest.mark.parametrize(
    ("name", "total", "said"),
    [
        ("qwen-7b", 7_721_324_544, 7e9),
        ("llama-2-7b", 6_738_415_616, 7e9),
        ("deepseek-v3", 671_026_404_352, 671e9),
        ("mixtral-8x7b-v0.1", 46_702_792_704, 47e9),
        ("qwen3-30b-a3b", 30_532_122_624, 30e9),
        ("opt-125m", 125_239_296, 125e6),
        ("my-1b-test", 70_000_000_000, 70e9),
        ("tiny", 3, 1e6),
    ],
)
def test_the_size_that_people_say(name: str, total: int, said: float) -> None:
    assert said_size(name, total) == said


@pytest.mark.parametrize("width", [80, 200])
def test_the_catalogue_as_a_table(width: int) -> None:
    text = drawn(models.render(width=width), width)
    for name in ("gpt3-175b", "qwen2-72b", "deepseek-v3.1", "bert-base-uncased"):
        assert name in text


def test_names_of_the_catalogue_are_whole_in_80_columns() -> None:
    text = drawn(models.render(width=80), 80)
    for row in models.document()["models"]:
        assert all(name in text for name in (row["name"], *row["aliases"]))


def test_the_catalogue_as_a_document() -> None:
    document = json.loads(json.dumps(models.document()))
    rows = {row["name"]: row for row in document["models"]}
    assert rows["deepseek-v3"]["published"] - rows["deepseek-v3"]["parameters"] == 58 * 256
    assert "gpt-3" in rows["gpt3-175b"]["aliases"]
