"""What is asked: one file each, with ``ORDER``, ``steps(settings)`` and ``section(found, settings)`` in it; see ``harness.bench.case``."""
