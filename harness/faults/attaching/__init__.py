"""A LoRA that is not where, or not what, it should be."""
