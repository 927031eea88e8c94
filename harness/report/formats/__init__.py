"""The formats of a report, one file each: the folder is the catalogue, and ``write_report`` writes whatever it finds here.

A file that ends in ``FORMAT`` is a format; what that is, is in ``harness.report.format``.
"""
