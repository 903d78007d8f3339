"""What a training framework adds to the model's own tensors."""
