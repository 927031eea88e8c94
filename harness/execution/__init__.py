"""HOW cells run: child processes of their own, supervised, a few at a time, each ending in one result file.

The parts, in the order in which a cell meets them:

- ``bundle``: the code a worker runs from.
- ``request``: what it is asked.
- ``supervise``: one child process, its limits and its end.
- ``finalise``: what the child left behind becomes a result.
- ``store``: results on disk.
- ``executors.local``: these five for one cell.
- ``scheduler``: all cells.
- ``progress``: what a person sees.

Nothing here imports torch. Nothing here decides what a cell's numbers mean: that is the worker's and the report's.
"""
