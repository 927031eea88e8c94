"""The formats of a report, one file each. The folder is the catalogue: ``write_report`` writes whatever it finds here.

A file that ends in ``FORMAT`` is a format. What that is, is in ``harness.report.format``.
"""
