"""The command line: thin commands over `rwkv_cli`.

    main              the program: its commands, and the one place where errors become sentences and exit codes
    options           the options of the commands, each declared once, and the names that errors use for them
    sampling_options  the ten options of sampling
    failures          what is told of exceptions that no command expected
    help_pages        options in panels, commands in groups, and examples
    completion        names that a shell completes
    default_model     the model that is used without --model
    prompt            where a prompt comes from
    commands/         a file per command
    chat/             the parts of a chat
    reports/          what commands print about models, states, speeds and quantization
    terminal/         text, progress and interrupts on a terminal; what is safe to show

`rwkv --help` imports main, the commands, options and nothing else: commands import what they need when they run.
"""
