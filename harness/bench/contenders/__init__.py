"""Who merges: one file each, with the same names in it.

``TITLE``, ``VERSIONED`` (packages whose versions the report names) and ``python(log)``, which gives the interpreter,
belong to the driver. ``load()`` and ``run(request)`` belong to the measured process, which runs in that interpreter: so
nothing but the standard library is imported outside functions. ``run`` merges ``request["adapter"]`` into
``request["base"]`` and leaves a durable checkpoint at ``request["out"]``.
"""
