"""How a batch reaches the model and the loss: positions, keywords, or whole."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from torch import Tensor, nn

from sharpness.problem.nested import rows, tensors_of

Way = Literal["whole", "positions", "keywords", "keywords without labels"]
Part = Literal["whole", "logits"]
LABELS = ("labels", "label", "targets", "target")
_LONG = 150  # characters of another's message that are passed on


class ForeignError(ValueError):
    """Model, loss or data raised: their fault, in one sentence."""


class Weighted(NamedTuple):
    """Targets of a batch (inputs, targets, weights): the loss gets both."""

    targets: Any
    weights: Any


@dataclass(frozen=True)
class Call:
    """How inputs reach the model, and which part of its answer the loss gets.

    way: "whole", `model(inputs)`; "positions", `model(*inputs)`; "keywords", `model(**inputs)`; "keywords without labels",
        the same less the entry that holds the targets.
    part: "whole", or "logits", the answer's attribute or entry of that name.
    """

    way: Way = "whole"
    part: Part = "whole"

    def __call__(self, model: nn.Module, inputs: Any) -> Any:
        """What the loss gets."""
        if self.way == "positions":
            answer = model(*inputs)
        elif self.way == "keywords":
            answer = model(**inputs)
        elif self.way == "keywords without labels":
            answer = model(**{key: part for key, part in inputs.items() if key not in LABELS})
        else:
            answer = model(inputs)
        return logits_of(answer) if self.part == "logits" else answer


def as_pair(batch: Any) -> tuple[Any, Any]:
    """A batch as (inputs, targets): pairs as they are; (inputs, targets, weights) with `Weighted` targets; a mapping with
    "labels" (or "label", "targets", "target") as (itself, that entry).

    Raises ValueError for anything else.
    """
    if isinstance(batch, Mapping):
        name = next((name for name in LABELS if name in batch), None)
        if name is not None:
            return batch, batch[name]
    elif isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
        pair = (batch[0], batch[1]) if len(batch) == 2 else (batch[0], Weighted(batch[1], batch[2]))
        if not (isinstance(pair[1], Tensor) and pair[1].ndim == 0) and not isinstance(pair[1], (str, int, float)):
            return pair
    refuse_data(batch)


def refuse_data(found: Any) -> NoReturn:
    kind = f"{type(found).__name__} of {len(found)}" if isinstance(found, (tuple, list, dict)) else type(found).__name__
    raise ValueError(
        f"data holds a {kind} where a batch (inputs, targets) belongs, targets with the batch first: pass a pair of tensors, "
        "or a list or DataLoader of such pairs, of (inputs, targets, weights), or of dicts with 'labels'"
    )


def length_of(inputs: Any, targets: Any) -> int:
    """The number of examples of a batch: the targets' rows, else the inputs'."""
    found = rows(targets)
    found = rows(inputs) if found is None else found
    return 1 if found is None else found


def with_weights(loss: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """`loss` as a function of outputs and targets, which may be `Weighted`."""

    def of_batch(outputs: Any, targets: Any) -> Any:
        return loss(outputs, *targets) if isinstance(targets, Weighted) else loss(outputs, targets)

    return of_batch


def logits_of(answer: Any) -> Any:
    """`answer["logits"]` or `answer.logits`; None without one."""
    if isinstance(answer, Mapping):
        return answer.get("logits")
    return getattr(answer, "logits", None)


def ways(model: nn.Module, inputs: Any) -> Iterator[Way]:
    """The ways that `model.forward` may take these inputs, most likely first."""
    signature = _signature(model)
    if isinstance(inputs, Mapping):
        kept = {key: part for key, part in inputs.items() if key not in LABELS}
        texts = all(isinstance(key, str) for key in inputs)
        if texts and _binds(signature, (), dict(inputs)):
            yield "keywords"
        if texts and len(kept) < len(inputs) and _binds(signature, (), kept):
            yield "keywords without labels"
        yield "whole"
    elif isinstance(inputs, (tuple, list)) and inputs:
        several = _binds(signature, tuple(inputs), {})
        if _binds(signature, (inputs,), {}) and not (several and _variadic(signature)):
            yield "whole"
            if several:
                yield "positions"
        else:
            if several:
                yield "positions"
            yield "whole"
    else:
        yield "whole"


def _signature(model: nn.Module) -> inspect.Signature | None:
    inner = model.module if isinstance(model, nn.DataParallel) else model
    try:
        return inspect.signature(inner.forward)
    except (TypeError, ValueError):
        return None


def _binds(signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if signature is None:
        return True
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _variadic(signature: inspect.Signature | None) -> bool:
    return signature is None or any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())


def find_call(
    model: nn.Module, loss: Callable[[Any, Any], Any], inputs: Any, targets: Any, attempt: Callable[[Callable[[], Any]], Any]
) -> Call:
    """The first way in which model and loss take a batch. `attempt` runs a function with the model as it came.

    Raises ValueError with the first error's own words where there is none.
    """
    failures: list[Exception] = []
    for way in ways(model, inputs):
        try:
            answer = attempt(lambda way=way: Call(way)(model, inputs))
        except Exception as error:
            if exhausted(error):
                raise
            failures.append(error)
            continue
        try:
            attempt(lambda answer=answer: loss(answer, targets))
            return Call(way)
        except Exception as error:
            if isinstance(answer, Tensor) or logits_of(answer) is None:
                raise _failed("loss", error, answer, targets) from error
            try:
                attempt(lambda answer=answer: loss(logits_of(answer), targets))
            except Exception as second:
                raise _failed("loss", second, logits_of(answer), targets) from second
            return Call(way, "logits")
    raise _failed("model", failures[0], inputs, None) from failures[0]


def _failed(what: str, error: Exception, given: Any, targets: Any) -> Exception:
    """The library's own refusals as they are, running out of memory too; anything else as one sentence."""
    if is_own(error) or exhausted(error):
        return error
    shapes = f"inputs {shapes_of(given)}" if what == "model" else f"outputs {shapes_of(given)} and targets {shapes_of(targets)}"
    return ForeignError(f"{what} fails on the first batch, {shapes}: {said(error)}")


def refusal(error: Exception, what: str) -> Exception:
    """Another's error as one sentence of this library's; its own refusals and bugs, and a lack of memory, as they are."""
    if _raised_here(error) or exhausted(error):
        return error
    remedy = ": checkpoint with use_reentrant=False" if "heckpoint" in str(error) else ""
    return ForeignError(f"{what} ({said(error)}){remedy}")


def exhausted(error: BaseException) -> bool:
    """Whether memory ran out: nobody's mistake, and no sign of anything else."""
    return isinstance(error, MemoryError) or "out of memory" in str(error)


def is_own(error: BaseException) -> bool:
    """Whether it is a refusal of this library's."""
    return isinstance(error, ValueError) and _raised_here(error)


def _raised_here(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])


def said(error: BaseException) -> str:
    """Another's error in one line."""
    first = str(error).strip().splitlines()[:1]
    text = f"{type(error).__name__}: {first[0] if first else ''}"
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def shapes_of(value: Any) -> str:
    """Shapes and types, short."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape) if not value.is_nested else 'nested'}"
    parts = [shapes_of(t) for t in tensors_of(value)][:3]
    return f"{type(value).__name__} of {', '.join(parts)}" if parts else type(value).__name__
