"""Constraints on the choice of tokens, by grammars. The protocol that they implement is `engine.constraint`.

- `schema`: JSON Schemas, checked and prepared; `keywords`: what they say in other words
- `logic`: `not`, `if` and the like in terms of `anyOf`, by what `schema_sets` knows of the values that schemas allow
- `grammar`: what an answer has to look like, as data
- `requests`: grammars as requests in JSON name them
- `vocabulary`: a tokenizer, as the library llguidance needs it
- `guided`: the constraint that follows a grammar
"""
