"""What one pass through a layer allocates and frees, operation by operation, for autograd."""
