"""Ours: ``harness.merge``, streaming, float32 arithmetic rounded once, everything else copied byte for byte."""

from __future__ import annotations

from harness.engines.engine import Claims, Engine, Job, Merged, run_in_this_process


class Reference:
    """The reference merge engine, as a program calls it that has no doubts about the adapter's layout."""

    keeps_bytes = True

    def merge(self, job: Job) -> Merged:
        """Merge; device and threads are the process's own matter, and the stored dtype is kept.

        Raises:
            harness.merge.MergeError: the engine refused; nothing was published.
        """
        from harness.merge import merge, plan_merge

        def work() -> Claims:
            report = merge(plan_merge(job.base, job.adapters), job.out)
            return Claims(attempted=report.attempted, applied=report.applied)

        return run_in_this_process(work)


ENGINE: Engine = Reference()
