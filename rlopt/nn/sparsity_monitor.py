"""Which hidden units of a model are active, counted while it runs.

References: Li, You, Bhojanapalli, Li, Rawat, Reddi, Ye, Chern, Yu, Guo, Kumar, The lazy neuron phenomenon: on emergence of
activation sparsity in transformers, ICLR 2023, arXiv 2210.06313 (the fraction of nonzero activations).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from rlopt.nn.topk_mlp import SparseActivations, TopKSelection

# Their outputs hold exact zeros.
_EXACT = (nn.ReLU, nn.ReLU6, TopKSelection)
# Their outputs are hardly ever exactly zero.
_SMOOTH = (nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Tanh, nn.Sigmoid)
_FOUND_BY_TYPE = (*_EXACT, nn.GELU, nn.SiLU)


class SparsityMonitor:
    """Counts how often each hidden unit of a model is active, until it is removed.

    For each watched layer, over all tokens that pass:

        nnz_fraction         share of activations that are not zero (small: sparse)
        dead_fraction        share of units that were never active
        always_on_fraction   share of units that were active for every token

    GELU, SiLU and other smooth activations have no exact zeros. For them a unit counts as active where |a| > `threshold`, and as
    this is another quantity, the names are others: `above_0.001_fraction`, `never_above_0.001_fraction`,
    `always_above_0.001_fraction`, with the threshold in the name.

    Nothing is computed from the counts before `report`, and only two tensors per layer are kept: the number of active tokens for
    each unit, and the number of tokens. Training and evaluation passes count alike; `reset` starts anew.

    Args:
        model: Model to watch; it is not changed, but for the hooks.
        layers: Names of modules, as in `model.named_modules()`, whose outputs are activations. None: every ReLU, ReLU6, GELU, SiLU,
            `TopKActivation` and `TopKMLP` in the model; functions such as `torch.relu` cannot be watched.
        threshold: For smooth activations, >= 0.
        neuron_dim: Dimension of the outputs that counts units: -1 for tokens, 1 for images with channels first and for vectors.

    Raises:
        ValueError: If there is no such layer, and for a negative threshold.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])), model[0].bias.zero_()
        >>> with SparsityMonitor(model) as monitor:
        ...     _ = model(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        >>> {name: round(value, 2) for name, value in monitor.report()["1"].items()}
        {'nnz_fraction': 0.5, 'dead_fraction': 0.33, 'always_on_fraction': 0.33}
    """

    def __init__(
        self, model: nn.Module, *, layers: Sequence[str] | None = None, threshold: float = 1e-3, neuron_dim: int = -1
    ) -> None:
        if not threshold >= 0.0:
            raise ValueError(f"threshold must be >= 0, got {threshold}.")
        self.threshold, self.neuron_dim = threshold, neuron_dim
        self._is_smooth: dict[str, bool] = {}
        self._active: dict[str, Tensor] = {}  # layer -> (units,) tokens for which the unit is active
        self._tokens: dict[str, Tensor] = {}  # layer -> () tokens
        self._valid: Tensor | None = None
        self._handles: list[RemovableHandle] = []
        for name, module in _watched(model, layers).items():
            self._is_smooth[name] = isinstance(module, _SMOOTH)
            self._handles.append(module.register_forward_hook(self._hook(name)))

    def __enter__(self) -> Self:
        """Return the monitor."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop watching."""
        self.remove()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the watched layers."""
        return tuple(self._is_smooth)

    def remove(self) -> None:
        """Stop watching: take the hooks off the model. The counts stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def reset(self) -> None:
        """Forget all counts."""
        self._active.clear()
        self._tokens.clear()

    @contextlib.contextmanager
    def only(self, valid: Tensor) -> Iterator[None]:
        """Count only some tokens while the context is open.

        Args:
            valid: Bool, True for real tokens and False for padding; its shape is that of the activations without the units,
                for instance (batch, length).

        Raises:
            TypeError: If it is not a tensor of bools. (A layer that sees another shape raises a ValueError.)
        """
        if valid.dtype != torch.bool:
            raise TypeError(f"valid must be a tensor of bools, True for real tokens, got {valid.dtype}.")
        before, self._valid = self._valid, valid
        try:
            yield
        finally:
            self._valid = before

    def report(self, *, distributed: bool = False) -> dict[str, dict[str, float]]:
        """Return the fractions of each layer; layers that saw no token are left out.

        Args:
            distributed: Whether the counts of all processes of `torch.distributed` are added; then every process must call this,
                and all get the same answer. The counts themselves stay as they are.

        Returns:
            Layer -> name -> fraction in [0, 1].
        """
        state = self.state_dict()
        if distributed:
            states: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, {name: part.cpu() for name, part in state.items()})
            state = states[0]
            for other in states[1:]:
                state = _add(state, other)
        return {name: self._fractions(name, state) for name in self.layers if state.get(f"{name}/tokens", torch.tensor(0)) > 0}

    def scalars(self, prefix: str = "sparsity", *, distributed: bool = False) -> dict[str, float]:
        """Return the report as flat names, for `SummaryWriter.add_scalar` and Stable-Baselines3's `logger.record`.

        Args:
            prefix: First part of each name.
            distributed: See `report`.

        Returns:
            `prefix/layer/name` -> fraction.
        """
        layers = self.report(distributed=distributed).items()
        return {f"{prefix}/{layer}/{name}": value for layer, fractions in layers for name, value in fractions.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts: `layer/active` (units,) and `layer/tokens` (), int64, of each layer that was called."""
        counts: dict[str, Tensor] = {}
        for name, active in self._active.items():
            counts[f"{name}/active"], counts[f"{name}/tokens"] = active.clone(), self._tokens[name].clone()
        return counts

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the counts of another monitor of the same model, with the same threshold, for instance of another process.

        Args:
            state: Its `state_dict()`.

        Raises:
            ValueError: If it knows layers that are not watched here, or layers of another width.
        """
        for name in state:
            if name.rpartition("/")[0] not in self._is_smooth:
                raise ValueError(f"state must be of the layers {', '.join(self.layers)}, got {name!r}.")
        merged = _add(self.state_dict(), state)
        self._active = {name: merged[f"{name}/active"] for name in self.layers if f"{name}/active" in merged}
        self._tokens = {name: merged[f"{name}/tokens"] for name in self._active}

    def _hook(self, name: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor | SparseActivations) -> None:
            dense = output.to_dense() if isinstance(output, SparseActivations) else output
            self._count(name, dense.detach())

        return count

    @torch.no_grad()
    def _count(self, name: str, activations: Tensor) -> None:
        activations = activations.movedim(self.neuron_dim, -1)  # (..., units)
        is_active = activations.abs() > (self.threshold if self._is_smooth[name] else 0.0)
        if self._valid is not None:
            if self._valid.shape != activations.shape[:-1]:
                raise ValueError(
                    f"valid must have the shape of the activations of {name} without the units, {tuple(activations.shape[:-1])}, "
                    f"got {tuple(self._valid.shape)}."
                )
            is_active = is_active & self._valid.to(is_active.device)[..., None]
            tokens = self._valid.sum().to(is_active.device)
        else:
            tokens = torch.tensor(is_active.shape[:-1].numel(), device=is_active.device)
        active = is_active.reshape(-1, is_active.shape[-1]).sum(dim=0)  # (..., units) -> (units,)
        if name not in self._active:
            self._active[name], self._tokens[name] = active, tokens
            return
        before = len(self._active[name])
        if before != len(active):
            raise ValueError(
                f"layer {name} must have the same number of units in every call, got {len(active)} after {before}; watch others."
            )
        self._active[name] += active
        self._tokens[name] += tokens

    def _fractions(self, name: str, state: Mapping[str, Tensor]) -> dict[str, float]:
        active, tokens = state[f"{name}/active"], state[f"{name}/tokens"]
        # Sums of counts are exact in int64, and so is their conversion up to 2^53.
        share = active.sum().double() / (tokens * len(active))
        values = (share, (active == 0).double().mean(), (active == tokens).double().mean())
        words = ("nnz_fraction", "dead_fraction", "always_on_fraction")
        if self._is_smooth[name]:
            above = f"above_{self.threshold:g}_fraction"
            words = (above, f"never_{above}", f"always_{above}")
        return dict(zip(words, (float(value) for value in values), strict=True))


def _watched(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    if layers is None:
        found: dict[str, nn.Module] = {name: module for name, module in modules.items() if isinstance(module, _FOUND_BY_TYPE)}
        if not found:
            raise ValueError(
                "model must hold a ReLU, GELU, SiLU, TopKActivation or TopKMLP module, got none; name the layers whose outputs are "
                "activations with layers=."
            )
        return found
    if not layers:
        raise ValueError("layers must name at least one module, got none.")
    for name in layers:
        if name not in modules:
            raise ValueError(f"layers must be names of modules of the model, got {name!r}.")
    return {name: modules[name] for name in layers}


def _add(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    total = dict(first)
    for name, counts in second.items():
        if name not in total:
            total[name] = counts.clone()
        elif total[name].shape != counts.shape:
            raise ValueError(f"{name} must have shape {tuple(total[name].shape)}, got {tuple(counts.shape)}.")
        else:
            total[name] = total[name] + counts.to(total[name].device)
    return total
