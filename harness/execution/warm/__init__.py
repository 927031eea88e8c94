"""Warm workers: one process for each environment has imported the libraries, and each cell is a fork of it.

``worker`` is one such process, seen from here. ``home`` is its directory. ``pool`` keeps as many as are useful,
replaces those that died or were touched, and says where there can be none. The other side is ``harness.worker.warm``.
"""
