"""Codes that are not what was asked for, or mean something else."""
