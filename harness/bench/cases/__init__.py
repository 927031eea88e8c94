"""What is asked: one file each, with ``ORDER``, ``steps(settings)`` and ``section(found, settings)`` in it.

See ``harness.bench.case``.
"""
