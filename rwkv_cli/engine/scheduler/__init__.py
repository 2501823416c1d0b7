"""Many sequences at once: requests wait in a fair queue, join a batch as it has room, and leave when they are done.

request     what is asked: tokens to read, how to choose those that follow, and when to end
handle      a request on its way: the tokens that it was given, and where it stands
scheduler   the loop: who joins, who reads how much, who gets the next token, who leaves
fair_queue  whose turn it is
rows        sequences in the slots of a batch
shared_prefixes, prefix_tree   which prompts begin alike: what they have in common is read once
"""

from rwkv_cli.engine.scheduler.handle import Handle
from rwkv_cli.engine.scheduler.request import Observation, Request
from rwkv_cli.engine.scheduler.scheduler import Scheduler

__all__ = ["Handle", "Observation", "Request", "Scheduler"]
