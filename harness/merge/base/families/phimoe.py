"""phimoe: the router is ``gate`` on disk and in transformers 4.x, ``router`` in memory from 5.0 on."""

from __future__ import annotations

from harness.merge.base.families import Family

FAMILY = Family(model_types=("phimoe",), renames=((r"\.mlp\.gate(?=\.|$)", ".mlp.router"),))
