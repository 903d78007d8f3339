"""What a Megatron layer keeps for its backward pass: arXiv:2205.05198, table 2, to the byte.

The paper leaves out what has the size of one number a row: mean and inverse deviation of the two
norms, fp32, 16 bytes a token; flash attention adds the logarithm of its sums. Those are named here.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.activations.eager import Machine, Sink, Tensor, run_backward
from planner.activations.programs import megatron
from planner.activations.programs.case import Case
from planner.activations.programs.reentrant import reentrant
from planner.errors import ModelError
from planner.model.description import Attention, Layer, Mlp, Norm
from planner.model.parts import gated_mlp as gated
from planner.model.parts import norm, plain_mlp, projections, qk_norms
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training

LAYER_NORM = Norm(kind="layer", bias=True)
RMS_NORM = Norm(kind="rms")


def make_case(
    *,
    heads: int,
    size: int,
    s: int,
    b: int,
    tp: int = 1,
    groups: int | None = None,
    modern: bool = False,
    ffn: int | None = None,
    qk_norm: Norm | None = None,
    **training: Any,
) -> Case:
    """A GPT layer with 4h and dropout, or a modern one: RMS norm, SwiGLU, rotary, no dropout."""
    h = heads * size
    kind = RMS_NORM if modern else LAYER_NORM
    attention = Attention(
        num_heads=heads,
        num_kv_heads=groups or heads,
        head_size=size,
        value_head_size=size,
        bias=not modern,
        output_bias=not modern,
        rotary_size=size if modern else 0,
        dropout=0.0 if modern else 0.1,
        qk_norm=qk_norm,
    )
    mlp = Mlp(
        ffn_size=ffn or 4 * h,
        gated=modern,
        activation="silu" if modern else "gelu",
        bias=not modern,
    )
    layer = Layer(
        kind="block",
        parameters=(
            *norm("ln_1", h, kind),
            *projections("attn.", h, attention),
            *qk_norms("attn.", attention),
            *norm("ln_2", h, kind),
            *(gated("mlp.", h, mlp) if modern else plain_mlp("mlp.", h, mlp, names=("a", "b"))),
        ),
        norm=kind,
        attention=attention,
        mlp=mlp,
        hidden_dropout=0.0 if modern else 0.1,
    )
    return Case(
        layer=layer,
        family="gpt",
        hidden_size=h,
        vocab_size=1,
        num_layers=1,
        block=layer,
        training=Training(sequence_length=s, micro_batch_size=b, **training),
        layout=Layout(dp=1, tp=tp),
        deepspeed=DeepSpeed(),
    )


class Run:
    """A layer's forward pass, and what is alive after it; then its backward pass."""

    def __init__(self, case: Case, *, sequence_parallel: bool = False, full: bool = False) -> None:
        m = Machine(backend="cuda", in_place=True, modules=False)
        tp = case.layout.tp
        for index, parameter in enumerate(case.layer.parameters):
            shape = list(parameter.shape)
            if parameter.tp_dim is not None:
                shape[parameter.tp_dim] //= tp
            m.parameter(parameter.name, index, tuple(shape), "bf16")
        length = case.length // (tp if sequence_parallel else 1)
        self.gradients: list[Tensor] = []
        sink = Sink(self.gradients.append, seq=0)
        hidden = m.external((case.batch, length, case.hidden_size), "bf16", sink=sink)

        def block(x: Tensor) -> Tensor:
            return megatron.block(m, case, x, sequence_parallel=sequence_parallel)

        output = reentrant(block, hidden) if full else block(hidden)
        del hidden
        assert output.edge is not None
        self.edge, self.shape = output.edge, output.shape
        m.disown(output)
        del output
        m.settle()
        self.machine = m
        self.saved_bytes = sum(m.sizes[index] for index in m.live)

    def backward(self) -> None:
        edge = self.edge
        del self.edge
        run_backward(edge, self.machine.external(self.shape, "bf16"))


SIZES = st.fixed_dictionaries(
    {
        "heads": st.sampled_from([4, 8, 16]),
        "size": st.sampled_from([16, 64, 128]),
        "s": st.sampled_from([16, 128, 1024]),
        "b": st.integers(1, 4),
    }
)
DEGREES = st.sampled_from([1, 2, 4])


def counted(case: dict[str, int]) -> tuple[int, int, int]:
    """sbh, 5abs^2 (the paper's 5as/h times sbh), and the norms' statistics."""
    a, s, b = case["heads"], case["s"], case["b"]
    return s * b * a * case["size"], 5 * a * b * s * s, 16 * s * b


@given(case=SIZES)
def test_table_2_no_parallelism(case):
    sbh, square, rows = counted(case)
    assert Run(make_case(**case, attention="eager")).saved_bytes == 34 * sbh + square + rows


@given(case=SIZES, t=DEGREES)
def test_table_2_tensor_parallelism(case, t):
    sbh, square, rows = counted(case)
    run = Run(make_case(**case, tp=t, attention="eager"))
    assert run.saved_bytes == 10 * sbh + (24 * sbh + square) // t + rows


@given(case=SIZES, t=DEGREES)
def test_table_2_tensor_and_sequence_parallelism(case, t):
    sbh, square, rows = counted(case)
    run = Run(make_case(**case, tp=t, attention="eager"), sequence_parallel=True)
    assert run.saved_bytes == (34 * sbh + square + rows) // t


@given(case=SIZES, t=DEGREES)
def test_table_2_tensor_parallelism_and_selective_recomputation(case, t):
    sbh, _, rows = counted(case)
    run = Run(make_case(**case, tp=t, attention="eager", recompute="selective"))
    assert run.saved_bytes == 10 * sbh + 24 * sbh // t + rows


@given(case=SIZES, t=DEGREES)
def test_table_2_all_three(case, t):
    sbh, _, rows = counted(case)
    run = Run(
        make_case(**case, tp=t, attention="eager", recompute="selective"), sequence_parallel=True
    )
    assert run.saved_bytes == (34 * sbh + rows) // t


@given(case=SIZES, t=DEGREES)
def test_table_2_full_recomputation(case, t):
    sbh, _, _ = counted(case)
    assert Run(make_case(**case, tp=t, attention="eager"), full=True).saved_bytes == 2 * sbh


@given(case=SIZES)
def test_flash_attention_keeps_rows_instead_of_squares(case):
    """No scores; the context is kept once, since the output projection reads the same tensor."""
    sbh, _, rows = counted(case)
    sums = 4 * case["heads"] * case["s"] * case["b"]
    seeds = 16
    assert Run(make_case(**case, attention="flash")).saved_bytes == 34 * sbh + rows + sums + seeds


@given(case=SIZES, t=st.sampled_from([1, 2]), g=st.sampled_from([2, 4]))
def test_a_modern_layer(case, t, g):
    """Keeps two norms' inputs, rotated q and k, v laid out like them, the context, 2F, F."""
    a, size, s, b = case["heads"], case["size"], case["s"], case["b"]
    f = 3 * a * size
    run = Run(make_case(**case, tp=t, groups=g, modern=True, ffn=f, attention="flash"))
    tokens, kv = s * b, g * size
    wide = 4 * tokens * a * size + 2 * tokens * a * size * 2
    narrow = (
        2 * tokens * kv + 2 * tokens * (a * size + kv) + 2 * tokens * a * size + 2 * tokens * 3 * f
    )
    rows = 2 * 4 * tokens
    assert run.saved_bytes == wide + narrow // t + rows + 4 * a * tokens // t + 16


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize("attention", ["eager", "flash"])
@pytest.mark.parametrize("modern", [False, True])
def test_backward_frees_all_and_makes_every_gradient(
    sequence_parallel, recompute, attention, modern
):
    case = make_case(
        heads=8,
        size=16,
        s=32,
        b=2,
        tp=2,
        groups=4,
        modern=modern,
        attention=attention,
        recompute=recompute,
        qk_norm=RMS_NORM if modern else None,
    )
    run = Run(case, sequence_parallel=sequence_parallel)
    run.backward()
    assert [gradient.shape for gradient in run.gradients] == [run.shape]
    assert run.machine.live == {run.gradients[0].storage.index}
    marks = [event for event in run.machine.events if not isinstance(event, int)]
    handed = sorted(mark.parameters for mark in marks if mark.kind == "gradient")
    assert handed == [(index,) for index in range(len(case.layer.parameters))]


def test_norms_after_the_branches_are_refused():
    case = make_case(heads=4, size=16, s=16, b=1)
    layer = Layer(**{**_fields(case.layer), "residual": "post"})
    broken = Case(**{**case.__dict__, "layer": layer})
    with pytest.raises(ModelError, match="norms before"):
        Run(broken)


def _fields(layer: Layer) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in Layer.__slots__}
