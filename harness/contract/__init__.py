"""What host and worker tell each other, each thing written once: stages, outcomes, checks, cell fields, bands, tensor counts.

The lowest layer. It uses the standard library alone, because it is copied into every cell. The request, the observation, the
result's model, its JSON Schema, the tables of the documentation and the fixtures of the tests are derived from it.
"""
