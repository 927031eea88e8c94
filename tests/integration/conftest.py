"""Makes the fixtures of ``real_stacks`` known to every test here."""

from real_stacks import matrix_run

__all__ = ["matrix_run"]
