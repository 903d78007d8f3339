"""Memory of every device in distributed training, before a GPU is rented."""
