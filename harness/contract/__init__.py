"""What host and worker tell each other, each thing written once.

That is: stages, outcomes, checks, cell fields, bands, tensor counts. It is the lowest layer. It uses the standard
library alone, because it is copied into every cell. Everything else is derived from it: the request, the observation,
the result's model, its JSON Schema, the tables of the documentation and the fixtures of the tests.
"""
