"""From a model to the tape of its Hessian pass: traced once by torch.fx, linearized node by node on each chunk of data.

The trace goes down to functions, so that `rules` is a table of functions only. Where it cannot enter torch's modules
they become one opaque operation each; a model that it cannot follow at all (control flow that depends on data) is one
opaque operation as a whole.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg.curvature import rules
from thalweg.curvature.evaluation import agree, require_repeatable
from thalweg.curvature.second_order import Kind, LossHead, Maybe, Node, Tape

__all__ = ["Network"]

Linearized = tuple[Node, tuple[Any, ...], Any]


class _NotFollowedError(Exception):
    """The trace does not show how the output depends on the parameters."""


class _Tracer(fx.Tracer):
    def __init__(self, *, enter: bool) -> None:
        super().__init__()
        self._enter = enter

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self._enter and super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        hooked = m._forward_hooks or m._forward_pre_hooks
        if isinstance(m, _BatchNorm) and not m.training and m.running_mean is not None and args and not hooked:
            # its own forward asks for the number of dimensions, which a trace does not know
            return functional.batch_norm(args[0], m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps)
        return super().call_module(m, forward, args, kwargs)


class Network:
    """A model that can be linearized on any chunk of data.

    Args:
        model: in the mode in which it is to be evaluated; not changed afterwards.
        params: the active parameters, by name; all others are constants.

    Attributes:
        graph: the trace; None where the model is taken as a whole.
    """

    def __init__(self, model: nn.Module, params: Mapping[str, nn.Parameter]) -> None:
        self._model, self._params = model, dict(params)
        self.device = next(iter(params.values())).device
        self._active = {id(param): name for name, param in params.items()}
        self.graph: fx.Graph | None = None
        for enter in (True, False):
            try:
                graph = _Tracer(enter=enter).trace(model)
            except Exception:  # the tracer runs the model's own code on stand-ins: anything may be raised
                continue
            if sum(n.op == "placeholder" for n in graph.nodes) == 1:
                self.graph = _out_of_place(graph)
                break

    @torch.no_grad()
    def probe(self, x: Any, loss: Callable[[Any], Tensor], kind: Kind) -> int:
        """Bytes that the tape of ``x`` takes. Gives the trace up if it does not compute what the model computes.

        Raises:
            ValueError: the model's output is random, or autograd does not know the derivatives that ``kind`` takes.
        """
        z = require_repeatable(lambda: self._model(x))
        followed, (tape, nbytes) = self.graph, self._measured(x, loss)
        if self.graph is not None and not (
            isinstance(z, Tensor)
            and agree(tape.head.output, z)
            and agree(self._flat(tape.gradient()), self._gradient(x, loss))
        ):
            self.graph = None  # it leaves out what happens in place, and the backward of custom functions
        if self.graph is not followed:
            tape, nbytes = self._measured(x, loss)
        try:
            tape.product([torch.zeros_like(param) for param in self._params.values()], kind)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(f"the model is not twice differentiable: {error}") from error
        return nbytes

    def _measured(self, x: Any, loss: Callable[[Any], Tensor]) -> tuple[Tape, int]:
        """The tape of ``x`` and the bytes of its values and of what autograd keeps, without the model's own tensors."""
        saved: dict[int, torch.UntypedStorage] = {}  # held, or another would come to lie at the same address

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            tape = self.tape(x, loss)
        for own in (*self._model.parameters(), *self._model.buffers()):
            saved.pop(own.untyped_storage().data_ptr(), None)
        return tape, sum(storage.nbytes() for storage in saved.values()) + tape.nbytes

    @torch.enable_grad()
    def _gradient(self, x: Any, loss: Callable[[Any], Tensor]) -> Tensor:
        """What autograd makes of the model itself, in one vector."""
        params = {name: param.detach().requires_grad_() for name, param in self._params.items()}
        value = loss(functional_call(self._model, params, (x,)))
        return self._flat(torch.autograd.grad(value, list(params.values()), allow_unused=True))

    def _flat(self, parts: Sequence[Maybe]) -> Tensor:
        pairs = zip(parts, self._params.values(), strict=True)
        return torch.cat([(torch.zeros_like(param) if part is None else part).flatten() for part, param in pairs])

    @torch.no_grad()
    def tape(self, x: Any, loss: Callable[[Any], Tensor]) -> Tape:
        """The tape of one chunk; ``loss`` is its share of L as a function of the model's output."""
        if self.graph is not None:
            try:
                entries, slots, output, z = self._traced(self.graph, x)
            except Exception:  # what was traced need not run: operations in place, tuples where a tensor should be
                self.graph = None
            else:
                return Tape(entries, slots, output, LossHead(loss, z))
        names, inputs = tuple(self._params), list(self._params.values())
        own = [(name,) for name in names]

        def whole(*params: Tensor) -> Any:
            return functional_call(self._model, dict(zip(names, params, strict=True)), (x,))

        if isinstance(self._model(x), Tensor):
            node = rules.opaque(whole, inputs)
            return Tape([(node, names, "z")], own, "z", LossHead(loss, node.value))
        # z is no tensor: L itself stands for it, and the loss on top of it is the identity
        node = rules.opaque(lambda *params: loss(whole(*params)).reshape(()), inputs)
        return Tape([(node, names, "L")], own, "L", LossHead(lambda value: value * 1.0, node.value))

    def _traced(self, graph: fx.Graph, x: Any) -> tuple[list[Linearized], list[list[Any]], fx.Node, Tensor]:
        """Entries and slots of the tape, the slot of the output and the output."""
        values: dict[fx.Node, Any] = {}
        live: set[fx.Node] = set()  # nodes that active parameters act on
        slots: dict[str, list[Any]] = {name: [] for name in self._params}
        entries: list[Linearized] = []
        for n in graph.nodes:
            if n.op == "placeholder":
                values[n] = x
            elif n.op == "get_attr":
                values[n] = operator.attrgetter(str(n.target))(self._model)
                if id(values[n]) in self._active:
                    slots[self._active[id(values[n])]].append(n)
                    live.add(n)
            elif n.op == "output":
                if not (isinstance(n.args[0], fx.Node) and n.args[0] in live):
                    break
                return entries, list(slots.values()), n.args[0], values[n.args[0]]
            else:
                inside = self._parameters_inside(n)
                for slot, param in inside:
                    slots[self._active[id(param)]].append(slot)
                if not inside and live.isdisjoint(n.all_input_nodes):
                    args, kwargs = fx.map_arg((n.args, n.kwargs), values.__getitem__)
                    values[n] = self._function(n)(*args, **kwargs)
                else:
                    node, operands = self._linearize(n, values, live, inside)
                    entries.append((node, operands, n))
                    values[n] = node.value
                    live.add(n)
            for done in n.meta["last_use_of"]:
                del values[done]
        raise _NotFollowedError

    def _linearize(
        self, n: fx.Node, values: Mapping[fx.Node, Any], live: set[fx.Node], inside: list[tuple[Any, Tensor]]
    ) -> tuple[Node, tuple[Any, ...]]:
        """The node by the first rule that applies, and the slots of its operands."""
        wanted = [o for o in n.all_input_nodes if o in live]
        if n.target in rules.RULES:
            rule, names = rules.RULES[n.target]
            named = dict(zip(names, n.args, strict=False)) | {k: v for k, v in n.kwargs.items() if k in names}
            operands = tuple(o if (o := named.get(name)) in live else None for name in names)
            if sum(o is not None for o in operands) == len(wanted):
                args, kwargs = fx.map_arg((n.args, n.kwargs), values.__getitem__)
                node = rule([o is not None for o in operands], *args, **kwargs)
                if node is not None:
                    return node, operands
        slots = (*wanted, *(slot for slot, _ in inside))
        inputs = [*(values[o] for o in wanted), *(param for _, param in inside)]
        if not all(isinstance(value, Tensor) for value in inputs):
            raise _NotFollowedError
        f = self._closed(n, values, slots, [param for _, param in inside])
        if inside:
            return rules.opaque(f, inputs), slots
        factors = [o for o in n.args if isinstance(o, fx.Node) and o in live]
        if n.target in rules.PRODUCTS and len(factors) == len(wanted) == 2:
            return rules.product(f, *inputs), slots
        if n.target in rules.POINTWISE and len(wanted) == 1:
            return rules.pointwise(f, *inputs), slots
        scaled = n.target in rules.PRODUCTS and len(factors) == 1
        divided = n.target in rules.QUOTIENTS and factors == list(n.args[:1])
        if n.target in rules.AFFINE or scaled or divided:
            return rules.affine(f, inputs), slots
        return rules.opaque(f, inputs), slots

    def _closed(
        self, n: fx.Node, values: Mapping[fx.Node, Any], slots: tuple[Any, ...], inside: list[Tensor]
    ) -> Callable[..., Tensor]:
        """The operation as a function of its operands alone."""
        function = self._function(n)
        names = [slot[1] for slot in slots[len(slots) - len(inside) :]]
        fixed = fx.map_arg((n.args, n.kwargs), lambda o: o if o in slots else values[o])

        def f(*tensors: Tensor) -> Tensor:
            at = dict(zip(slots, tensors, strict=True))
            args, kwargs = fx.map_arg(fixed, at.__getitem__)
            if names:
                own = dict(zip(names, tensors[len(tensors) - len(names) :], strict=True))
                return functional_call(function, own, args, kwargs)  # type: ignore[no-any-return,arg-type]
            return function(*args, **kwargs)  # type: ignore[no-any-return]

        return f

    def _function(self, n: fx.Node) -> Callable[..., Any]:
        if n.op == "call_module":
            return self._model.get_submodule(str(n.target))
        if n.op == "call_method":
            name = "reshape" if n.target == "view" else str(n.target)  # `rules` changes the layout of activations
            return lambda tensor, *args, **kwargs: getattr(tensor, name)(*args, **kwargs)
        assert callable(n.target)
        return rules.REWRITTEN.get(n.target, n.target)

    def _parameters_inside(self, n: fx.Node) -> list[tuple[Any, Tensor]]:
        """(slot, tensor) of the active parameters of a module that is one operation."""
        if n.op != "call_module":
            return []
        module = self._model.get_submodule(str(n.target))
        return [((n, name), p) for name, p in module.named_parameters() if id(p) in self._active]


def _out_of_place(graph: fx.Graph) -> fx.Graph:
    """Switch off ``inplace`` and note after which node each value has had its last reader."""
    seen: set[fx.Node] = set()
    for n in reversed(graph.nodes):
        if "inplace" in n.kwargs:
            n.kwargs = {**n.kwargs, "inplace": False}
        if n.target is operator.iadd:
            n.target = operator.add
        n.meta["last_use_of"] = [o for o in n.all_input_nodes if o not in seen]
        seen.update(n.all_input_nodes)
    return graph
