"""What the command line shows of its flags: each default once, those of `train` in groups with the usual ones first."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from experiments.lab.declare.config import Machine, RunConfig
from experiments.lab.declare.grid import SINGLE
from experiments.lab.declare.settings import words_of

OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
OptionalText = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
"""what is left out has a meaning of its own, which the flag's text says"""
Switch = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
"""off unless it is named"""

METAVARS: Mapping[Any, str] = {int | None: "INT", float | None: "FLOAT", str | None: "STR", Path | None: "PATH"}

ALIASES = {"dataset": ["--data"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt, and other settings than a scale's own."""

    model: OptionalText = None
    """another network: a name, or MODULE:FUNCTION of your own (default: the scale's)"""
    model_option: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")]] = ()
    """what else your own network is called with, as NAME=VALUE; may be repeated"""
    dataset: Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="", aliases=ALIASES["dataset"])] = None
    """other data: a name, MODULE:FUNCTION, or FORMAT:PATH of your own (default: the scale's)"""
    loss: OptionalText = None
    """another loss: cross_entropy, mse, bce, or MODULE:NAME of your own (default: the scale's)"""
    optimizer: OptionalText = None
    """another optimizer: a name, or MODULE:FUNCTION of your own (default: the scale's)"""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """another setting than the scale's own, as FIELD=VALUE (`plan` lists them); may be repeated"""


def with_task(options: Any) -> Any:
    """`options` with the flags of the task among the settings: they are the same as `--set`."""
    if not isinstance(options, Task):
        return options
    own = {"model": options.model, "model_options": " ".join(sorted(options.model_option)) or None, "dataset": options.dataset,
           "loss": options.loss, "optimizer": options.optimizer}
    words = tuple(f"{name}={value}" for name, value in own.items() if value is not None)
    return dataclasses.replace(options, model=None, model_option=(), dataset=None, loss=None, optimizer=None,
                               set=(*words, *options.set))


USUAL = ("dataset", "model", "batch_size", "lr", "optimizer", "budget", "epochs", "seed")
GROUPS = {
    "task": ("data_sha256", "n_train", "n_validation", "train_draw", "augment", "label_noise", "imbalance", "model_options",
             "model_sha256", "width", "depth", "norm", "norm_batch", "loss", "loss_sha256", "allow_random", "parent"),
    "optimizer": ("optimizer_sha256", "momentum", "nesterov", "beta1", "beta2", "eps", "trust", "clip_norm", "noise_batch"),
    "schedule": ("schedule", "warmup", "final_lr", "scaling", "base_batch_size", "batch_growth"),
    "budget": ("steps", "train_loss", "patience", "max_epochs"),
    "regularisation": ("weight_decay", "dropout", "label_smoothing", "sam_rho", "sam_adaptive", "gradient_penalty",
                       "penalty_batch", "ema"),
    "machine": ("precision", "tf32"),
}
"""every field of `RunConfig` is a usual one or in one of these"""


def texts(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass, which is documentation to Python and help on the command line."""
    (declared,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(declared, ast.ClassDef)
    return {field.target.id: " ".join(text.value.value.split())
            for field, text in itertools.pairwise(declared.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)}


def flags_of(kind: type, names: tuple[str, ...], *, lists: bool = False) -> list[tuple[str, Any, Any]]:
    """Fields of `kind` as fields of another dataclass, each a flag of its own name wherever it stands.

    Those of a run take True or False, as its record does; a switch is on where it is named. With `lists` those that may be
    lists are texts.
    """
    hints, said, declared = get_type_hints(kind), texts(kind), {field.name: field for field in dataclasses.fields(kind)}
    found = []
    for name in names:
        if name == "model_options":
            found.append(("model_option", tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(
                prefix_name=False, help="what else your own model is called with, as NAME=VALUE", metavar="NAME=VALUE")]],
                dataclasses.field(default=())))
            continue
        if lists and name not in SINGLE:
            found.append(_list_flag(name, hints[name], said.get(name), declared[name].default))
            continue
        default, switch = declared[name].default, hints[name] is bool and kind is not RunConfig
        shown = tyro.conf.arg(prefix_name=False, aliases=ALIASES.get(name), help=said.get(name),
                              metavar=METAVARS.get(hints[name]), help_behavior_hint="" if default is None or switch else None)
        plain = hints[name] if switch else tyro.conf.FlagConversionOff[hints[name]]
        found.append((name, Annotated[plain, shown], dataclasses.field(default=default)))
    return found


def _list_flag(name: str, hint: Any, said: str | None, default: Any) -> tuple[str, Any, Any]:
    """A field of a run as the text of one value or of several. Required are batch size and learning rate: of the budget its
    length says which it is."""
    optional = default is None or name == "budget"
    shown = tyro.conf.arg(prefix_name=False, help=said, metavar=f"{METAVARS.get(hint | None, 'STR')}[,...]",
                          help_behavior_hint="" if optional else None)
    if optional:
        return name, Annotated[str | None, shown], dataclasses.field(default=None)
    if default is dataclasses.MISSING:
        return name, Annotated[str, shown], dataclasses.field()
    return name, Annotated[str, shown], dataclasses.field(default=words_of(default))


def grouped(common: type, usual_ones: type | None = None) -> type:
    """The flags of one run, as a dataclass to parse: of the fields of `common` the store is a usual one.

    With `usual_ones`, whose fields come first, they are the flags of a sweep.
    """
    lists = usual_ones is not None
    machine = [] if lists else flags_of(Machine, ("threads", "micro_batch"))
    groups = {name: flags_of(RunConfig, fields, lists=lists) for name, fields in GROUPS.items()}
    groups["machine"] += [*machine, *flags_of(common, ("data_dir", "json"))]
    usual = [*flags_of(RunConfig, USUAL, lists=lists), *([] if lists else flags_of(Machine, ("device",))),
             *flags_of(common, ("store",))]
    if usual_ones is not None:
        usual += flags_of(usual_ones, tuple(field.name for field in dataclasses.fields(usual_ones)))
    made = [(f"{name}_flags", Annotated[dataclasses.make_dataclass(name, fields, kw_only=True), tyro.conf.arg(name=name)],
             dataclasses.field())
            for name, fields in groups.items()]
    return dataclasses.make_dataclass("Flags", [*usual, *made], kw_only=True)


def values(flags: Any) -> dict[str, Any]:
    """Every flag of `grouped` by name, its group forgotten."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(flags):
        value = getattr(flags, field.name)
        found |= values(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return found
