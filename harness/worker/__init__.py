"""Inside a cell: checkpoints, training, merge, reload, comparison and controls.

The worker uses the standard library and the libraries under test, nothing else. It is copied beside ``harness.merge`` (and
``experts``, ``engines``, ``faults``) to a folder that holds nothing of the host, and started by path inside the cell's
environment: one request file in, one observation file out.
"""
