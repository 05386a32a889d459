"""LocoProp: every layer solves a local problem of its own after each backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim.optimizer import Optimizer

from rlopt.optim._capture import Recorder, attach_hooks
from rlopt.optim._hooks import Link, remove_hooks
from rlopt.optim._layers import eligible_layers
from rlopt.optim._local_problems import LinearRows, LocalProblem, make_problem, stack_problems
from rlopt.optim._local_solvers import (
    Gamma,
    LocalSettings,
    descend,
    iterate_to_fixed_point,
    local_loss,
    solve_all_exactly,
    target_of,
)
from rlopt.optim._working_copies import store_parameters, store_states, working_states
from rlopt.optim.inner_rules import INNER_RULES, InnerRule, RMSpropTFRule
from rlopt.optim.transfers import IDENTITY, Transfer, find_transfer

Variant = Literal["squared", "matching"]
Solver = Literal["iterative", "closed_form", "fixed_point"]
GammaMode = Literal["loss", "per_row"]
Fallback = Callable[[Iterable[nn.Parameter]], Optimizer]

PUBLISHED_LR = 1e-5
FALLBACK_LR = 1e-3
# Products per layer and iteration below which solving equal layers together pays on a CPU: there, calls cost more than work.
_SMALL = 1 << 20


def _adam(params: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.Adam(params, lr=FALLBACK_LR)


class LocoProp(Optimizer):
    """LocoProp: local losses for the layers of any network, each minimised on its own.

    One backward pass gives every layer, with inputs X, pre-activations A = X W' + b and gradients Delta = dL/dA, a target.
    Then W and b minimise their own convex loss, a sum over the rows of X, near their old values W_t:

        matching:  sum D_F(X W', a*) + |W - W_t|^2 / (2 eta)       with f(a*) = f(A) - gamma Delta,  D_F the matching loss of f
        squared:   |X W' - A*|^2 / 2 + |W - W_t|^2 / (2 eta)       with A* = A - gamma Delta

    The first local gradient is gamma times that of the global loss; "squared" is "matching" with the identity for f. All targets
    come from one backward pass, inputs are those of the original forward pass, so the order of the layers does not matter.

    The solvers:

    * iterative: `local_iters` (T) steps of a first-order rule whose state persists; step k has `lr max(1 - k/T, local_lr_floor)`.
    * closed_form: the minimiser of the squared problem, W_t - gamma G (X'X + I / eta)^-1, by Cholesky's factorisation of X'X
      or, with fewer rows than inputs, of X X'; by singular values in float64 where rounding defeats that. Keeps no state.
    * fixed_point: T times W <- W_t - eta (f(X W') - Y*)' X for the matching problem; converges if
      eta sup f' lambda_max(X'X) < 1.

    Layers with a local problem: `nn.Linear` and `nn.Conv2d` (one group; its rows are output positions) that were called and
    differentiated. All others, recurrent cells, embeddings, norms, attention's own projections, bare parameters, shared parameters
    and layers whose parameters are set by others (`functional_call`), take a step of the fallback optimizer.

    f is, in this order: `transfer[name]`; the activation (`F.relu`, `nn.Tanh`, ...) or the loss with a link
    (`cross_entropy`, `binary_cross_entropy_with_logits`) that is called with the output of the layer, seen inside the forward of
    any module with submodules, inside the closure of `step`, and inside `watching()`; the next module of an `nn.Sequential`; the
    identity. So for a loss computed outside of the module, name the last layer's transfer, use `watching()`, or leave it at the
    identity. Anything between layer and activation, non-monotone activations (GELU, SiLU) and an output that is used otherwise
    as well make it the identity.

    `zero_grad()` drops the recorded rows with the gradients and `step()` consumes them, so they always belong together. Clipping
    `param.grad` does not act on the local problems, `max_delta_norm` does.

    Args:
        module: The network. Its layers get hooks; `close()` removes them. In copies of the module alone they do nothing.
        lr: Step size of the inner rule, >= 0; None: 1e-5, as published, for the RMSProp of TensorFlow, other rules need a value.
            The other solvers have no step size; there it multiplies gamma, and None is 1. Schedulers act on it.
        variant: "matching" (as published) or "squared".
        solver: See above.
        inner: A rule of `rlopt.optim.inner_rules`, by name ("rmsprop_tf", "rmsprop", "sgd", "adam") or an `InnerRule`.
        local_iters: T >= 1; 10 as published.
        gamma: Step size of the targets, > 0; 10 as published, for a batch of 1000. In the closed form, gamma over the number of
            rows near 1 is a place to start.
        gamma_mode: "loss" takes gamma as it is, as published; "per_row" multiplies it by the number of rows, so that with a mean
            loss it need not change with the batch size.
        prox_eta: eta > 0; None: no proximal term, as in the authors' notebook; needed by closed form and fixed point.
        local_lr_floor: Smallest factor of the step sizes within a training step, in [0, 1]; 0.25 as published, 1: all equal.
        transfer: "auto", or a map from names of layers to names of transfers or `Transfer` objects; the others stay automatic.
        fallback: Makes the optimizer for everything else from all parameters; None: Adam with lr 1e-3. Its learning rates are
            multiplied by lr over the lr of the constructor, so that schedules act on them.
        layers: `(name, module) -> bool` that chooses among the eligible layers; None: all.
        weight_decay: Subtract lr * weight_decay * W once per training step, >= 0. Not in the paper.
        max_delta_norm: Bound > 0 of the norm of all Delta together, which are scaled down to it. Not in the paper.
        batched: Solve equally shaped linear layers together; None: where it pays. The result is the same up to rounding.
        grad_scaler: The scaler that multiplied the loss; its scale is divided out of Delta.
        track_local_losses: Compute `local_losses` in every step, which costs two more forward products per layer.

    Attributes:
        local_losses: After a step, name -> (before, after), the local losses without their constants, as tensors on the device.
        transfers: After a step, name of each layer with a local problem -> name of its transfer; "fallback" for the others.
        fallback: The optimizer for everything else.

    Raises:
        ValueError: For arguments outside these sets.

    Differs from the paper: what is marked above; the text of the paper could not be read in full, the algorithm is that of its
    abstract and of the authors' notebook. `closed_form` and `fixed_point` are derived from the local problems.

    References: Amid, Anil, Warmuth, LocoProp: Enhancing backprop via local loss optimization, AISTATS 2022, arXiv 2106.06199. The
    closed form is FOOF with other numbers: Benzing, Gradient descent on neurons and its link to approximate second-order
    optimization, ICML 2022, arXiv 2201.12250.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.rand(64, 4, generator=generator)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> optimizer = LocoProp(net, solver="closed_form", variant="squared", gamma=20.0, prox_eta=1.0)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss = 0.5 * (net(x) - x.sum(1, keepdim=True)).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        >>> loss.item() < 1e-2
        True
    """

    _is_built = False

    def __init__(
        self,
        module: nn.Module,
        lr: float | None = None,
        *,
        variant: Variant = "matching",
        solver: Solver = "iterative",
        inner: str | InnerRule = "rmsprop_tf",
        local_iters: int = 10,
        gamma: float = 10.0,
        gamma_mode: GammaMode = "loss",
        prox_eta: float | None = None,
        local_lr_floor: float = 0.25,
        transfer: Literal["auto"] | Mapping[str, str | Transfer] = "auto",
        fallback: Fallback | None = None,
        layers: Callable[[str, nn.Module], bool] | None = None,
        weight_decay: float = 0.0,
        max_delta_norm: float | None = None,
        batched: bool | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
        track_local_losses: bool = False,
    ) -> None:
        _check_choice("variant", variant, ("squared", "matching"))
        _check_choice("solver", solver, ("iterative", "closed_form", "fixed_point"))
        _check_choice("gamma_mode", gamma_mode, ("loss", "per_row"))
        if solver == "closed_form" and variant != "squared":
            raise ValueError("solver='closed_form' solves the squared problem only; set variant='squared'.")
        if solver == "fixed_point" and variant != "matching":
            raise ValueError("solver='fixed_point' is for variant='matching'; the squared problem has solver='closed_form'.")
        if solver != "iterative" and prox_eta is None:
            raise ValueError(f"prox_eta must be a number > 0 for solver={solver!r}, got None; 1.0 is a place to start.")
        self.inner = _find_rule(inner)
        if lr is None:
            if solver == "iterative" and not isinstance(self.inner, RMSpropTFRule):
                raise ValueError(f"lr must be given for inner={inner!r}; only 'rmsprop_tf' has a published one.")
            lr = PUBLISHED_LR if solver == "iterative" else 1.0
        _check_positive("gamma", gamma)
        for name, value in (("prox_eta", prox_eta), ("max_delta_norm", max_delta_norm)):
            if value is not None:
                _check_positive(name, value)
        if local_iters < 1:
            raise ValueError(f"local_iters must be >= 1, got {local_iters}.")
        if not 0.0 <= local_lr_floor <= 1.0:
            raise ValueError(f"local_lr_floor must be in [0, 1], got {local_lr_floor}.")
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {value}.")
        if any(isinstance(param, UninitializedParameter) for param in module.parameters()):
            raise ValueError("module must have all its parameters; run one forward pass to initialise lazy layers.")
        defaults = {"lr": lr, "gamma": gamma, "prox_eta": prox_eta, "local_iters": local_iters, "weight_decay": weight_decay}
        super().__init__(module.parameters(), defaults)
        self.variant, self.solver, self.gamma_mode = variant, solver, gamma_mode
        self.local_lr_floor, self.max_delta_norm, self.batched = local_lr_floor, max_delta_norm, batched
        self.track_local_losses, self.grad_scaler = track_local_losses, grad_scaler
        self.local_losses: dict[str, tuple[Tensor, Tensor]] = {}
        self.transfers: dict[str, str] = {}
        self.fallback = (fallback or _adam)(module.parameters())
        self._module = module
        chosen = {name: part for name, part in eligible_layers(module) if layers is None or layers(name, part)}
        self._layers = {name: (part.weight, part.bias) for name, part in chosen.items()}
        self._explicit = {} if transfer == "auto" else {name: find_transfer(value) for name, value in transfer.items()}
        for name in self._explicit:
            if name not in self._layers:
                raise ValueError(f"transfer must name layers with a local problem, {list(self._layers)}, got {name!r}.")
        if self._explicit and variant == "squared":
            raise ValueError("transfer has no effect with variant='squared'; drop one of them.")
        self._is_built, self._is_closed = True, False
        self._link = Link()
        self._link.connect(self)
        self._recorder: Recorder | None = None
        attach_hooks(module, self._layers, self._link, detect=variant == "matching")

    @property
    def recorder(self) -> Recorder:
        """What has been recorded, as the hooks on the module report it."""
        # Made on demand, since a copy is born before its module is complete.
        if self._recorder is None:
            detect = self.variant == "matching"
            self._recorder = Recorder(self._module, self._layers, detect=detect, unscaled=self._unscaled)
            for name, layer in self._recorder.layers.items():
                layer.explicit = IDENTITY if self.variant == "squared" else self._explicit.get(name)
        return self._recorder

    def _unscaled(self, grad: Tensor) -> Tensor:
        if self.grad_scaler is None or not self.grad_scaler.is_enabled():
            return grad
        return grad / self.grad_scaler.scale(torch.ones((), device=grad.device))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: rows can be recorded for the layers of the module only.

        Raises:
            ValueError: Always, after construction.
        """
        if self._is_built:
            raise ValueError("LocoProp has one group, the parameters of its module; build a new one for another module.")
        super().add_param_group(param_group)

    def suspended(self) -> AbstractContextManager[None]:
        """Record no forward pass inside. Layers without any recorded row take the fallback step."""
        return self.recorder.suspended()

    def watching(self) -> AbstractContextManager[None]:
        """Look for the transfers, those of losses included, in all that is called inside."""
        return self.recorder.watching()

    def close(self) -> None:
        """Remove the hooks from the module; the optimizer cannot step any more."""
        self._is_closed = True
        remove_hooks(self._module, self._link)
        self.recorder.close()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients and the recorded rows. Forward passes that wait for their backward pass are kept."""
        super().zero_grad(set_to_none)
        self.recorder.forget()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Solve the local problems of the last backward pass, and take a fallback step for everything else.

        Args:
            closure: Clears the gradients, computes the loss, calls `backward`, and returns the loss; called once.

        Returns:
            The loss of the closure, or None.

        Raises:
            RuntimeError: After `close()`.
            NonFiniteError: If a closed form meets inputs that are not finite.
        """
        if self._is_closed:
            raise RuntimeError("this LocoProp is closed; build a new one.")
        loss = None
        if closure is not None:
            with torch.enable_grad(), self.recorder.watching():
                loss = closure()
        self.local_losses = {}
        # Under autocast the local products would be made in low precision, and into buffers of another dtype.
        with torch.autocast(self.param_groups[0]["params"][0].device.type, enabled=False):
            solved = self._solve_layers()
        self._step_rest(solved)
        self.recorder.forget()
        for layer in self.recorder.layers.values():
            layer.keep_gradients()
        return loss

    def _solve_layers(self) -> set[Tensor]:
        """Solve the local problems and return the parameters that have been stepped."""
        problems = []
        for layer in self.recorder.layers.values():
            layer.drop_without_gradient()
            transfer = layer.transfer()
            self.transfers[layer.name] = transfer.name if layer.uses else "fallback"
            if layer.uses:
                problems.append(make_problem(layer, transfer, unfold=self.solver == "closed_form"))
        coefficient = self._clip_coefficient(problems)
        stacks = [(problem, self._settings(problem, coefficient)) for problem in self._stacked(problems)]
        changes = solve_all_exactly(stacks) if self.solver == "closed_form" else []  # before any weight moves
        group = self.param_groups[0]
        for index, (problem, settings) in enumerate(stacks):
            tracker = _Tracker(problem, settings) if self.track_local_losses else None
            if changes:
                for name, change in changes[index].items():
                    problem.trained[name].add_(change)
            elif self.solver == "fixed_point":
                iterate_to_fixed_point(problem, settings)
            else:
                self._descend(problem, settings)
            if tracker is not None:
                self.local_losses.update(tracker.losses())
            store_parameters(problem, 1.0 - group["lr"] * group["weight_decay"])
        return {param for problem in problems for layer in problem.layers for param in layer.parameters.values()}

    def _descend(self, problem: LocalProblem, settings: LocalSettings) -> None:
        for layer in problem.layers:
            for param in layer.parameters.values():
                if not self.state[param]:
                    self.state[param] = self.inner.init_state(param.detach())
        states = working_states(problem, self.state)
        descend(problem, self.inner, states, settings)
        store_states(problem, states, self.state)

    def _clip_coefficient(self, problems: list[LocalProblem]) -> Tensor | None:
        if self.max_delta_norm is None or not problems:
            return None
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(problem.delta).float() for problem in problems]))
        return torch.clamp(self.max_delta_norm / norm, max=1.0)

    def _settings(self, problem: LocalProblem, coefficient: Tensor | None) -> LocalSettings:
        group = self.param_groups[0]
        gamma: Gamma = group["gamma"] * (problem.rows.num_rows if self.gamma_mode == "per_row" else 1)
        if self.solver != "iterative":
            gamma = gamma * group["lr"]
        if coefficient is not None:
            gamma = gamma * coefficient.to(problem.delta.dtype)
        return LocalSettings(group["lr"], gamma, group["prox_eta"], group["local_iters"], self.local_lr_floor)

    def _stacked(self, problems: list[LocalProblem]) -> list[LocalProblem]:
        if self.batched is False:
            return problems
        groups: dict[object, list[LocalProblem]] = {}
        for index, problem in enumerate(problems):
            rows = problem.rows
            work = rows.num_rows * rows.inputs.shape[-1] * problem.delta.shape[-1]
            pays = self.batched or problem.delta.device.type != "cpu" or work <= _SMALL
            can = isinstance(rows, LinearRows) and pays
            groups.setdefault(problem.key if can else index, []).append(problem)
        return [stack_problems(together) for together in groups.values()]

    def _step_rest(self, solved: set[Tensor]) -> None:
        """Take a step of the fallback optimizer with the parameters that have none yet."""
        params = self.param_groups[0]["params"]
        if not any(param.grad is not None for param in params if param not in solved):
            return
        kept = {param: param.grad for param in solved}
        rates = [group["lr"] for group in self.fallback.param_groups]
        base = self.defaults["lr"]
        factor = self.param_groups[0]["lr"] / base if base > 0.0 else 1.0
        try:
            for param in solved:
                param.grad = None
            for group in self.fallback.param_groups:
                group["lr"] = group["lr"] * factor
            self.fallback.step()
        finally:
            for param, grad in kept.items():
                param.grad = grad
            for group, rate in zip(self.fallback.param_groups, rates, strict=True):
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the inner rule, the group, and under "fallback" that of the fallback. Rows are not saved."""
        return {**super().state_dict(), "fallback": self.fallback.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state.

        Raises:
            ValueError: If it is not that of a LocoProp.
        """
        if "fallback" not in state_dict:
            raise ValueError(f"state_dict must be that of a LocoProp, with 'fallback'; got {sorted(state_dict)}.")
        super().load_state_dict(state_dict)
        self.fallback.load_state_dict(state_dict["fallback"])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in _KEPT}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_module" in state:  # a copy; `load_state_dict` comes here too, without it
            self.local_losses, self.transfers = {}, {}
            self._recorder = None
            self._link.connect(self)


_KEPT = (
    "inner", "variant", "solver", "gamma_mode", "local_lr_floor", "max_delta_norm", "batched", "track_local_losses", "grad_scaler",
    "fallback", "_module", "_layers", "_explicit", "_is_built", "_is_closed", "_link",
)  # fmt: skip


class _Tracker:
    """The local losses of a problem before and after it was solved."""

    def __init__(self, problem: LocalProblem, settings: LocalSettings) -> None:
        self.problem, self.settings = problem, settings
        self.target = target_of(problem, settings.gamma)
        self.start = {name: param.clone() for name, param in problem.trained.items()}
        self.before = local_loss(problem, self.target, self.start, settings)

    def losses(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return name -> (before, after); nothing for a transfer whose potential is not known."""
        after = local_loss(self.problem, self.target, self.start, self.settings)
        if self.before is None or after is None:
            return {}
        pairs = zip(self.before.reshape(-1).unbind(), after.reshape(-1).unbind(), strict=True)
        return dict(zip([layer.name for layer in self.problem.layers], pairs, strict=True))


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value}.")


def _find_rule(inner: str | InnerRule) -> InnerRule:
    if isinstance(inner, str):
        if inner not in INNER_RULES:
            raise ValueError(f"inner must be one of {sorted(INNER_RULES)} or an InnerRule, got {inner!r}.")
        return INNER_RULES[inner]
    if not isinstance(inner, InnerRule):
        raise TypeError(f"inner must be a name or an InnerRule, got {type(inner).__name__}.")
    return inner
