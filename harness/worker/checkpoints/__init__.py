"""Tiny random checkpoints in the form in which each family's real repositories are published.

Bytes depend on the family, geometry, variant, dtype and seed alone: neither on a library's version nor on the machine.
"""
