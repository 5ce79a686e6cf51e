"""A first look at model, loss and data together: how they fit, what the mean is, and whether it can be had in parts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sharpness.problem.batches import OutputBytes, TensorBatches, chunk_length, telling_rows
from sharpness.problem.calls import as_pair, exhausted, find_call, is_own, length_of, refusal
from sharpness.problem.means import Rule, Weight, counted, cuttable, is_summed, rules_of
from sharpness.problem.module_state import Attributes, Buffers, modules_of
from sharpness.problem.nested import cloned, fingerprint, identical, take, tensors_of, to_device
from sharpness.problem.problem import Problem, scalar
from sharpness.problem.untouched import has_observers, seed_generators, untouched

_FEW = 8  # examples that are enough to see how a model takes its inputs
_TOGETHER = 32  # examples that are looked at in other company, to see whether they influence each other
_CHUNKS = 64  # up to which all examples are also looked at as one batch
_ROUNDING = 1e-5  # relative, of weights that a model normalises again


def met(draft: Problem, whole: bool, originals: Sequence[Tensor]) -> Problem:
    """How model and loss take the first batch, and what the model writes to on the way. With `whole` a few rows of it will
    do, if the model takes them. Inside `untouched` that shields the parameters, which were `originals` outside.

    Raises ValueError where they do not fit, or where forward changes the weights.
    """
    inputs, targets = next(((x, t) for x, t in map(as_pair, draft.data) if length_of(x, t)), (None, None))
    if inputs is None:
        raise ValueError("data has no examples: pass at least one")
    length = length_of(inputs, targets)
    attempt = _Attempts(draft)
    looks = [torch.arange(_FEW), None] if whole and length > _FEW else [None]
    for index in looks:
        try:
            some = (inputs, targets) if index is None else take((inputs, targets), index, length)
            x, t = (to_device(cloned(part), draft.device) for part in some)
            stamp = fingerprint((x, t))
            call = find_call(draft.model, draft.loss, x, t, attempt)
            break
        except ValueError:
            if index is None:
                raise
            attempt.gradients = False
    else:
        raise AssertionError  # the last look returns or raises
    copies = fingerprint((x, t)) != stamp
    writes = False
    for (name, p), b in zip(draft.model.named_parameters(), originals, strict=True):
        if not identical(p.detach(), b):
            writes = True
            if not torch.allclose(p.detach(), b, rtol=_ROUNDING, atol=0):
                raise ValueError(
                    f"the model changes parameter {name!r} when it is run or put in {draft.mode} mode (as Embedding(max_norm=...)"
                    " and merged adapters do): bring the weights into the state that it uses, and measure then"
                )
    found = replace(draft, call=call, copies=copies, writes=writes, differentiates=attempt.gradients)
    if not has_observers(modules_of([draft.model])):
        return found
    answers = []
    for observed in (False, True):
        inside = untouched(draft.model, draft.parameters, draft.mode, loss=draft.criterion, observed=observed)
        with inside, contextlib.suppress(Exception):
            x = to_device(cloned(some[0]), draft.device)
            answers.append(fingerprint(attempt(lambda x=x: list(tensors_of(call(draft.model, x))))))
    return replace(found, observed=len(answers) != 2 or answers[0] != answers[1])


class _Attempts:
    """Runs functions with the model as it came each time; with gradients only where they are needed."""

    def __init__(self, draft: Problem) -> None:
        self.gradients, self._draft = False, draft
        modules = modules_of([draft.model, draft.criterion])
        self._buffers, self._attributes = Buffers(modules), Attributes(modules)

    def __call__(self, function: Callable[[], Any]) -> Any:
        if not self.gradients:
            try:
                with torch.no_grad():
                    return self._run(function)
            except Exception as error:
                if is_own(error) or exhausted(error):
                    raise
                try:  # perhaps the model takes derivatives itself
                    found = self._run(function)
                except Exception:  # whatever a foreign model may raise: the first error says what is wrong
                    raise error from None
                self.gradients = True
                return found
        return self._run(function)

    def _run(self, function: Callable[[], Any]) -> Any:
        try:
            self._buffers.replace(torch.clone)
            seed_generators(self._draft.parameters, self._draft.seed)
            return function()
        finally:
            self._buffers.restore()
            self._attributes.restore()


def chunks(draft: Problem, whole: TensorBatches) -> TensorBatches:
    """All data in chunks whose activations fit the cache; as they are where the model does not take a few examples."""

    def run(index: Tensor) -> None:
        draft.outputs(to_device(cloned(whole.taken(index)[0]), draft.device))

    try:
        return replace(whole, batch_size=chunk_length(run, whole, draft.device))
    except Exception as error:  # whatever a model may raise for fewer rows than it was made for: one batch
        if exhausted(error):
            raise
        return whole


def surveyed(draft: Problem, weight: Weight | None, *, apart: bool = False) -> Problem | None:
    """The problem with its examples, shares and number of batches, from one pass forward. Inside `untouched`. With `apart`: None
    where the parts, for whatever reason, do not make up the whole.

    Raises ValueError for a loss that is not finite, that is summed, or whose batches cannot be averaged without being told
    how, and DataChangedError where data read anew are not those of the first pass.
    """
    trial = replace(draft, total=1.0, weight=weight or "examples")
    data, looks, kinds = draft.data, list[_Look](), dict[float, tuple[Any, Any]]()
    apiece = dict[Any, tuple[Any, Any]]()  # an example of each target, by batches: each batch may hold one target only
    single = isinstance(data, (list, tuple, TensorBatches)) and len(data) == 1
    company = _Company(data) if apart and isinstance(data, TensorBatches) else None
    for index, inputs, targets, share in trial.walk():
        length = length_of(inputs, targets)
        if not share:
            looks.append(_Look(length, 0, 0.0, None))
            continue
        try:
            with trial.without_gradients(), contextlib.nullcontext() if looks else OutputBytes() as written:
                outputs = trial.outputs(inputs)
                value = scalar(trial.loss(outputs, targets)).item()
            if written is not None and written.coarse is not None:
                raise ValueError(
                    f"the model computes in {written.coarse} (autocast inside?), too coarse for differences and curvature: "
                    "compute in float32 or float64"
                )
            with trial.without_gradients():
                rules = None if single else rules_of(trial.loss, outputs, targets, length)
                if not looks and math.isfinite(value) and is_summed(trial.loss, outputs, targets, value):
                    raise ValueError("loss doubles when a batch is repeated, so it is summed over examples: use reduction='mean'")
        except Exception as error:
            if company is not None and not exhausted(error):
                return None
            raise refusal(error, f"model or loss fails on batch {index}") from error
        if not math.isfinite(value):
            if company is not None:
                return None
            why = "all of its targets are left out (-100 or NaN): pass weight='tokens' to leave the batch out, or drop it"
            raise ValueError(
                f"loss is {value} on {'the first batch' if index == 0 else f'batch {index}'}: "
                f"{why if not counted(targets) else 'measure where the loss is finite'}"
            )
        looks.append(_Look(length, counted(targets), share, rules))
        if rules is not None:
            few = torch.arange(min(length, _FEW))
            kinds.setdefault(looks[-1].counted / length, (take(outputs, few, length), take(targets, few, length)))
        if not single and len(apiece) < _TOGETHER and cuttable(outputs, length) and cuttable(targets, length):
            first = take((outputs, targets), torch.arange(1), length)
            apiece.setdefault(fingerprint(first[1]), first)
        if company is not None:
            company.saw(outputs, length)
    if company is not None and not company.unmoved(trial):
        return None
    if weight == "tokens" and any(k.rules is not None and "tokens" not in k.rules for k in looks):
        raise ValueError(
            "weight='tokens' counts targets that are neither -100 nor NaN, and the loss is no mean over those (it leaves out "
            "others, or weighs them): pass a function of (inputs, targets) for each batch's share"
        )
    across, alone = (_across(trial, list(found.values())) for found in (kinds, apiece))
    rule = weight or ("examples" if single else _rule(looks, across, alone, apart))
    if rule is None:
        return None
    shares = [float(k.counted if rule == "tokens" else k.rows if rule == "examples" else k.share) for k in looks]
    if not sum(shares) > 0:
        raise ValueError("weight is 0 for every batch: nothing is left to average")
    return replace(draft, examples=sum(k.rows for k in looks), batches=sum(s > 0 for s in shares), total=sum(shares), weight=rule)


@dataclass(frozen=True)
class _Look:
    """What one batch showed."""

    rows: int
    counted: int
    share: float
    rules: set[str] | None


def _across(trial: Problem, kinds: Sequence[tuple[Any, Any]]) -> set[str] | None:
    """The rules that hold over a few examples of each kind of batch together: batches in each of which the same share of
    targets is left out, or all of one class, do not tell by themselves. Empty where they cannot be joined; None where there is
    one kind only."""
    if len(kinds) < 2:
        return None
    try:
        pairs = [[list(tensors_of(part)) for part in kind] for kind in kinds]
        if any(len(part) != 1 for pair in pairs for part in pair):
            return set()
        outputs, targets = (torch.cat([pair[i][0] for pair in pairs]) for i in (0, 1))
        with trial.without_gradients():
            return rules_of(trial.loss, outputs, targets, len(targets)) or set()
    except RuntimeError:  # of other shapes, such as batches padded to lengths of their own
        return None


def _rule(looks: Sequence[_Look], across: set[str] | None, alone: set[str] | None, apart: bool) -> Rule | None:
    """How batches count: "examples" where nothing speaks against it. `apart`: "tokens" too, where parts of one batch make up
    the whole by it, and None where neither is true of all; else ValueError where batches may count in several ways."""
    own = set[str]({"tokens"}).intersection(*(k.rules for k in looks if k.rules is not None))
    told = [rules for rules in (*(k.rules for k in looks), across, alone or None) if rules is not None]
    common = set[str].intersection(*told) if told else {"examples"}
    alike = len({k.counted / k.rows for k in looks}) == 1
    if "examples" in common and (alike or across is not None):
        return "examples"
    if apart:
        return "tokens" if "tokens" in common and told else None
    coupled = told and "within" not in common  # the examples of a batch are set against each other
    if alike and (coupled or not told) and len({k.rows for k in looks[:-1]}) <= 1:
        return "examples"
    way = "a mean over the targets that count: pass weight='tokens' (each target counts alike), 'examples' (each example)"
    other = "no plain mean over examples (class weights, weighted examples): pass weight='examples' (each counts alike)"
    what = way if "tokens" in common or (own and not alike) else other
    raise ValueError(f"loss of a batch is {what}, or a function of (inputs, targets) that gives each batch's share")


class _Company:
    """Examples of a pair of tensors: their outputs among the others of their chunk, and together."""

    def __init__(self, data: TensorBatches) -> None:
        self._data, self._found = data, list[list[Tensor]]()
        self._chosen = torch.arange(data.examples)
        if len(data) > _CHUNKS:
            self._chosen = telling_rows(data.targets, data.examples, _TOGETHER)
        self._start = 0

    def saw(self, outputs: Any, length: int) -> None:
        """The outputs of the next chunk."""
        here = self._chosen[(self._chosen >= self._start) & (self._chosen < self._start + length)] - self._start
        self._found.append([t.cpu() for t in tensors_of(take(outputs, here, length))])
        self._start += length

    def unmoved(self, problem: Problem) -> bool:
        """Whether the outputs are the same in other company."""
        few = self._data.taken(self._chosen)
        try:
            with problem.without_gradients():
                together = problem.on([few]).on_first(lambda x, _: [t.cpu() for t in tensors_of(problem.outputs(x))])
        except Exception as error:  # whatever a model may raise for another number of rows
            if exhausted(error):
                raise
            return False
        if not together or any(t.ndim == 0 or len(t) != len(self._chosen) for t in together):
            return False
        for among, t in zip(map(torch.cat, zip(*self._found, strict=True)), together, strict=True):
            if among.shape != t.shape or float((among - t).abs().max()) > 1e-4 * max(float(t.abs().max()), 1e-3):
                return False
        return True
