"""A gradient recorded once and replayed: the primitive operations alone, without building a graph of them each time.

On a small network most of an update's time is Python and autograd, not arithmetic. The replay calls the same kernels on
the same operands in the same order, so its numbers are the same bits; that is checked where it is recorded, and what
differs is not used.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_unflatten

from sharpness.operators.recorder import Recorder, Slot

Function = Callable[..., tuple[Tensor, ...]]

aten: Any = torch.ops.aten
_FRESH = {aten.addmm.default, aten.convolution.default, aten.add.Tensor, aten.native_batch_norm.default,
          aten.native_group_norm.default}
"""operations whose results share memory with nothing"""


def record(function: Function, parameters: Sequence[Tensor], inputs: Sequence[Tensor], axis: int = 0) -> Function | None:
    """`function(parameters, *inputs)` as a program of `inputs`, shaped as these, that reads `parameters` where they lie.

    None where it cannot be recorded, or where the replay is not bitwise what the function gives, of these inputs and of
    others: the first plus one, the rest backwards along `axis`.
    """
    recorder = Recorder([*parameters, *inputs], whole=True)
    with recorder:
        outputs = function(parameters, *inputs)
    graph, results = _graph_of(recorder, len(parameters) + len(inputs), outputs)
    module = GraphModule({}, graph)
    if recorder.foreign or not _simplify(module, parameters, results):
        return None
    replay: Function = module.forward
    others = (inputs[0] + 1, *(value.flip(axis) for value in inputs[1:]))
    with torch.no_grad():
        pairs = [(function(parameters, *values), replay(*values)) for values in (inputs, others)]
    return replay if all(_same(a, b) for pair in pairs for a, b in zip(*pair, strict=True)) else None


def _graph_of(recorder: Recorder, roots: int, outputs: Sequence[Tensor]) -> tuple[Graph, dict[Node, Tensor]]:
    """The recorded steps as a graph, and the tensor that each node stood for; a constant from elsewhere is None in it."""
    graph, results = Graph(), dict[Node, Tensor]()
    nodes: dict[int, Node] = {i: graph.placeholder(f"root_{i}") for i in range(roots)}
    for step in recorder.steps:
        args, kwargs = tree_unflatten([_operand(a, nodes) for a in step.arguments], step.spec)
        node = graph.call_function(step.function, args, kwargs)
        for index, slot in enumerate(step.outputs):
            if slot is not None:
                part = node if step.single else graph.call_function(operator.getitem, (node, index))
                nodes[slot], results[part] = part, recorder.values[slot]
    graph.output(tuple(nodes[recorder.slots[output]] for output in outputs))
    return graph, results


def _operand(argument: Any, nodes: Mapping[int, Node]) -> Any:
    if isinstance(argument, Slot):
        return nodes[argument.index]
    return None if isinstance(argument, Tensor) else argument


def _simplify(module: GraphModule, parameters: Sequence[Tensor], results: Mapping[Node, Tensor]) -> bool:
    """Drop aliases and double transpositions; take views of parameters and constant fillings out of the program.

    False where an operation writes into a parameter, an input or a window on one.
    """
    graph = module.graph
    given = [n for n in graph.nodes if n.op == "placeholder"]
    constants: dict[Node, Tensor] = dict(zip(given, parameters, strict=False))
    fixed = set(given)
    for node in list(graph.nodes):
        operation, sources = _operation(node), node.all_input_nodes
        if operation is not None and operation._schema.is_mutable and fixed & {node.args[i] for i in _written(operation)}:
            return False
        if operation is not None and _is_view(operation) and fixed & set(sources):
            fixed.add(node)
        if operation is aten.detach.default:
            node.replace_all_uses_with(sources[0])
        elif operation is aten.t.default and _operation(sources[0]) is aten.t.default:
            node.replace_all_uses_with(sources[0].all_input_nodes[0])
        elif operation is aten.ones_like.default:
            constants[node] = torch.ones_like(results[node])
        elif operation is not None and _is_view(operation) and sources and set(sources) <= constants.keys():
            arguments = map_arg((node.args, node.kwargs), constants.__getitem__)
            constants[node] = operation(*arguments[0], **arguments[1])
    for number, (node, value) in enumerate(constants.items()):
        if node.users:
            module.register_buffer(f"constant_{number}", value)
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(f"constant_{number}"))
        if node.op == "placeholder":
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in graph.nodes:  # over an operand that nothing else looks at
        source = node.all_input_nodes[0] if _operation(node) is aten.relu.default else None
        if source is not None and len(source.users) == 1 and _maker(source) in _FRESH:
            node.target = aten.relu_.default
    module.recompile()
    return True


def _operation(node: Node) -> Any:
    return node.target if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) else None


def _maker(node: Node) -> Any:
    """The operation that a tensor is a result of, one of several or the only one."""
    return _operation(node.all_input_nodes[0] if node.target is operator.getitem else node)


def _written(operation: Any) -> list[int]:
    arguments = enumerate(operation._schema.arguments)
    return [i for i, a in arguments if a.alias_info is not None and a.alias_info.is_write]


def _is_view(operation: Any) -> bool:
    """Whether its result is a window on its operand."""
    returns = operation._schema.returns
    return len(returns) == 1 and returns[0].alias_info is not None and not returns[0].alias_info.is_write


def _same(a: Tensor, b: Tensor) -> bool:
    """Same bits (NaN included) in the same places of memory."""
    return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )
