"""Text and token ids, without a model.

tokenizer      vocabularies: text to token ids and back
text_stream    tokens become text as they come
stop_strings   stop strings in text that arrives in pieces
template       prompt formats, as data
template_file  prompt formats of the user's own
generations    what the names of published models tell, such as the format to talk to them in
thinking       the thought before an answer, told apart from it
"""
