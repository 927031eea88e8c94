"""The stages of a cell, one module each: what is done, never in which order or process.

Order and process are decided in ``harness.worker.cell`` and ``harness.worker.run``.
"""
