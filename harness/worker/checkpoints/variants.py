"""How a checkpoint lies on disk where published repositories of one family differ."""

VARIANTS = ("published", "per-expert", "text-prefix", "nested-config")
"""``published``: as the family's reference repositories. The others exist where a family module offers them:
``per-expert`` (2D keys instead of fused 3D), ``text-prefix`` (``model.`` instead of ``model.language_model.``) and
``nested-config`` (a multimodal config.json with the text model under ``text_config``)."""
