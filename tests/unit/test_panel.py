"""The panel: every metric of the table, each with a status; what has no meaning is said, not raised."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from sharpness import frobenius_norm, hessian, metrics, top_eigenvalues
from sharpness.metrics import TABLE
from sharpness.panels import choose, panel

torch.set_num_threads(1)
NAMES = [metric.name for metric in TABLE]
FINE = {"ok", "converged", "exact", "unbounded", "degenerate", "unresolved", "precision", "max_matvecs"}


def net(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, outputs)).eval()


def classes(n: int = 40):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 4, generator=generator)
    return inputs, inputs[:, :3].argmax(dim=1)


def trained() -> nn.Module:
    """So that a tenth of accuracy can be lost."""
    model = net().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(classes()[0]), classes()[1]).backward()
        optimizer.step()
    return model.eval()


class Counting(nn.CrossEntropyLoss):
    calls = 0

    def forward(self, *given):
        self.calls += 1
        return super().forward(*given)


@pytest.fixture(scope="module")
def everything():
    loss = Counting()
    return list(panel(trained(), loss, classes())), loss.calls


def test_all_metrics_in_the_tables_order(everything):
    entries, calls = everything
    assert [e.metric for e in entries] == NAMES
    assert calls < 1000  # 421 when this was written: a search that never ends would take the time of a training


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_finite_value_and_a_certificate(everything, name):
    entry = next(e for e in everything[0] if e.metric == name)
    assert entry.sentence is None and entry.status in FINE, entry
    assert entry.value is not None and np.isfinite(entry.value), entry
    facts = json.loads(json.dumps(entry.to_dict(), allow_nan=False))
    assert facts["metric"] == name and facts["value"] == entry.value and facts["seconds"] >= 0
    assert facts["status"] == entry.status and facts["n"] == 4 * 6 + 6 + 12 + 21
    assert "vectors" not in facts and not isinstance(facts["standard_error"], list)
    if name != "norm_scaled_lambda":
        assert facts["examples"] == 40 and facts["dtype"] == "float32" and facts["mode"] == "eval"


def test_the_value_is_the_metrics_own():
    (entry,) = panel(net(), nn.CrossEntropyLoss(), classes(), metrics=["lambda_max"])
    assert entry.value == pytest.approx(top_eigenvalues(hessian(net(), nn.CrossEntropyLoss(), classes())).value, rel=1e-2)


def test_alone_as_among_others(everything):
    """What metrics share must not change their values."""
    for name in ("gradient_overlap", "norm_scaled_lambda", "frobenius_norm"):
        (entry,) = panel(trained(), nn.CrossEntropyLoss(), classes(), metrics=name)
        assert entry.value == pytest.approx(next(e for e in everything[0] if e.metric == name).value, rel=1e-5)


def test_a_regression_is_told_what_does_not_apply():
    data = classes()[0], torch.randn(40, 2, generator=torch.Generator().manual_seed(2))
    found = {e.metric: e for e in panel(net(2), nn.MSELoss(), data)}
    without = {name for name, e in found.items() if e.status == "not applicable"}
    assert without == {"fisher_rao_norm_model", "pac_bayes_sigma", "pac_bayes_sigma_magnitude", "adaptive_linf_logit_normalised"}
    for name in without:
        assert found[name].value is None and found[name].result is None and found[name].sentence
        assert json.dumps(found[name].to_dict())
    assert all(np.isfinite(e.value) for name, e in found.items() if name not in without)


def test_an_unknown_likelihood_has_no_fisher():
    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.3)

    (entry,) = panel(net(), loss, classes(), metrics=["fisher_lambda_max"])
    assert entry.status == "not applicable" and "likelihood" in str(entry.sentence)


def test_batch_statistics_have_no_single_gradients():
    names = ["gradient_noise", "lambda_max"]
    entries = list(panel(net(), nn.CrossEntropyLoss(), classes(), metrics=names, mode="train"))
    assert [(e.metric, e.status) for e in entries] == [("lambda_max", "converged"), ("gradient_noise", "not applicable")]


def test_entries_come_one_by_one():
    """A caller could not show progress otherwise."""
    calls = [0]

    def loss(outputs, targets):
        calls[0] += 1
        return nn.functional.cross_entropy(outputs, targets)

    entries = panel(net(), loss, classes(), metrics=["phi_full", "random_slice"])
    before = calls[0]
    assert next(entries).metric == "phi_full"
    between = calls[0]
    assert next(entries).metric == "random_slice"
    assert before < between < calls[0]
    assert next(entries, None) is None


@pytest.mark.parametrize("kind", ["pair", "list", "loader"])
def test_examples_are_random_ones(kind):
    """Of sorted data the metrics would be those of one class."""
    inputs, targets = classes(300)
    order = targets.argsort()
    inputs, targets = inputs[order], targets[order]
    data = {"pair": (inputs, targets),
            "list": list(zip(inputs.split(8), targets.split(8), strict=True)),
            "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=8)}[kind]
    seen = []

    def loss(outputs, targets):
        seen.append(targets.clone())
        return nn.functional.cross_entropy(outputs, targets)

    (some,) = panel(net(), loss, data, metrics="random_perturbation", examples=40)
    assert some.to_dict()["examples"] == 40 and set(torch.cat(seen).tolist()) == {0, 1, 2}
    (pair,) = panel(net(), nn.CrossEntropyLoss(), (inputs, targets), metrics="random_perturbation", examples=40)
    assert some.value == pytest.approx(pair.value, rel=1e-3)  # the same ones, however they come


def test_as_many_as_there_are_stay_as_they_come():
    """A caller's own subset would be measured in another order, to other bits."""
    inputs, targets = classes(30)
    for data in ((inputs, targets), list(zip(inputs.split(8), targets.split(8), strict=True))):
        (all_of_it,) = panel(net(), nn.CrossEntropyLoss(), data, metrics="fisher_rao_norm", examples=30)
        (plain,) = panel(net(), nn.CrossEntropyLoss(), data, metrics="fisher_rao_norm")
        assert all_of_it.value == plain.value and all_of_it.to_dict()["examples"] == 30


def test_a_shuffling_loader_measures_and_leaves_the_generator():
    """Without a generator of its own it draws from the global one."""
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*classes()), batch_size=8, shuffle=True)
    model = net()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (
        [
            e.value
            for e in panel(
                model, nn.CrossEntropyLoss(), loader, metrics=["trace", "batch_sharpness"], examples=20
            )
        ]
        for _ in range(2)
    )
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_input_is_refused_at_the_call():
    """Not metric by metric, as 'not applicable'."""
    broken = net()
    with torch.no_grad():
        next(broken.parameters())[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        panel(broken, nn.CrossEntropyLoss(), classes())
    with pytest.raises(ValueError, match="summed"):
        panel(net(), nn.CrossEntropyLoss(reduction="sum"), classes())
    with pytest.raises(ValueError, match="no metric 'sharp'"):
        panel(net(), nn.CrossEntropyLoss(), classes(), metrics=["sharp"])
    with pytest.raises(ValueError, match="positive integer"):
        panel(net(), nn.CrossEntropyLoss(), classes(), examples=0)
    with pytest.raises(ValueError, match="batch"):
        panel(net(), nn.CrossEntropyLoss(), [1, 2, 3])  # pyright: ignore[reportArgumentType]


def test_a_bug_is_not_called_not_applicable():
    calls = [0]

    def loss(outputs, targets):
        calls[0] += 1
        if calls[0] > 8:
            raise KeyError("bug")
        return nn.functional.cross_entropy(outputs, targets)

    (found,) = panel(net(), loss, classes(), metrics=["random_slice"])
    assert found.status == "failed" and "bug" in found.sentence and found.value is None


def test_products_that_are_not_finite_are_said():
    """Infinite curvature at finite loss: sqrt at 0."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return self.w.abs().sqrt() * x[:, :2]

    data = classes()[0], torch.randn(40, 2)
    entries = list(panel(Root(), nn.MSELoss(), data, metrics=["lambda_max", "gradient_overlap", "trace"]))
    assert [e.status for e in entries] == ["nonfinite"] * 3
    assert json.dumps([e.to_dict() for e in entries], allow_nan=False)


def test_the_table():
    assert len(set(NAMES)) == len(NAMES)
    assert choose("all") == TABLE and choose(["trace", "all"]) == TABLE
    assert [m.name for m in choose(["trace", "lambda_max"])] == ["lambda_max", "trace"]
    for metric in TABLE:
        assert metric.about.endswith(".") and 0 < metric.examples <= 512 and (sum(metric.work) > 0 or metric.uses_leading)
    order = [metric.shares for metric in TABLE]
    assert order == sorted(order, reverse=True)  # the shared operator is dropped where its users end


def test_metrics_that_contradict_each_other_are_not_ok(monkeypatch):
    """A Frobenius norm below the largest eigenvalue: the second one measured is called impossible, and says why."""
    def small(op, **options):
        return dataclasses.replace(frobenius_norm(op, matvecs=200), value=1e-6, standard_error=1e-8)

    monkeypatch.setattr(metrics, "frobenius_norm", small)
    found = list(panel(net(), nn.CrossEntropyLoss(), classes(), metrics=["lambda_max", "trace", "frobenius_norm"]))
    assert [e.status for e in found[:2]] == ["converged", "ok"]
    assert found[2].status == "impossible" and "eigenvalue has magnitude" in str(found[2].sentence)


def test_a_model_that_takes_nothing_less_than_all_rows():
    """A graph of more nodes than the table's examples: its first 128 nodes are no graph of this model's."""
    n = 150

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)
            self.register_buffer("links", torch.eye(n).roll(1, 0) + torch.eye(n))

        def forward(self, x):
            return self.links @ self.inner(x)

    inputs, targets = classes(n)
    (entry,) = panel(Graph(), nn.CrossEntropyLoss(), [(inputs, targets)], metrics="trace", examples=n)
    assert entry.status == "ok" and entry.to_dict()["examples"] == n


class Two(nn.Module):
    """Takes a and b, and may be told of labels."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, a, b, labels=None):
        return self.left(a) * self.right(b)


def test_as_many_examples_of_whatever_batches_hold():
    """Batches that are dicts came with all their examples, and a pair with a dict of inputs was an error."""
    torch.manual_seed(0)
    model, (x, y) = Two(), classes(200)
    loss, found = nn.functional.cross_entropy, []
    for data in (((x, x), y), ({"a": x, "b": x}, y), [((x, x), y)], [{"a": x, "b": x, "labels": y}]):
        (entry,) = panel(model, loss, data, metrics="frobenius_norm", examples=50)
        assert entry.to_dict()["examples"] == 50
        found.append(entry.value)
    assert found[0] == pytest.approx(found[1], rel=1e-4) and found[2] == pytest.approx(found[3], rel=1e-4)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_batch_that_cannot_be_cut_stays_whole(sparse):
    """A graph as a list of one batch, with its links among the inputs, of more nodes than the table's examples."""
    torch.manual_seed(0)
    links, (x, y) = torch.softmax(torch.randn(200, 200), 1), classes(200)
    given = [((links.to_sparse() if sparse else links, x), y)]

    class Graph(nn.Linear):
        def forward(self, links, x):
            return super().forward(links @ x)

    (entry,) = panel(Graph(4, 3), nn.functional.cross_entropy, given, metrics="trace")
    assert entry.status == "ok" and entry.to_dict()["examples"] == 200
