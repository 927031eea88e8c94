"""What measured processes run beside merging: a module each with ``load()`` and ``run(request)``, as contenders have
them.

Nothing but the standard library is imported outside functions.
"""
