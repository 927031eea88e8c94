"""How a checkpoint lies on disk where published repositories of one family differ."""

VARIANTS = ("published", "per-expert", "text-prefix", "nested-config")
"""``published``: as the family's reference repositories. The others are those of Qwen3.5, whose repositories differ:
``per-expert`` (2D keys instead of fused 3D), ``text-prefix`` (``model.`` instead of ``model.language_model.``) and
``nested-config`` (a multimodal config.json with the text model under ``text_config``). A family may have others.
``tied`` is a checkpoint whose embeddings are the head too (``tie_word_embeddings``), as small models are published."""
