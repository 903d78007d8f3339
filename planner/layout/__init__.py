"""Where it lies: ranks and groups, how tensors are cut, the layers of a stage, the schedule."""
