"""Differential verification and compatibility matrix for LoRA / QLoRA on Mixture-of-Experts models.

This module imports nothing: it is copied beside the worker into environments where only the libraries under test exist.
"""

__version__ = "0.1.0"
