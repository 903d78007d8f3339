from dataclasses import replace

from planner.spec.devices import device
from planner.timing.assumptions import assumptions
from tests.timing.settings import cluster, setting


def told(name, **changes):
    machines = replace(cluster(), device=device(name))
    return assumptions(setting(machines=machines, **changes))


def test_a_device_on_which_nothing_was_fitted_is_said():
    assert "nothing else is known" in told("h100-sxm-80gb")[0]
    assert told("a100-sxm-80gb")[0].endswith(
        "reach 237 TFLOP/s when they are large, as was fitted on published steps"
    )


def test_a_share_that_is_told_is_taken():
    text = "matrix products of h100-sxm-80gb reach 495 TFLOP/s when they are large, as told"
    assert told("h100-sxm-80gb", product_share=0.5)[0] == text


def test_zero_3_is_said_where_there_is_zero():
    assert "ZeRO-3" in told("a100-sxm-80gb")[1]
    assert len(told("a100-sxm-80gb", engine="megatron")) == 1
