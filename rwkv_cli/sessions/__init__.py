"""What people do with a session of the engine: conversations, batches, and states that are kept.

continuation    one text that continues a prompt, a saved state or both
conversation    turns of a user and a model
answer_stream   an answer while it is generated
snapshots       where a conversation stood after each turn, in bounded memory
transcript      what was said, as data
batch           many prompts, answered together
prompt_cache    long prompts are read once
model_identity  which model a state belongs to
state_file      the file format of a saved state
state_store     saved states by name, and their locks
autosave        a conversation and the file that it is saved to after every answer
kept_chats      the last conversations without a name
resume          where a command continues from, and with which model
"""
