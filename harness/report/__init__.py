"""What a run SAYS: one table of cells in Markdown, HTML, JSON, JUnit XML, CSV and on the terminal.

Everything here but ``write`` and ``terminal`` is a pure function from rows to text: the same rows, in any order, give
the same bytes. Text that comes from a result (a library's exception, a log, a package's name for itself) is hostile
until ``text`` has been over it. It is escaped again by whatever format it ends up in.
"""
