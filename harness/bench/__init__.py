"""How fast, how lean and how exact the merge engine is, measured beside other ways to do the same on one machine in one
run.

Everything that is timed happens in a process of its own, started by ``process`` from a copy of this package and of
``harness.merge``, with the interpreter that the contender needs. It imports its libraries, says so, and begins when it
is told to: so imports are measured apart, and the page cache is made cold or warm at the last moment. What is compared
is interleaved, pair by pair, in alternating order, and judged by the median of the ratios of pairs, because a machine's
speed drifts more than two engines differ.

A contender is a file in ``contenders``, a case (a question and its table) a file in ``cases``. Nothing here is ever
asserted in a test: a goal that is not reached is reported as not reached.
"""
