"""The engine's order and lifetimes on graphs that are small enough to follow by hand."""

import pytest

from planner.activations.eager import (
    Machine,
    Sink,
    Tensor,
    add,
    checkpoint,
    linear,
    mul,
    run_backward,
    to,
    unary,
)

SHAPE = (4, 8)
BYTES = 4 * 8 * 2


def machine(*, in_place: bool = True) -> Machine:
    return Machine(backend="cuda", in_place=in_place, modules=False)


def source(m: Machine, collected: list[Tensor]) -> Tensor:
    return m.external(SHAPE, "bf16", sink=Sink(collected.append, seq=0))


def backward(m: Machine, output: Tensor) -> None:
    edge = output.edge
    assert edge is not None
    run_backward(edge, m.external(output.shape, output.dtype))


def live_bytes(m: Machine) -> int:
    return sum(m.sizes[index] for index in m.live)


def test_a_name_that_is_rebound_frees_what_nobody_saved():
    m = machine()
    x = source(m, [])
    y = add(x, x)
    y = add(y, y)
    assert live_bytes(m) == 2 * BYTES
    del y
    assert live_bytes(m) == BYTES


def test_a_product_saves_both_factors_until_its_node_has_run():
    m = machine()
    collected: list[Tensor] = []
    x = source(m, collected)
    product = mul(x, unary(x))
    del x
    assert live_bytes(m) == 3 * BYTES
    m.disown(product)
    backward(m, product)
    del product
    assert [tensor.shape for tensor in collected] == [SHAPE]
    assert live_bytes(m) == BYTES


@pytest.mark.parametrize(("in_place", "buffers"), [(True, 0), (False, 1)])
def test_gradients_of_a_tensor_used_twice_add_up(in_place, buffers):
    m = machine(in_place=in_place)
    x = source(m, [])
    total = add(unary(x), unary(x))
    split = len(m.events)
    backward(m, total)
    made = [event for event in m.events[split:] if isinstance(event, int) and event > 0]
    assert len(made) == 2 + buffers


def test_a_residual_passes_its_gradient_on_without_a_copy():
    m = machine()
    x = source(m, [])
    total = add(x, unary(x))
    split = len(m.events)
    backward(m, total)
    made = [event for event in m.events[split:] if isinstance(event, int) and event > 0]
    assert len(made) == 1


def test_a_gradient_goes_to_its_parameter_before_other_nodes_run():
    m = machine()
    m.parameter("first.weight", 0, (8, 8), "bf16")
    m.parameter("second.weight", 1, (8, 8), "bf16")
    x = source(m, [])
    hidden = linear(x, m.parameters["first.weight"])
    output = linear(unary(hidden), m.parameters["second.weight"])
    backward(m, output)
    marks = [event for event in m.events if not isinstance(event, int)]
    assert [mark.parameters for mark in marks if mark.kind == "gradient"] == [(1,), (0,)]


def test_a_gradient_is_cast_to_what_its_tensor_was():
    m = machine()
    collected: list[Tensor] = []
    backward(m, to(source(m, collected), "fp32"))
    assert [tensor.dtype for tensor in collected] == ["bf16"]


def test_a_checkpoint_keeps_its_input_and_stops_at_the_last_saved_tensor():
    m = machine()
    collected: list[Tensor] = []
    runs: list[str] = []

    def layer(x: Tensor) -> Tensor:
        runs.append("begun")
        y = add(unary(unary(x)), x)
        runs.append("ended")
        return y

    output = checkpoint(layer, source(m, collected))
    assert live_bytes(m) == 2 * BYTES
    backward(m, output)
    assert runs == ["begun", "ended", "begun"]
    assert len(collected) == 1


def test_the_first_product_of_each_pass_is_marked():
    m = machine()
    m.parameter("first.weight", 0, (8, 8), "bf16")
    m.parameter("second.weight", 1, (8, 8), "bf16")
    x = source(m, [])
    output = linear(linear(unary(x), m.parameters["first.weight"]), m.parameters["second.weight"])
    split = m.turn()
    backward(m, unary(output))
    forward, back = m.events[:split], m.events[split:]
    kinds = [[e.kind for e in events if not isinstance(e, int)] for events in (forward, back)]
    assert kinds == [["product"], ["product", "gradient", "gradient"]]
