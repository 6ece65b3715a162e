"""Image sets by name, as tensors that live on the training device."""
