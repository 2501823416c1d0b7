"""From a model by name or path to a model file with weights of one type."""

from __future__ import annotations

from pathlib import Path

from rwkv_cli.catalog import registry
from rwkv_cli.convert.conversion import Source, convert, open_source
from rwkv_cli.convert.template_choice import ChosenTemplate
from rwkv_cli.errors import StorageError, UsageError
from rwkv_cli.evaluation import advice
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import MIXED, WEIGHT_TYPES, Rounder, WeightType
from rwkv_cli.reporting import Reporter, default_reporter
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import get_template


def quantize(
    source: str | Path,
    target: str | Path | None = None,
    weight_type: WeightType = "int8",
    *,
    template: str | Template | None = None,
    lora: str | Path | None = None,
    lora_alpha: float | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Convert a model of any readable format into one model file; all or nothing. Gives its path.

    `source` is a path or a name, as for `load`; `target` a file or a folder, by default SOURCE-TYPE.safetensors in the
    current one, which is replaced only with `force`. `weight_type` is "int8", "int4", "fp16" or "fp32". `template` is
    the prompt format to record; None takes that of the files. A `lora` adapter is merged first; `lora_alpha` is needed
    unless an adapter_config.json has it. Raises UsageError, CheckpointError, ModelFileError, TokenizerError and
    StorageError.
    """
    reporter = reporter or default_reporter()
    if weight_type not in WEIGHT_TYPES:
        raise UsageError(
            f"{{weight_type}} is {str(weight_type)[:40]!r}: it must be one of {', '.join(WEIGHT_TYPES)}"
        )
    layout = get_template(template) if isinstance(template, str) else template
    opened = open_source(registry.locate(source), None if lora is None else Path(lora), lora_alpha)
    path = target_of(opened.path, None if target is None else Path(target), weight_type)
    check_target(opened, path, weight_type, force, changes=layout is not None)
    write(opened, path, weight_type, reporter, ChosenTemplate(layout, "the caller") if layout else None)
    return path


def target_of(source: Path, target: Path | None, weight_type: WeightType) -> Path:
    """The file to write; in a folder, by default the current one, it is named after the source."""
    folder = Path() if target is None else target
    if target is not None and not target.is_dir():
        return target
    source = source.resolve()
    name = source.name if source.is_dir() else source.stem
    for kind in (*WEIGHT_TYPES, MIXED):  # the name of a model file of ours ends in its type
        name = name.removesuffix(f"-{kind}")
    return folder / f"{name}-{weight_type}.safetensors"


def check_target(
    source: Source, target: Path, weight_type: WeightType, force: bool, *, changes: bool
) -> None:
    """Raise, before the work, if it would change nothing, or the target must not be replaced or cannot be written.

    `changes` says whether the model file is to have another template. Raises UsageError, StorageError.
    """
    is_same_type = isinstance(source.origin, ModelFile) and source.dtype == weight_type
    if is_same_type and not (changes or source.adapter):
        raise UsageError(
            f"{source.path} is a model file of type {weight_type} already: choose another {{weight_type}}"
        )
    if not target.parent.is_dir():
        raise StorageError(f"cannot write {target}: the folder {target.parent} does not exist")
    if not target.exists():
        return
    if any(target.samefile(file) for file in source.files):
        raise UsageError(f"{target} is the model itself: choose another name for the new file")
    if not target.is_file():
        raise UsageError(f"{target} is not a regular file, so it cannot be replaced")
    if not force:
        raise UsageError(f"{target} exists already: use {{force=true}} to replace it")


def write(
    source: Source,
    target: Path,
    weight_type: WeightType,
    reporter: Reporter,
    chosen: ChosenTemplate | None,
    rounder: Rounder | None = None,
) -> None:
    """Write the model file, and say what there is to know about its accuracy. Raises like `conversion.convert`."""
    remark(source, weight_type, reporter)
    convert(source, target, weight_type, reporter, chosen, rounder)


def remark(source: Source, weight_type: WeightType, reporter: Reporter) -> None:
    """Report what there is to know about the accuracy of a model file of this type, before it is written."""
    if source.is_quantized:
        reporter.note(
            f"{source.path.name} is {source.dtype}: converting it rounds a second time, which costs accuracy"
        )
    if warning := advice.warning(source.config, weight_type):
        reporter.note(warning)
