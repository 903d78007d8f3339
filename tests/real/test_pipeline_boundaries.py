"""What stages send each other, cut over tensor-parallel ranks or whole, in whole pipelines."""

import pytest

pytest.importorskip("deepspeed")

from tests.real.whole_plans import LLAMA, Case, differences

pytestmark = pytest.mark.real

CUT_BYTES = 512
"""The numbers that tell how a tensor is cut, which an engine keeps on the host of a device."""


def case(*, pp, method="uniform", precision="bf16", recompute="none", keys=None, **pipeline):
    return Case(
        pp * 2,
        {
            "model": LLAMA,
            "layout": {"pp": pp, "tp": 2},
            "training": {"recompute": recompute, "precision": precision},
            "deepspeed": {
                "zero_optimization": {"reduce_bucket_size": 50_000},
                "pipeline": {"partition_method": method, **pipeline},
                **(keys or {}),
            },
        },
    )


CASES = {
    "two stages": case(pp=2),
    "a stage between, fp32": case(pp=3, precision="fp32"),
    "recomputed": case(pp=2, recompute="full"),
    "in pieces": case(
        pp=2,
        recompute="full",
        keys={"activation_checkpointing": {"partition_activations": True}},
    ),
    "whole gradients, a stage between": case(pp=3, grad_partitioned=False),
    "whole": case(pp=2, grad_partitioned=False, pipe_partitioned=False),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return differences(CASES, tmp_path_factory.mktemp("plans"), scalars_bytes=CUT_BYTES)


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_what_deepspeed_allocates(found, name):
    assert not found[name], "\n".join(found[name])
