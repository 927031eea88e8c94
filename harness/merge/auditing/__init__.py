"""The audit: base, adapter and somebody's merged checkpoint, compared tensor by tensor without loading a model.

What should have changed is counted from the adapter and the base, by the same plan that a merge of ours follows. What
did change is measured from the bytes. The report's verdicts are defined in ``tensor_verdict.TensorVerdict``.
``harness.merge.audit`` is the function. This package holds its parts.
"""
