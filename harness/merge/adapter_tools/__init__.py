"""Adapters by themselves: what one holds, and the same adapter in another layout.

``inspect_adapter`` reads and reports; ``convert_adapter`` rewrites between io layouts, packings of lora_B, and experts
fused or one by one, where that loses nothing, so that an adapter made with one release works in another. Neither needs
the model.
"""
