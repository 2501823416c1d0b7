"""Text and token ids, without a model.

tokenizer      vocabularies: text to token ids and back; tokenizers_library is what one kind stands on
text_stream    tokens become text as they come
stop_strings   stop strings in text that arrives in pieces
template       a prompt format, as data
template_file  prompt formats as tables of a file
chat_template  prompt formats in Jinja, which models bring; jinja runs them, in the process of jinja_worker
templates      all of them by name, and the one for a model
generations    what the names of published models tell, such as the format to talk to them in
prompt_bytes   prompts as bytes of files
thinking       the thought before an answer, told apart from it
"""
