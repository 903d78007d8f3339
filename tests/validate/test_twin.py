"""A twin is small and of the same structure: the same terms are there."""

from dataclasses import replace
from pathlib import Path

import pytest

from planner.memory.terms import Term
from planner.model import catalogue
from planner.model.load import load_model
from planner.plan import make_plan
from planner.spec.dump import dump
from planner.spec.load import load
from planner.units import GIB
from planner.validate.twin import make_twin, scale_config

FILES = [
    path
    for path in sorted((Path(__file__).parents[2] / "cluster_configs").glob("*.yaml"))
    if load(path).framework.engine == "deepspeed"
]
AXES = ("dp", "tp", "pp", "ep", "sp")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def spec(request):
    return load(request.param)


def test_a_twin_is_a_file_like_any_other(spec, tmp_path):
    twin = make_twin(spec, memory_bytes=3 * GIB).spec
    path = tmp_path / "twin.yaml"
    path.write_text(dump(twin))
    assert load(path) == replace(twin, path=path)


def test_a_twin_keeps_every_axis_and_is_small(spec):
    twin = make_twin(spec, memory_bytes=3 * GIB).spec
    for axis in AXES:
        old, new = (getattr(each.fixed_layout, axis) for each in (spec, twin))
        assert (old > 1) == (new > 1), axis
    assert twin.fixed_layout.zero_stage == spec.fixed_layout.zero_stage
    assert twin.cluster.num_devices <= 8
    assert load_model(twin.model, folder=twin.folder).num_parameters < 30_000_000


RESIDENT = {
    Term.WEIGHTS, Term.OWNED_GRADIENTS, Term.MASTER_WEIGHTS, Term.OPTIMIZER_STATES,
    Term.ACTIVATIONS, Term.LOGITS, Term.PIPELINE_BUFFERS,
}  # fmt: skip
"""Which of the others is alive at a phase's highest point depends on sizes."""


def test_a_twin_has_the_terms_of_the_big_plan(spec):
    if spec.fixed_layout.ep > 1:
        pytest.skip("fused gate and up projections of experts have no tape on CPU ranks")

    def terms(plan):
        return {t for r in plan.ranks for p in r.phases for t in p.terms} & RESIDENT

    if "bloom" in str(spec.model):
        pytest.skip("alibi in the reference layers is refused")
    twin = make_twin(spec, memory_bytes=3 * GIB).spec
    assert terms(make_plan(twin)) == terms(make_plan(spec))


def test_every_change_is_told():
    spec = load(next(path for path in FILES if "qwen2-72b" in path.name))
    changes = make_twin(spec, memory_bytes=3 * GIB).changes
    assert "layout.tp: 8 -> 2" in changes
    assert "layout.pp: 4 -> 2" in changes
    assert "model.num_key_value_heads: 8 -> 2" in changes
    assert "model.num_attention_heads: 64 -> 8" in changes
    assert not any(change.startswith("layout.zero_stage") for change in changes)


@pytest.mark.parametrize("name", catalogue.names())
def test_every_model_of_the_catalogue_has_a_small_one(name):
    config, _ = catalogue_config(name)
    if "text_config" in config:
        pytest.skip("an image tower: refused by plans")
    small = load_model(scale_config(config, layers=4), folder=Path())
    big = load_model(name, folder=Path())
    assert small.num_parameters < min(30_000_000, big.num_parameters)
    assert small.tied == big.tied
    assert small.family == big.family


def catalogue_config(name):
    from planner.model.document import read_document

    return read_document(catalogue.path_of(name))
