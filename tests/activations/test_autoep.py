"""What AutoEP's layer keeps and how high it goes, by hand."""

from hypothesis import given
from hypothesis import strategies as st

from planner.activations.eager import Machine, Sink, Tensor, run_backward
from planner.activations.programs import autoep
from planner.activations.programs.case import Case
from planner.model.description import Component, Layer, Mlp, Moe, Parameter
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training


def make_case(
    *, b: int, s: int, h: int, f: int, e: int, k: int, ep: int, imbalance: float = 1.0
) -> Case:
    """A block's experts under AutoEP's own names, Qwen3's routing."""
    expert = Mlp(ffn_size=f, gated=True, activation="silu")
    moe = Moe(num_experts=e, experts_per_token=k, expert=expert, normalize=True)
    layer = Layer(
        kind="block",
        parameters=(
            _parameter("router.gate.weight", (e, h), "router"),
            _parameter("experts.w1", (e, f, h), "routed_experts"),
            _parameter("experts.w2", (e, h, f), "routed_experts"),
            _parameter("experts.w3", (e, f, h), "routed_experts"),
        ),
        mlp=moe,
    )
    return Case(
        layer=layer,
        family="qwen3_moe",
        hidden_size=h,
        vocab_size=1,
        num_layers=1,
        block=layer,
        training=Training(sequence_length=s, micro_batch_size=b, expert_imbalance=imbalance),
        layout=Layout(dp=ep, ep=ep),
        deepspeed=DeepSpeed(),
    )


def _parameter(name: str, shape: tuple[int, ...], component: Component) -> Parameter:
    return Parameter(
        name=name, shape=shape, component=component, routed=component == "routed_experts"
    )


class Run:
    """The layer forward and backward; the gradient of the output is kept by who gives it."""

    def __init__(
        self,
        case: Case,
        *,
        backend: str = "cuda",
        received: int | None = None,
        counts: tuple[int, ...] | None = None,
    ) -> None:
        m = Machine(backend=backend, in_place=backend == "cuda", modules=False)  # type: ignore[arg-type]
        for index, parameter in enumerate(case.layer.parameters):
            count, *rest = parameter.shape
            count = count // case.layout.ep if parameter.routed else count
            m.parameter(parameter.name, index, (count, *rest), "bf16")
        self.gradients: list[Tensor] = []
        shape = (case.batch, case.length, case.hidden_size)
        hidden = m.external(shape, "bf16", sink=Sink(self.gradients.append, seq=0))
        entry = hidden.storage
        output = autoep.mixture(m, case, hidden, received=received, counts=counts)
        self.output_bytes = output.storage.size
        self.saved_bytes = sum(m.sizes[i] for i in m.live) - entry.size - self.output_bytes
        split = len(m.events)
        edge = output.edge
        assert edge is not None
        m.disown(output)
        del output, hidden
        gradient = m.external(shape, "bf16")
        m.disown(gradient)
        run_backward(edge, gradient.again())
        self.forward_peak_bytes = _peak(m, m.events[:split])
        self.backward_peak_bytes = _peak(m, m.events[split:])
        self.machine = m


def _peak(m: Machine, events: list[object]) -> int:
    now = peak = 0
    for event in events:
        if isinstance(event, int):
            now += m.sizes[event] if event > 0 else -m.sizes[-event]
            peak = max(peak, now)
    return peak


SIZES = st.fixed_dictionaries(
    {
        "b": st.integers(1, 3),
        "s": st.sampled_from([16, 64]),
        "h": st.sampled_from([32, 128]),
        "f": st.sampled_from([16, 96]),
        "e": st.sampled_from([8, 16]),
        "k": st.sampled_from([1, 2, 4]),
        "ep": st.sampled_from([2, 4]),
        "imbalance": st.sampled_from([1.0, 1.5, 2.0]),
    }
)


@given(sizes=SIZES)
def test_saved_bytes(sizes):
    tokens, h, f, e, k = sizes["b"] * sizes["s"], *(sizes[name] for name in "hfek")
    rows = tokens * k
    arrived = int(rows * sizes["imbalance"])
    padded = -(-(arrived + e // sizes["ep"] * 8) // 8) * 8
    router = 4 * tokens * e + 8 * rows + 4 * rows + 4 * tokens + 4 * rows
    order = 8 * rows + 8 * rows
    moved = 4 * padded + 2 * 8 * (arrived + padded)
    experts = 2 * padded * h + 3 * 2 * padded * f
    combined = 2 * rows * h
    assert Run(make_case(**sizes)).saved_bytes == router + order + moved + experts + combined


@given(sizes=SIZES)
def test_backward_frees_all_and_makes_every_gradient(sizes):
    run = Run(make_case(**sizes))
    assert run.machine.live == {run.gradients[0].storage.index}
    marks = [event for event in run.machine.events if not isinstance(event, int)]
    handed = [mark.parameters for mark in marks if mark.kind == "gradient"]
    assert sorted(handed) == [(0,), (1,), (2,), (3,)]


@given(sizes=SIZES)
def test_more_imbalance_is_never_cheaper(sizes):
    even = Run(make_case(**{**sizes, "imbalance": 1.0}))
    run = Run(make_case(**sizes))
    assert run.saved_bytes >= even.saved_bytes
    assert run.forward_peak_bytes >= even.forward_peak_bytes
