"""What Muon's update of one matrix allocates, operation by operation.

Line numbers are of runtime/zero/muon/original_muon.py of DeepSpeed 0.19.8. Its functions are
compiled (49, 78, 189); under a compiler the pointwise temporaries go, so that these bytes bound
what a compiled update takes. Gram's iteration, the default, runs in fp16 (35-47), which CUDA has;
so do CPU ranks of validations, to which DeepSpeed is told that they have it, too.
"""

from functools import lru_cache
from typing import Literal

from planner.activations.eager import Machine, Tensor, add, clone, like, scale, to
from planner.activations.eager.tensor import empty
from planner.activations.eager.views import transpose

STEPS = 5
RESTART = 2
Dtype = Literal["fp32", "fp16", "bf16"]


@lru_cache(maxsize=1024)
def update_bytes(shape: tuple[int, ...], dtype: Dtype) -> int:
    """Highest point of ``muon_update`` (189-234) above its gradient and momentum, result included.

    ``shape``: rows and columns; dims before them are a batch.
    """
    machine = Machine(backend="cuda", in_place=True, modules=False)
    machine.recording = False
    gradient = machine.uncounted(shape, dtype)
    result = _muon_update(gradient)
    del result
    return _highest(machine)


def _highest(machine: Machine) -> int:
    live = peak = 0
    for event in machine.events:
        assert isinstance(event, int)
        live += machine.sizes[event] if event > 0 else -machine.sizes[-event]
        peak = max(peak, live)
    return peak


def _muon_update(gradient: Tensor) -> Tensor:
    """The momentum is written in place, and so is Nesterov's blend (215-216)."""
    finite = _all_finite(gradient)
    blended = like(gradient)
    chosen = like(gradient)
    del blended, chosen
    update = to(_gram(gradient), gradient.dtype)
    result = like(update)
    del finite
    return result


def _all_finite(tensor: Tensor) -> Tensor:
    """``(x == x) * (x.abs() != inf)``, all of which live to its end; then one bool."""
    equal = like(tensor, "bool")
    magnitude = like(tensor)
    bounded = like(tensor, "bool")
    both = like(tensor, "bool")
    del equal, magnitude, bounded
    told = empty(tensor.machine, (), "bool")
    del both
    return told


def _gram(gradient: Tensor) -> Tensor:
    """``zeropower_via_gram_newtonschulz`` (79-147)."""
    x = to(gradient, "fp32") if gradient.dtype == "fp16" else gradient
    tall = x.shape[-2] > x.shape[-1]
    x = _turned(x) if tall else x
    x = to(_divided(x), "fp16")
    if x.shape[-1] <= x.shape[-2]:
        passed = [x]
        del x
        return _square(passed)
    gram, product = _product(x, _turned(x)), None
    for step in range(STEPS):
        if step == RESTART:
            assert product is not None
            x = _product(product, x)
            gram = _product(x, _turned(x))
            product = None
        change = add(scale(gram), _product(scale(gram), gram))
        if product is None:
            product = clone(change)
        else:
            product = add(scale(product), _product(change, product))
        if step < STEPS - 1 and step + 1 != RESTART:
            bent = add(scale(gram), _product(change, gram))
            gram = add(scale(bent), _product(change, bent))
    assert product is not None
    return _product(_turned(x), _turned(product)) if tall else _product(product, x)


def _square(passed: list[Tensor]) -> Tensor:
    """The iteration on the matrix itself (112-119), which nobody else holds."""
    x = passed.pop()
    for _ in range(STEPS):
        gram = _product(x, _turned(x))
        change = add(scale(gram), _product(scale(gram), gram))
        x = add(scale(x), _product(change, x))
    return x


def _divided(x: Tensor) -> Tensor:
    """By the norm of each matrix and a little more."""
    norm = empty(x.machine, (*x.shape[:-2], 1, 1), x.dtype)
    shifted = like(norm)
    del norm
    quotient = like(x)
    del shifted
    return quotient


def _turned(x: Tensor) -> Tensor:
    """``x.mT``."""
    return transpose(x, len(x.shape) - 2, len(x.shape) - 1)


def _product(first: Tensor, second: Tensor) -> Tensor:
    return empty(first.machine, (*first.shape[:-1], second.shape[-1]), first.dtype)
