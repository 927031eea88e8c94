"""Who merges: one file each, with the same names in it.

``TITLE``, ``VERSIONED`` (packages whose versions the report names) and ``python(log)`` belong to the driver.
``python(log)`` gives the interpreter. ``load()`` and ``run(request)`` belong to the measured process, which runs in
that interpreter. So nothing but the standard library is imported outside functions. ``run`` merges
``request["adapter"]`` into ``request["base"]`` and leaves a durable checkpoint at ``request["out"]``.
"""
