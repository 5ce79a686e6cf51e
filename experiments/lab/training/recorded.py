"""A gradient recorded once and replayed: the primitive operations alone, without building a graph of them each time.

On a small network most of an update's time is Python and autograd, not arithmetic. The replay calls the same kernels on
the same operands in the same order, so its numbers are the same bits; that is checked where it is recorded, and what
differs is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

Function = Callable[..., tuple[Tensor, ...]]

aten: Any = torch.ops.aten


def record(function: Function, parameters: Sequence[Tensor], inputs: Sequence[Tensor]) -> Function | None:
    """`function(parameters, *inputs)` as a program of `inputs`, shaped as these, that reads `parameters` where they lie.

    None where it cannot be recorded, or where the replay of `inputs` is not bitwise what the function gives.
    """
    count = len(parameters)
    try:
        module = make_fx(lambda *args: function(args[:count], *args[count:]))(*parameters, *inputs)
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    if not _simplify(module, parameters):
        return None
    replay: Function = module.forward
    with torch.no_grad():
        expected, found = function(parameters, *inputs), replay(*inputs)
    return replay if all(_same(a, b) for a, b in zip(expected, found, strict=True)) else None


def _simplify(module: GraphModule, parameters: Sequence[Tensor]) -> bool:
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
            like = node.meta["val"]  # of a shape alone: it has no values
            constants[node] = torch.ones(like.shape, dtype=like.dtype, device=like.device)
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
    module.recompile()
    return True


def _operation(node: Node) -> Any:
    return node.target if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) else None


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
