"""Tools that a model may call: what is offered to it, and what it answers.

- `tools`: their descriptions, as OpenAI's clients send them
- `layout`: how they are put before a model of each generation, and how results go back in
- `parser`: the calls in an answer, in every form that models write
"""
