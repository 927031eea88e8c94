"""A PEFT LoRA adapter: its configuration, its keys, which modules it means, and how the LoRA of a fused expert
parameter is laid out.
"""
