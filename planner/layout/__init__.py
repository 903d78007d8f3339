"""Where it lies: ranks and groups, how a tensor is cut, which layers a stage holds, the schedule."""
