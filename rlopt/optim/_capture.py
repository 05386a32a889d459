"""Recording of what a layer's local problem needs: its inputs, pre-activations, and the gradients that reach these.

A forward hook takes the inputs and pre-activations and puts a hook on the output, which takes the gradient when there is a
backward pass. Until then a record lives in the graph only, so a forward pass that is never differentiated frees it. Records
count when the gradient of the layer's parameters is accumulated: what `torch.autograd.grad` asks for on the way to the inputs of a
network (the gradient of a critic with respect to actions, for instance) leaves nothing behind.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rlopt.optim._activations import LOSSES, transfer_of_call, transfer_of_module
from rlopt.optim._hooks import Hook, Link, WeakHook, remove_hooks
from rlopt.optim._layers import next_modules
from rlopt.optim.transfers import IDENTITY, Transfer

OwnParameters = tuple[Tensor, Tensor | None]  # weight and bias of a layer
Mark = tuple[int, int]  # place and version of a gradient: both the same means that nobody has changed it


class Use:
    """One call of a layer in a forward pass."""

    __slots__ = (
        "activated", "activated_version", "delta", "inputs", "new_delta", "outputs", "task", "transfer", "version",
        "was_used_otherwise",
    )  # fmt: skip

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.version = outputs._version
        self.transfer: Transfer | None = None
        self.activated: Tensor | None = None  # f(A), as the network computed it
        self.activated_version = 0
        self.was_used_otherwise = False
        self.delta: Tensor | None = None  # sum over the backward passes that reached the parameters
        self.new_delta: Tensor | None = None  # from the backward pass `task`, which may still stop short of them
        self.task = -1

    @property
    def is_overwritten(self) -> bool:
        """Whether an in-place operation has replaced the pre-activations."""
        return self.outputs._version != self.version

    def note_activation(self, transfer: Transfer, result: object) -> None:
        """Note that the outputs went through a transfer, and what came out, if that can be kept."""
        self.was_used_otherwise |= self.transfer not in (None, transfer)
        self.transfer = transfer
        if isinstance(result, Tensor):
            self.activated = result.detach()
            self.activated_version = result._version

    def activated_by(self, transfer: Transfer) -> Tensor | None:
        """Return f(A) if it is at hand for a transfer f."""
        if self.activated is None or transfer != self.transfer or self.activated._version != self.activated_version:
            return None
        return self.activated


class LayerRecord:
    """A layer that can have a local problem, and its uses since the last step."""

    def __init__(self, name: str, module: nn.Linear | nn.Conv2d, own: OwnParameters, recorder: Recorder) -> None:
        self.name = name
        self.module = module
        self.recorder = recorder
        self.weight, self.bias = own
        self.unit_dim = 1 if isinstance(module, nn.Conv2d) else -1
        self.explicit: Transfer | None = None
        self.next_module: nn.Module | None = None
        self.uses: list[Use] = []
        self._arriving: list[Use] = []
        self._hooked: set[str] = set()
        self._marks: dict[str, Mark] = {}
        self._is_exact = True
        self._checked_task = self._counted_task = -1

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters of the layer that are trained, by name."""
        both = {"weight": self.weight, "bias": self.bias}
        return {name: param for name, param in both.items() if param is not None and param.requires_grad}

    def transfer(self) -> Transfer:
        """Return the transfer of the recorded uses; the identity where they disagree or nothing is known."""
        if self.explicit is not None:
            return self.explicit
        found = {self._transfer_of(use) for use in self.uses}
        return found.pop() if len(found) == 1 else IDENTITY

    def _transfer_of(self, use: Use) -> Transfer:
        if use.was_used_otherwise:
            return IDENTITY
        return use.transfer or transfer_of_module(self.next_module, self.unit_dim) or IDENTITY

    def exact_gradients(self) -> dict[str, Tensor] | None:
        """Return the parameters' gradients if they are the sums over the recorded rows; None if anyone changed them."""
        found = {}
        for name, param in self.parameters.items():
            if param.grad is None or not self._is_exact or self._marks.get(name) != _mark(param.grad):
                return None
            found[name] = param.grad.detach()
        return found

    def forget(self) -> None:
        """Drop the uses. A later backward pass through one of them starts its sum anew."""
        for use in self.uses:
            use.delta = None
        self.uses.clear()
        self._arriving.clear()
        self._is_exact = True
        self._note_gradients()

    def drop_without_gradient(self) -> None:
        """Drop the uses if someone has dropped the gradients that came with them."""
        if self.uses and all(param.grad is None for param in self.parameters.values()):
            self.forget()

    def keep_gradients(self) -> None:
        """Note that gradients from before stay: the next ones are added to them and are not sums over recorded rows."""
        self._is_exact = not self._marks

    def _note_gradients(self) -> None:
        self._marks = {name: _mark(param.grad) for name, param in self.parameters.items() if param.grad is not None}

    def on_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Take the inputs and outputs of a forward pass that can be differentiated."""
        if not output.requires_grad or not torch.is_grad_enabled():
            return
        # Under functional_call and in replicas the module computes with other tensors than the parameters to be stepped.
        trained = self.parameters
        if module._parameters["weight"] is not self.weight or not trained:
            return
        inputs: Tensor = args[0] if args else kwargs["input"]
        use = Use(inputs.detach(), output.detach())
        register: Any = output.register_hook
        try:
            register(partial(self.on_gradient, use) if self.recorder.is_active else self.on_unrecorded)
        except RuntimeError:  # tensors inside of vmap cannot have hooks; the layer takes the fallback step
            return
        for name in trained.keys() - self._hooked:
            register = trained[name].register_post_accumulate_grad_hook
            self.recorder.handles.append(register(WeakHook(self.on_accumulate)))
            self._hooked.add(name)
        self.recorder.watch_output(output, use, self.unit_dim)

    def on_unrecorded(self, _: Tensor) -> None:
        """Note that the parameters' gradients contain rows that are not recorded."""
        self._check_gradients()
        self._is_exact = False

    def on_gradient(self, use: Use, grad: Tensor) -> None:
        """Take the gradient that reaches the outputs of a use."""
        if self.recorder.is_closed:
            return
        self._check_gradients()
        use.task, use.new_delta = torch._C._current_graph_task_id(), self.recorder.unscaled(grad.detach())
        self._arriving.append(use)

    def _check_gradients(self) -> None:
        """See, at the first gradient of a backward pass, what happened to the parameters' ones since the last pass."""
        task = torch._C._current_graph_task_id()
        if task == self._checked_task:
            return
        self._checked_task = task
        marks = {name: _mark(param.grad) for name, param in self.parameters.items() if param.grad is not None}
        if marks:
            self._is_exact = self._is_exact and marks == self._marks
        elif self._marks:  # dropped by someone else, as `module.zero_grad()` does
            self.forget()

    def on_accumulate(self, _: Tensor) -> None:
        """Count the uses of the backward pass that has just reached a parameter."""
        task = torch._C._current_graph_task_id()
        arrived = [use for use in self._arriving if use.task == task]
        for use in arrived:
            self._counted_task = task
            if use.delta is None:
                use.delta = use.new_delta
                self.uses.append(use)
            elif use.new_delta is not None:
                use.delta = use.delta + use.new_delta
            use.new_delta = None
        if arrived:  # others belong to backward passes that never reached the parameters
            self._arriving = [use for use in self._arriving if use.task != task]
        if task == self._counted_task:
            self._note_gradients()


def _mark(grad: Tensor) -> Mark:
    return grad.data_ptr(), grad._version


_NOTHING: tuple[Any, Any, int] = (None, None, 0)


class _CallWatch(TorchFunctionMode):
    """Sees every torch function that is called with the output of a layer."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        if self.recorder.watched:
            self.recorder.on_call(func, args, options, result)
        return result


def _unchanged(grad: Tensor) -> Tensor:
    return grad


class Recorder:
    """Records of the layers of a module. It hears of passes through the hooks that `attach_hooks` puts on the module.

    Args:
        module: The network.
        layers: Names of the layers and their parameters; inside of `functional_call` the module would show others.
        detect: Whether to look for the activations that the layers' outputs go through.
        unscaled: Takes the loss scale out of a gradient.

    Attributes:
        layers: Name -> record.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Mapping[str, OwnParameters],
        *,
        detect: bool = False,
        unscaled: Callable[[Tensor], Tensor] = _unchanged,
    ) -> None:
        self.is_active = True
        self.is_closed = False
        self.unscaled = unscaled
        self.watched: dict[int, tuple[weakref.ref[Tensor], Use, int]] = {}
        self._depth: list[nn.Module | None] = []
        self._watch: Any = _CallWatch(self)
        modules: dict[str, Any] = dict(module.named_modules())
        self.layers = {name: LayerRecord(name, modules[name], own, self) for name, own in layers.items()}
        self.handles: list[Any] = []
        if detect:
            followers = next_modules(module)
            for layer in self.layers.values():
                layer.next_module = followers.get(layer.module)

    def on_enter(self, module: nn.Module, args: Any) -> None:
        """Begin to watch, when a module with parts is called."""
        if self.is_active and torch.is_grad_enabled():
            self._enter(module)

    def on_leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Stop watching, when the module has returned."""
        if self._depth and self._depth[-1] is module:
            self._leave()

    def _enter(self, module: nn.Module | None) -> None:
        self._depth.append(module)
        if len(self._depth) == 1:
            self._watch.__enter__()

    def _leave(self) -> None:
        self._depth.pop()
        if not self._depth:
            self._watch.__exit__(None, None, None)
            self.watched.clear()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look for activations, and for losses that apply one, in all that is called inside."""
        self._enter(None)
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Record no forward pass inside."""
        before, self.is_active = self.is_active, False
        try:
            yield
        finally:
            self.is_active = before

    def watch_output(self, output: Tensor, use: Use, unit_dim: int) -> None:
        """Look for what will be called with this very tensor."""
        if self._depth:
            self.watched[id(output)] = (weakref.ref(output), use, unit_dim)

    def on_call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note what a call says about the outputs among its arguments."""
        for position, argument in enumerate((*args, *kwargs.values())):
            for tensor in argument if isinstance(argument, tuple | list) else (argument,):
                reference, use, unit_dim = self.watched.get(id(tensor), _NOTHING)
                if use is None or reference() is not tensor:
                    continue
                is_input = position == 0 or kwargs.get("input") is tensor
                transfer = transfer_of_call(function, args, kwargs, tensor.dim(), unit_dim) if is_input else None
                if transfer is not None:
                    use.note_activation(transfer, None if function in LOSSES else result)
                elif use.is_overwritten or (isinstance(result, Tensor) and result is not tensor and result.requires_grad):
                    use.was_used_otherwise = True
                if use.is_overwritten:  # it is the output of the layer no more
                    del self.watched[id(tensor)]

    def forget(self) -> None:
        """Drop what was recorded."""
        for layer in self.layers.values():
            layer.forget()

    def close(self) -> None:
        """Drop what was recorded, and record nothing any more."""
        self.is_closed = True
        self.forget()
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


def attach_hooks(module: nn.Module, names: Iterable[str], link: Link, *, detect: bool) -> None:
    """Put the hooks on a module that tell the recorder behind a link of its passes; arguments as in `Recorder`."""
    remove_hooks(module)
    modules: dict[str, Any] = dict(module.named_modules())
    for name in names:
        modules[name].register_forward_hook(Hook(link, "on_forward", name), with_kwargs=True)
    for container in modules.values() if detect else ():
        if next(container.children(), None) is not None:
            container.register_forward_pre_hook(Hook(link, "on_enter"))
            # Called after errors too, or the watch would stay in force.
            container.register_forward_hook(Hook(link, "on_leave"), always_call=True)
