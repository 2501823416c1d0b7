"""What `rwkv bench` measured, as tables."""

from __future__ import annotations

from collections.abc import Mapping

from rwkv_cli.cli.terminal import ui
from rwkv_cli.engine.bench import LongSummary, MemorySummary, Spread, Summary
from rwkv_cli.reporting import format_size

_NOTE = "over 100 %: weights of hidden units that are zero are skipped, and CPU caches may hold a small model"


def show(facts: Mapping[str, str | int | None], measured: Summary) -> None:
    """Print what was run, as texts or numbers by name, and what `rwkv_cli.engine.bench.summary` returned."""
    ui.table("run", {name.replace("_", " "): str(value or "-") for name, value in facts.items()})
    rows = {f"prefill {each['tokens']:,}": _spread(each["tokens_per_second"]) for each in measured["prefill"]}
    decode, memory, long = measured["decode"], measured["memory"], measured["long"]
    if decode:
        rows[f"decode {decode['tokens']:,}"] = _spread(decode["tokens_per_second"])
        rows["memory"] = _limit(memory) if memory else "-"
    if memory and memory["share_of_dense_limit"] > 1:
        rows["note"] = _NOTE
    if rows:
        ui.table("speed", rows)
    if long:
        ui.table("position", _positions(long))


def _spread(speed: Spread) -> str:
    text = f"{speed['mean']:,.1f} tokens/s"
    if speed["standard_deviation"] is None:
        return text
    return f"{text}, deviation {speed['standard_deviation']:,.1f}, {speed['min']:,.1f} to {speed['max']:,.1f}"


def _limit(memory: MemorySummary) -> str:
    share, speed = memory["share_of_dense_limit"], memory["bytes_per_second"]["mean"]
    return (
        f"{format_size(memory['bytes_per_token'])} per token, read at {format_size(round(speed))}/s: "
        f"{_percent(share)} of the dense limit"
    )


def _positions(long: LongSummary) -> dict[str, str]:
    """The first and the last stretch of a long run, and the first stretch of another run."""
    rows = {_tokens(each): _at(each) for each in (long["stretches"][0], long["stretches"][-1])}
    again, constancy = long["first_again"], long["last_relative_to_first_again"]
    if again and constancy:
        rows[f"{_tokens(again)}, again"] = f"{_at(again)}, alternating with the last"
        rows["last / first"] = _percent(constancy, 1)
    return rows


def _tokens(stretch: Mapping[str, float]) -> str:
    return f"tokens {stretch['from']:,} to {stretch['to']:,}"


def _at(stretch: Mapping[str, float]) -> str:
    return f"{stretch['tokens_per_second']:,.1f} tokens/s"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"
