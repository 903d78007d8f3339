"""Checkpoints of several blocks, ``activation_checkpoint_interval``, in whole pipelines."""

import pytest

pytest.importorskip("deepspeed")

from tests.real.whole_plans import LLAMA, Case, differences

pytestmark = pytest.mark.real


EMPTIED_BYTES = 256
"""Beside scalars, what stands in the place of an emptied input, and its shape: 24 B each."""


def case(interval, *, pp=2, tp=1, method="uniform", model=LLAMA, precision="bf16", **others):
    pipeline = {"activation_checkpoint_interval": interval, "partition_method": method}
    pipeline |= {"pipe_partitioned": False, "grad_partitioned": False}
    pipeline |= others.pop("pipeline", {})
    return Case(
        pp * tp,
        {
            "model": model,
            "layout": {"pp": pp, "tp": tp},
            "training": {"recompute": "full", "precision": precision},
            "deepspeed": {
                "zero_optimization": {"reduce_bucket_size": 50_000},
                "pipeline": pipeline,
                **others,
            },
        },
    )


UNENTERED = {"use_reentrant": False}
CASES = {
    "one by one": case(1),
    "pairs": case(2),
    "one by one, without reentry": case(1, pipeline=UNENTERED),
    "pairs, without reentry": case(2, pipeline=UNENTERED),
    "pairs, uneven stages, fp32": case(2, method="type:decoder", precision="fp32"),
    "triples, tied ends": case(3, model=LLAMA | {"tie_word_embeddings": True}),
    "pairs, tensors in two, pieces": case(
        2, tp=2, activation_checkpointing={"partition_activations": True}
    ),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return differences(CASES, tmp_path_factory.mktemp("plans"), scalars_bytes=EMPTIED_BYTES)


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_what_deepspeed_allocates(found, name):
    assert not found[name], "\n".join(found[name])
