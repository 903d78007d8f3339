"""AutoEP's layer on two ranks against its program, with the rows that really arrived."""

from pathlib import Path

import pytest

pytest.importorskip("deepspeed")
pytest.importorskip("transformers")

from tests.activations.test_autoep import Run, make_case
from tests.real.harness import run_ranks

WORKER = Path(__file__).with_name("worker_moe.py")


@pytest.mark.real
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (16, 4)])
def test_autoep_on_two_ranks(experts, top_k):
    case = {"hidden": 64, "ffn": 96, "experts": experts, "top_k": top_k}
    case |= {"batch": 2, "length": 32, "ep": 2}
    for measured in run_ranks(WORKER, case, ranks=2, timeout_seconds=600):
        told = Run(
            make_case(b=2, s=32, h=64, f=96, e=experts, k=top_k, ep=2),
            backend="cpu",
            received=measured["received_rows"],
            counts=tuple(measured["expert_rows"]),
        )
        saved = measured["saved_bytes"] - measured["output_bytes"]
        assert saved == told.saved_bytes
        assert measured["forward_peak_bytes"] == told.forward_peak_bytes
        assert measured["backward_peak_bytes"] == told.backward_peak_bytes
