"""`rwkv generate`: text from a prompt."""

from __future__ import annotations

import typer

from rwkv_cli.cli import options, tool_options
from rwkv_cli.cli.constraint_options import Constraint, with_constraint
from rwkv_cli.cli.sampling_options import with_sampling
from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import SamplingOverrides


@with_constraint
@with_sampling
def generate(
    words: options.PromptWords = None,
    *,
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    batch: options.Batch = None,
    batch_size: options.BatchSize = None,
    template: options.Template = None,
    raw: options.Raw = False,
    system: options.System = None,
    think: options.Think = None,
    tools: tool_options.Tools = None,
    tool_choice: tool_options.ToolChoice = None,
    model: options.Model = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    draft: options.Draft = None,
    sampling: SamplingOverrides,
    constraint: Constraint = None,
    state: options.State = None,
    save_state: options.SaveState = None,
    no_text: options.NoText = False,
    compact: options.Compact = False,
    no_cache: options.NoCache = False,
    max_tokens: options.MaxTokens = None,
    echo: options.Echo = False,
    stop: options.Stop = None,
    unordered: options.Unordered = False,
    resume: options.ResumeBatch = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Generate text from a prompt.

    The prompt is an argument, or comes from --prompt, --prompt-file or a pipe; of several, what was read comes first.
    The text goes to standard output. What a model thinks before it answers is dimmed on a terminal, and left out
    elsewhere. With --json, every token is a JSON object on a line of its own, and the last line has the whole text and
    the totals. With --batch, there are many prompts, and every answer is one line of JSON: see docs/batch.md.

    Examples:
        # Continue a text with the built-in model
        rwkv generate "Once upon a time"
        # Ask a model that was pulled, and take the likeliest answer
        rwkv generate -m g1-0.1b "Why is the sky blue?" -t 0
        # Ask about what another program prints
        git log -5 | rwkv generate -m g1-0.1b "What was done?"
        # Continue a story in a file, into another one
        rwkv generate -f story.txt --echo > longer.txt
        # Read a file once, and ask about it as often as you like
        rwkv state save book --prompt-file book.txt
        rwkv generate --state book "Who is the hero?"
        # Answer every line of a file; after an interruption, the same command continues
        rwkv generate --batch questions.txt --resume answers.jsonl
        # Have an answer that a program can use
        rwkv generate -m g1-0.1b "Is the sea blue?" --choice yes --choice no
    """
    from rwkv_cli import settings
    from rwkv_cli.cli.commands.one_generation import Request, run
    from rwkv_cli.cli.prompt import parse_stops, read_prompt, words_or_option

    prompt = words_or_option(words, prompt)
    if raw and template:
        raise UsageError("give either --raw or --template, not both")
    if save_state is None and (no_text or compact or force):
        raise UsageError("--no-text, --compact and --force need --save-state")
    if batch is not None:
        others = {
            "--prompt": prompt,
            "--prompt-file": prompt_file,
            "--save-state": save_state,
            "--draft": draft,
            "--tools": tools,
        }
        options.refuse_with("--batch", others)
        if echo:
            raise UsageError("--batch has the prompt in every line anyway: leave out --echo")
    else:
        options.refuse_without(
            "--batch", {"--batch-size": batch_size, "--unordered": unordered or None, "--resume": resume}
        )
    offered = tool_options.parse(tools, tool_choice)
    if constraint and tool_choice not in (None, "auto", "none"):
        raise UsageError("give either --tool-choice or a form of the answer, not both")
    user = settings.load()
    prompt_format = options.parse_template("raw" if raw else template)
    if batch is not None:
        from rwkv_cli.cli.commands.generate_batch import run as run_batch
        from rwkv_cli.datasets.job import Job

        job = Job(
            model=model,
            default_model=user.model,
            device=device,
            threads=threads,
            template=prompt_format,
            system=options.parse_system(system),
            think=think,
            stops=parse_stops(stop or ()),
            max_tokens=options.limit_of(max_tokens),
            sampling=sampling,
            default_sampling=user.sampling,
            constraint=constraint,
            state=state,
            cache=not no_cache,
            batch_size=batch_size,
        )
        raise typer.Exit(run_batch(job, batch, unordered=unordered, out=resume, quiet=quiet))
    request = Request(
        template=prompt_format,
        system=options.parse_system(system),
        think=think,
        stops=parse_stops(stop or ()),
        text=read_prompt(prompt, prompt_file, optional=state is not None),
        model=model,
        device=device,
        threads=threads,
        draft=draft,
        sampling=sampling,
        constraint=constraint,
        tools=offered,
        tool_choice=tool_choice or "auto",
        state=state,
        save_state=save_state,
        keep_text=not no_text,
        compact=compact,
        cache=not no_cache,
        max_tokens=options.limit_of(max_tokens),
        settings=user,
        force=force,
        echo=echo,
        json=json,
        quiet=quiet,
    )
    raise typer.Exit(run(request))
