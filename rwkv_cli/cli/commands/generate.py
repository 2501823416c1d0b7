"""`rwkv generate`: text that goes on from a prompt."""

from __future__ import annotations

import typer

from rwkv_cli.cli import options
from rwkv_cli.errors import UsageError


def generate(
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    batch: options.Batch = None,
    batch_size: options.BatchSize = None,
    model: options.Model = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    max_tokens: options.MaxTokens = 256,
    stop: options.Stop = None,
    template: options.Template = None,
    raw: options.Raw = False,
    system: options.System = None,
    state: options.State = None,
    save_state: options.SaveState = None,
    no_text: options.NoText = False,
    compact: options.Compact = False,
    force: options.Force = False,
    no_cache: options.NoCache = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    penalty_decay: options.PenaltyDecay = None,
    seed: options.Seed = None,
    logit_bias: options.LogitBias = None,
    ban: options.Ban = None,
) -> None:
    """Generate text that goes on from a prompt.

    The prompt comes from --prompt, --prompt-file or standard input, the text goes to standard output.
    With --batch there are many prompts, and an answer is one JSON object a line: see docs/batch.md.
    Of the sampling options, from --temperature on, those that are not given are the model's own: see rwkv info.
    """
    from rwkv_cli.cli.commands.one_generation import Request, run
    from rwkv_cli.cli.prompt import checked_text, read_prompt, unescaped
    from rwkv_cli.text.stop_strings import StopFilter
    from rwkv_cli.text.template_file import open_template

    if raw and template:
        raise UsageError("give either --raw or --template, not both")
    if save_state is None and (no_text or compact or force):
        raise UsageError("--no-text, --compact and --force are for --save-state, which is not there")
    if batch is not None:
        others = {"--prompt": prompt, "--prompt-file": prompt_file, "--state": state}
        options.refuse_with("--batch", others | {"--save-state": save_state})
        if json:
            raise UsageError("--batch writes JSON lines anyway: leave --json out")
    elif batch_size is not None:
        raise UsageError("--batch-size is for --batch, which is not there")
    template = "raw" if raw else template
    layout = open_template(template) if template else None
    system = None if system is None else checked_text(system, "system text")
    stops = [unescaped(checked_text(each, "stop string")) for each in stop or ()]
    chosen = options.sampling(
        logit_bias,
        ban,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        penalty_decay=penalty_decay,
        seed=seed,
    )
    StopFilter(stops)  # before a large model is loaded, or even quantized
    request = Request(
        text="" if batch is not None else read_prompt(prompt, prompt_file, optional=state is not None),
        model=model,
        device=device,
        threads=threads,
        max_tokens=max_tokens,
        stops=stops,
        template=layout,
        system=system,
        state=state,
        save_state=save_state,
        keep_text=not no_text,
        compact=compact,
        force=force,
        cache=not no_cache,
        json=json,
        quiet=quiet,
        sampling=chosen,
    )
    if batch is not None:
        from rwkv_cli.cli.commands.batch import run as run_batch

        raise typer.Exit(run_batch(request, batch, batch_size))
    raise typer.Exit(run(request))
