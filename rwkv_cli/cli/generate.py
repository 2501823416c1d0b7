"""`rwkv generate`: text that goes on from a prompt."""

from __future__ import annotations

import secrets
from typing import Any

import typer

from rwkv_cli.cli import options
from rwkv_cli.errors import UsageError


def generate(
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    model: options.Model = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    max_tokens: options.MaxTokens = 256,
    stop: options.Stop = None,
    template: options.Template = None,
    raw: options.Raw = False,
    system: options.System = None,
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
    Of the sampling options, from --temperature on, those that are not given are the model's own: see rwkv info.
    """
    from rwkv_cli.cli.output import JsonOutput, TextOutput, stream
    from rwkv_cli.cli.progress import TerminalReporter
    from rwkv_cli.cli.prompt import checked_text, read_prompt, unescaped
    from rwkv_cli.model import load
    from rwkv_cli.sampling import SamplingSettings
    from rwkv_cli.streaming import StopFilter
    from rwkv_cli.template import get_template

    if raw and template:
        raise UsageError("give either --raw or --template, not both")
    layout = get_template(template or "raw") if raw or template else None
    text = read_prompt(prompt, prompt_file)
    system = None if system is None else checked_text(system, "system text")
    stops = [unescaped(checked_text(each, "stop string")) for each in stop or ()]
    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "penalty_decay": penalty_decay,
        "logit_bias": options.parse_logit_bias(logit_bias),
        "banned": frozenset(ban) if ban else None,
        "seed": secrets.randbits(32) if seed is None else seed,
    }
    sampling: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    SamplingSettings(**sampling)  # what is wrong here should not be said only after
    StopFilter(stops)  # a large model was loaded, or even quantized

    with TerminalReporter(quiet) as reporter:
        loaded = load(model, device, threads=threads, reporter=reporter)
    layout = layout or loaded.template
    generation = loaded.generate(
        text, max_tokens=max_tokens, template=layout.name, system=system, stop=stops, **sampling
    )
    echo = text if layout.user == "{prompt}" else ""  # where the text goes on from the prompt itself
    output = JsonOutput(loaded.path) if json else TextOutput(echo, quiet)
    raise typer.Exit(stream(generation, output, quiet))
