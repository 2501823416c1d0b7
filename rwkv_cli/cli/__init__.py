"""The command line: thin commands over `rwkv_cli`.

    main      the program: its commands, and the one place where errors become sentences and exit codes
    generate  pull  quantize  export  models  info  bench  state  chat   a command each
    run       one generation: from a prompt or a state to text and a state
    resume    where a command goes on from, and where it saves
    interrupts  Ctrl-C between two tokens
    state_files  state_view  heatmap   what state does with files, and what it shows
    chat_loop  chat_session  chat_commands  chat_input  chat_view   the parts of a chat
    markdown  wrap   text that arrives in pieces, styled and wrapped
    facts     what info tells
    catalogue what models tells
    costs     what quantize tells
    complete  names that a shell offers
    speeds    what bench tells
    options   options of the commands
    prompt    where a prompt comes from
    output    steps of a generation, as text or as JSON
    progress  what is shown while one waits
    ui        the terminal

`rwkv --help` imports main, the commands, options and nothing else: commands import what they need when they run.
"""
