"""`rwkv serve`: models behind the APIs that clients speak, on starlette and uvicorn.

settings    how it is to run
run         sockets and signals; `app` has the routes, `guard` who may use them, `access_log` a line for each request
service     what all routes call
loaded      models by name, loaded when one is asked for
worker      the thread that runs a model; workers, where several devices do
turn_cache  where conversations stood, found again by the tokens of their history
chat/       an answer in a conversation: `messages` as tokens, the `place` where it begins, the `answer`
api/        the routes: each API's own words for the same things
"""
