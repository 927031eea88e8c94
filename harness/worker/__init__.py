"""Inside a cell: checkpoints, training, merge, reload, comparison and controls.

The worker uses the standard library and the libraries under test, nothing else. It is copied beside ``harness.merge``,
``experts``, ``engines`` and ``faults`` to a folder that holds nothing of the host. There it is started by path, with
the cell's environment. One request file goes in, one observation file comes out.
"""
