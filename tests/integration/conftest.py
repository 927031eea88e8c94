"""Makes the fixtures of ``real_stacks`` known to every test here, and lets every cell run: none is reused."""

import os

from real_stacks import matrix_run

os.environ["MOE_LORA_HARNESS_RESULTS_SIZE"] = "0"

__all__ = ["matrix_run"]
