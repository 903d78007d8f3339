"""bitsandbytes' 8-bit AdamW in whole steps of DeepSpeed, where it is installed.

`constraints.txt` has no bitsandbytes. With 0.50.2 all cases are equal but for the maps.
"""

import pytest

pytest.importorskip("deepspeed")
pytest.importorskip("bitsandbytes")

from tests.real.whole_plans import LLAMA, Case, differences

pytestmark = pytest.mark.real

MAPS_BYTES = 2048
"""Two tables of 256 fp32 numbers, which all tensors share and plans leave out."""
SCALARS_BYTES = 160
STAGES = (0, 1, 2, 3)


def case(zero):
    return Case(
        2,
        {
            "model": LLAMA | {"num_hidden_layers": 1},
            "layout": {"zero_stage": zero},
            "training": {
                "optimizer": "adamw_8bit",
                "parameter_groups": "weight_decay",
                "global_batch_size": 8,
            },
        },
    )


def test_a_plan_is_what_deepspeed_allocates(tmp_path):
    cases = {f"ZeRO-{stage}": case(stage) for stage in STAGES}
    found = differences(cases, tmp_path, scalars_bytes=MAPS_BYTES + SCALARS_BYTES)
    assert found == {name: [] for name in cases}
