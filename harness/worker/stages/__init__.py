"""The stages of a cell, one module each: what is done, never in which order or process (that is ``harness.worker.cell`` and ``harness.worker.run``)."""
