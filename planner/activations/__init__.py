"""What one pass through a layer allocates and frees, operation by operation, for autograd.

`layers.stage_tapes` gives the tapes of a stage's layers, `layers.layer_tape` that of one layer,
`layers.saved_by_component` what the layer saves, by part.

How it works. `eager` is PyTorch on paper: tensors have shape, strides and dtype but no numbers, and
each operation allocates what PyTorch's allocates, records a node that saves what PyTorch's saves,
and knows what its backward function allocates. A *program* (in `programs`) is a Python function
over such tensors that reads like the layer's own ``forward``. It runs, autograd's engine runs
backward over the recorded graph, and a `Machine` writes down every allocation and every end of one.
Lives end when the last reference goes, by CPython's own counting, as in the code that a program
mirrors. So write programs as that code is written:

    def feed_forward(m: Machine, case: Case, x: Tensor) -> Tensor:
        with m.part("mlp"):
            gate = activate("silu", project(m, x, "mlp.gate_proj"))
            return project(m, mul(gate, project(m, x, "mlp.up_proj")), "mlp.down_proj")

- A name that the original rebinds is rebound (``hidden = norm(hidden)`` frees the old tensor if
  nothing saved it); a name that the original keeps to the end of the function is kept.
- A value that the original binds and never uses is bound: ``hidden, _ = self_attention(...)``.
- ``nn.Module.__call__`` holds its inputs until it returns. ``m.module(name, forward, *inputs)``
  does the same, marks where the module's parameters are entered and left, and is the way to call
  what owns parameters. ``m.get(module, "weight")`` finds them, already cut to this rank.
- ``with m.part("attention.core")`` names the part for `saved_by_component`;
  ``m.booked_as(term)`` and ``m.book(tensor, term)`` put allocations under a term of their own. All
  else becomes ACTIVATIONS if alive between the passes, and TRANSIENT if not.
- A new operation is two functions. Forward calls ``begin(backward, *inputs, facts=...)``, saves
  inputs on the node, allocates (``empty``, ``like``), saves outputs, and returns
  ``finish(node, output)``. Backward takes the node and the gradient of each output and returns one
  gradient for each input, None where ``node.needs`` says that nobody asks. It names temporaries
  that live through a C++ expression, and hands one gradient to two inputs with
  ``gradient.again()``.

Left out: token ids, labels and padding masks (the batch is the caller's), the state of random
generators, scalars that kernels wrap, and workspaces inside CPU kernels. CUDA kernels follow the
same operations with their documented outputs and workspaces (`eager.nn`).
"""
