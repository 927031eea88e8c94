"""Quantise on load: fused experts kept as bitsandbytes' 4-bit or 8-bit codes.

The codes are behind a tensor that looks like the parameter it replaces.
"""
