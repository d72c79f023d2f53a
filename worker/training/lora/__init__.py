"""LoRA adapters: their training data, and the training itself, which alone imports torch, in the child."""
