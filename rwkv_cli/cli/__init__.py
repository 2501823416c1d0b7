"""The command line: thin commands over `rwkv_cli`.

    main      the program: its commands, and the one place where errors become sentences and exit codes
    generate  pull  quantize  export  models  info  bench   a command each
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
