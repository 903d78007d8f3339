"""The real engine as any rank of any number of devices, on tensors that have no bytes."""
