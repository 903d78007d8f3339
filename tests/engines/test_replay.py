"""A pass that is booked again, folded, is the pass booked anew."""

from pathlib import Path

import pytest
import yaml

from planner.memory.timeline import Timeline
from planner.plan import make_plan
from planner.spec.load import load

MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
CASES = {
    "zero-0": ({"zero_stage": 0}, {}, {}),
    "zero-0, bf16 of 0.16.9": ({"zero_stage": 0}, {"version": "0.16.9"}, {}),
    "zero-1": ({"zero_stage": 1}, {"zero_optimization": {"reduce_bucket_size": 20_000}}, {}),
    "zero-1, fp32 sums": ({"zero_stage": 1}, {"data_types": {"grad_accum_dtype": "fp32"}}, {}),
    "zero-2": ({"zero_stage": 2}, {"zero_optimization": {"reduce_bucket_size": 20_000}}, {}),
    "zero-2, overlap": (
        {"zero_stage": 2},
        {"zero_optimization": {"reduce_bucket_size": 20_000, "overlap_comm": True}},
        {},
    ),
    "zero-2, not contiguous": (
        {"zero_stage": 2},
        {"zero_optimization": {"reduce_bucket_size": 20_000, "contiguous_gradients": False}},
        {},
    ),
    "zero-2, offload": (
        {"zero_stage": 2},
        {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
        {},
    ),
    "pipeline": ({"zero_stage": 1, "pp": 4}, {}, {"recompute": "full"}),
    "pipeline, no zero": ({"zero_stage": 0, "pp": 2}, {}, {}),
}


def plan_of(folder: Path, name):
    layout, deepspeed, training = CASES[name]
    file = folder / "case.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "model": MODEL,
                "cluster": {"nodes": 1, "devices_per_node": 8, "device": "h100-sxm-80gb"},
                "training": {"sequence_length": 64, "global_batch_size": 64} | training,
                "layout": layout,
                "deepspeed": deepspeed,
            }
        )
    )
    return make_plan(load(file), every_rank=True)


@pytest.mark.parametrize("name", CASES)
def test_nothing_changes_where_every_pass_is_booked_anew(tmp_path, monkeypatch, name):
    replayed = plan_of(tmp_path, name)
    booked = []
    monkeypatch.setattr(Timeline, "once", lambda _, key, book: (booked.append(key), book()))
    anew = plan_of(tmp_path, name)
    assert len(set(booked)) < len(booked), "something is booked more than once"
    assert [rank.phases for rank in anew.ranks] == [rank.phases for rank in replayed.ranks]
