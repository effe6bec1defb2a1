"""Writes every ATen op of a run into an fx graph, and knows each tensor by the memory it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef

from tgdsurgery.core.errors import CaptureError, UnsupportedOpError
from tgdsurgery.core.torch_private import (
    TorchDispatchMode,
    map_aggregate,
    tree_leaves,
    tree_map_only,
    without_torch_function,
)
from tgdsurgery.mapping.fixed import Kept, settle_fixed
from tgdsurgery.mapping.nodes import alias_root, op_of, writes, written_of
from tgdsurgery.mapping.original import refuse_tensor_of
from tgdsurgery.mapping.state import state_of, statistics_of

_Key = tuple[Any, ...]
_SWEEP = 32  # storages that are made before the dead ones are looked for
_ON_STORAGE = (torch.ops.aten.set_.source_Storage, torch.ops.aten.set_.source_Storage_storage_offset)


class Recorder(TorchDispatchMode):
    """Writes every ATen op of a run into an fx graph.

    Tensors are known by the memory they look at (storage, offset, shape, strides), not by identity:
    under `no_grad` a view can come back as another tensor object. A weak reference to each storage keeps
    its address from being given to another one. For what the run itself makes, that ends when the memory is
    gone and its tensors have been forgotten.
    """

    def __init__(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        earlier: Iterable[StorageWeakRef],
        original: nn.Module | None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._earlier = {reference.cdata for reference in earlier}
        self.graph = fx.Graph()
        self._constants: dict[_Key, fx.Node] = {}
        self.stack: list[str] = [""]
        self._nodes: dict[_Key, fx.Node] = {}
        self._storages: dict[int, StorageWeakRef] = {}
        self._made: dict[int, set[_Key]] = {}  # a storage that the run made -> its tensors
        self._sweep = _SWEEP
        self._read_from = {place: self._key(tensor) for place, tensor in state.items()}
        self._names = {self._key(p): ("parameter", name) for name, p in model.named_parameters()}
        self._names |= {self._key(b): ("buffer", name) for name, b in model.named_buffers()}
        self._model, self._original, self._foreign = model, original, self._tensors_of(original)

    def _tensors_of(self, original: nn.Module | None) -> dict[int, str]:
        """The storages of the model that this one is a copy of, which the copy must not use."""
        if original is None:
            return {}
        named = {**dict(original.named_parameters()), **dict(original.named_buffers()), **state_of(original)}
        foreign = {self._key(tensor)[0]: name for name, tensor in named.items()}
        own = {key[0] for key in (*self._names, *self._read_from.values())}
        return {storage: name for storage, name in foreign.items() if storage not in own}

    def watch_modules(self, model: nn.Module) -> list[Any]:
        """Follow which module is running, and what each returns; returns the hooks' handles."""
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(name), prepend=True))
            handles.append(module.register_forward_hook(self._leaving(), always_call=True))
        return handles

    def placeholder(self, tensor: Tensor) -> None:
        """Declare an input tensor."""
        node = self.graph.placeholder(f"input_{len(self._nodes)}")
        node.meta |= {"val": _spec(tensor), "module": "", "returned_by": [], "fixed": False}
        self._nodes[self._key(tensor)] = node

    def finish(self, output: object, places: Mapping[str, fx.Node]) -> tuple[fx.Graph, Kept]:
        """Close the graph with the run's output, and find what the next run will read that this one has written.

        Args:
            output: what the model returned.
            places: what it keeps.
        """
        known = tree_map_only(Tensor, self._node, output)
        leaves = [leaf for leaf in tree_leaves(known) if isinstance(leaf, fx.Node)]
        for node in self.graph.nodes:
            node.meta["val"] = map_aggregate(node.meta["val"], _made)
        self.graph.output(tuple(leaves))
        read = {place: self._constants.get(key) for place, key in self._read_from.items()}
        state = {start: (place, places[place]) for place, start in read.items() if start and place in places}
        carried = settle_fixed(self.graph, state)
        self._refuse_writes_to_shared_memory()
        return self.graph, carried

    def kept_at(self, state: Mapping[str, Tensor]) -> dict[str, fx.Node]:
        """The nodes of the tensors that the model keeps, as far as the run has seen them."""
        nodes = {place: self._nodes.get(self._key(tensor)) for place, tensor in state.items()}
        return {place: node for place, node in nodes.items() if node}

    def left(self) -> dict[StorageWeakRef, list[fx.Node]]:
        """The storages that the run has made and that are still there, but for statistics of norms."""
        statistics = {self._key(buffer)[0] for _, buffer in statistics_of(self._model)}
        made = [made for made in self._made if made not in statistics]
        alive = {memory: self._storages[memory] for memory in made if not self._storages[memory].expired()}
        found = {alive[made]: [self._nodes[key] for key in self._made[made]] for made in alive}
        return {made: nodes for made, nodes in found.items() if not all(node.meta["fixed"] for node in nodes)}

    def _refuse_writes_to_shared_memory(self) -> None:
        """Each constant has labels of its own, so what is written to one must not show in another."""
        sharing: dict[int, list[fx.Node]] = {}
        for key, node in self._constants.items():
            sharing.setdefault(key[0], []).append(node)
        for nodes in sharing.values():
            if len(nodes) > 1 and not all(node.meta["fixed"] for node in nodes):
                called = (node.meta.get("parameter") or node.meta.get("buffer") for node in nodes)
                names = [repr(name) if name else "an attribute" for name in called]
                raise UnsupportedOpError(
                    f"What is computed from the input is written to memory that {' and '.join(names)} share.",
                    "Give each its own memory (clone()), and take views of it in the forward.",
                )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ON_STORAGE:
            raise UnsupportedOpError(
                f"In module {self.stack[-1] or 'the model itself'!r} a tensor is made of another one's storage "
                "(copy.deepcopy or pickle of a tensor), which cannot be followed.",
                "Use clone().",
            )
        with without_torch_function():  # what is done here is not the model's
            self._forget_the_dead()
            # Looked up before the call, which may resize, free or overwrite what it is given.
            node_args, node_kwargs = map_aggregate((args, kwargs), self._known)
            before = self._about_to_be_overwritten(func, args, kwargs) if writes(func) else {}
            result = func(*args, **kwargs)
            if writes(func) or isinstance(result, Tensor) or _has_tensors(result):
                node = self.graph.call_function(func, node_args, node_kwargs)
                node.meta |= {
                    "val": map_aggregate(result, _spec),
                    "module": self.stack[-1],
                    "returned_by": [],
                }
                self._remember(node, result)
                for root, values in before.items():
                    root.meta.setdefault("overwritten", []).append((node, values))
        return result

    def _about_to_be_overwritten(self, func: Any, args: Any, kwargs: Any) -> dict[fx.Node, Tensor]:
        """The memory that an op made of constants alone will write to, by the node that made it, and a copy of it.

        What becomes of memory that takes in something else is not known anyway.
        """
        known = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not all("value" in self._node(tensor).meta for tensor in known):
            return {}
        targets = tree_leaves(written_of(func, args, kwargs))
        return {alias_root(self._node(t)): _memory(t).clone() for t in targets if isinstance(t, Tensor)}

    def exit(self, tensor: Tensor, how: str) -> None:
        """Note down that the values which `tensor` has now leave torch."""
        self._node(tensor.detach()).meta["exit"] = how

    def _remember(self, node: fx.Node, result: Any) -> None:
        # Values made from constants alone are kept: weights that are computed, indices that are looked up.
        parents = node.all_input_nodes
        if all("value" in parent.meta for parent in parents):
            node.meta["value"] = result
        seeded = torch.Tag.nondeterministic_seeded in op_of(node).tags
        node.meta["random"] = seeded or any(parent.meta.get("random") for parent in parents)
        if isinstance(result, Tensor):
            self._made_by(node, result)
            return
        for index, part in enumerate(result or ()):
            if isinstance(part, (tuple, list)):
                raise UnsupportedOpError(
                    f"The op {node.target} returns lists of tensors beside others, which cannot be followed.",
                    "Let it return a flat tuple or one list.",
                )
            if isinstance(part, Tensor):
                item = self.graph.call_function(getitem, (node, index))
                item.meta |= {"val": _spec(part), "module": self.stack[-1], "returned_by": []}
                item.meta |= {"value": part} if "value" in node.meta else {}
                item.meta["random"] = node.meta["random"]
                self._made_by(item, part)

    def _made_by(self, node: fx.Node, tensor: Tensor) -> None:
        seen = len(self._storages)
        key = self._key(tensor)
        self._nodes[key] = node
        if len(self._storages) > seen:
            self._made[key[0]] = set()
        if key[0] in self._made:
            self._made[key[0]].add(key)

    def _forget_the_dead(self) -> None:
        # What a weak reference keeps of a storage, small as it is, lies between activations and fragments the heap.
        if len(self._made) < self._sweep:
            return
        for storage in [made for made in self._made if self._storages[made].expired()]:
            for key in self._made.pop(storage):
                del self._nodes[key]
            del self._storages[storage]
        self._sweep = len(self._made) + _SWEEP

    def _known(self, argument: Any) -> Any:
        return self._node(argument) if isinstance(argument, Tensor) else argument

    def _node(self, tensor: Tensor) -> fx.Node:
        key = self._key(tensor)
        if key not in self._nodes:
            if key[0] in self._made:
                raise UnsupportedOpError(
                    f"In module {self.stack[-1] or 'the model itself'!r} a tensor of shape {tuple(tensor.shape)} looks "
                    "at memory of the run in a way that no op of torch has made, which cannot be followed.",
                    "Make it by torch's views (as_strided, view, narrow).",
                )
            target = f"constant_{len(self._constants)}"
            node = self.graph.create_node("get_attr", target)
            if self._original is not None and key[0] in self._foreign:
                refuse_tensor_of(self._original, self._model, self._foreign[key[0]], self.stack[-1])
            kind, name = self._names.get(key, ("constant", target))
            node.meta |= {"val": _spec(tensor), "module": "", "returned_by": [], "value": tensor, kind: name}
            self._nodes[key] = node
            if key[0] in self._earlier:
                places = [place for place, kept in self._read_from.items() if kept == key]
                where = f" ({places[0]})" if places else ", in no attribute of a module"
                node.meta["left_behind"] = (
                    f"In module {self.stack[-1] or 'the model itself'!r} a tensor is read that "
                )
                node.meta["left_behind"] += f"an earlier call has left behind{where}"
            self._constants[key] = node
        return self._nodes[key]

    def _key(self, tensor: Tensor) -> _Key:
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError) as error:
            raise CaptureError(
                f"A {tensor.layout} tensor of shape {tuple(tensor.shape)} has no strided memory to follow.",
                "Use dense tensors inside the model (call .to_dense()), or apply TGD to a submodule.",
            ) from error
        reference = self._storages.setdefault(storage._cdata, StorageWeakRef(storage))
        return (reference.cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: object) -> None:
            self.stack.append(name)

        return enter

    def _leaving(self) -> Callable[..., None]:
        def leave(module: nn.Module, args: object, output: object) -> None:
            name = self.stack.pop()
            with without_torch_function():
                if isinstance(output, Tensor) and (node := self._nodes.get(self._key(output))) is not None:
                    node.meta["returned_by"].append(name)

        return leave


def _has_tensors(result: object) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))


@dataclass(frozen=True)
class _Spec:
    """Of a tensor, until the run is over: small tensors made meanwhile would fragment the heap."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def _made(spec: Any) -> Any:
    if not isinstance(spec, _Spec):
        return spec
    return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta")


def _spec(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_quantized:
        raise CaptureError(
            f"A quantised tensor ({value.dtype}) of shape {tuple(value.shape)} cannot be followed.",
            "Apply TGD to the network before it is quantised.",
        )
    return _Spec(value.shape, value.stride(), value.dtype)


def _memory(tensor: Tensor) -> Tensor:
    """All of the memory that a tensor looks at."""
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)
