"""Solvers of local problems: some steps of a first-order rule, the exact solution, and a fixed-point iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlopt.optim._local_problems import LinearRows, LocalProblem, Tensors
from rlopt.optim.finite import NonFiniteError
from rlopt.optim.inner_rules import InnerRule, State

Gamma = float | Tensor  # a tensor where the gradients are clipped by their norm


@dataclass(frozen=True)
class LocalSettings:
    """Numbers of one training step."""

    lr: float
    gamma: Gamma  # of the layer: times its rows, where asked for, and times the factor of clipping
    prox_eta: float | None
    num_iters: int
    lr_floor: float


def target_of(problem: LocalProblem, gamma: Gamma) -> Tensor:
    """Return f(A) - gamma Delta."""
    predicted = problem.activated
    if predicted is None:
        outputs = problem.start_outputs()
        predicted = outputs if problem.transfer.is_identity else problem.transfer.apply_(outputs.clone(), problem.rows.unit_dim)
    if isinstance(gamma, Tensor):
        return predicted - problem.delta * gamma.to(predicted.dtype)
    return torch.sub(predicted, problem.delta, alpha=gamma)


class _Residual:
    """f(X W' + b) - Y* at changing parameters, in a buffer of its own.

    On a CPU tanh is made of the sigmoid, as in `transfers`: tanh(a) = 2 sigmoid(2 a) - 1. The factors and the 1 then cost nothing
    if they go into the product and the difference.
    """

    def __init__(self, problem: LocalProblem, gamma: Gamma) -> None:
        self.problem = problem
        self.target = target_of(problem, gamma)
        self.by_sigmoid = (
            problem.transfer.function is torch.tanh
            and isinstance(problem.rows, LinearRows)
            and self.target.dtype is torch.float32
            and self.target.device.type == "cpu"
        )
        if self.by_sigmoid:
            self.target.add_(1.0).neg_()
        self.buffer: Tensor | None = None

    def now(self) -> Tensor:
        """Compute it."""
        rows, params = self.problem.rows, self.problem.params
        if self.by_sigmoid:
            assert isinstance(rows, LinearRows)
            self.buffer = rows.predict(params, out=self.buffer, factor=2.0)
            return torch.add(self.target, self.buffer.sigmoid_(), alpha=2.0, out=self.buffer)
        self.buffer = rows.predict(params, out=self.buffer)
        return self.problem.transfer.apply_(self.buffer, rows.unit_dim).sub_(self.target)


def local_loss(problem: LocalProblem, target: Tensor, start: Tensors, settings: LocalSettings) -> Tensor | None:
    """Return the local loss of each layer at the current parameters, without its constant; None if f has no potential.

    That is  sum over rows of F(a) - <y*, a>  +  |W - W_t|^2 / (2 eta), of shape (K,), or () for a single layer.
    """
    if problem.transfer.potential is None:
        return None
    rows = problem.rows
    outputs = rows.predict(problem.params)
    per_row = problem.transfer.potential_sum(outputs, rows.unit_dim) - (outputs * target).sum(rows.unit_dim)
    kept = 1 if len(problem.layers) > 1 else 0  # dimension K stays
    total = per_row.flatten(kept).sum(-1)
    if settings.prox_eta is not None:
        for name, before in start.items():
            total = total + (problem.params[name] - before).square().flatten(kept).sum(-1) / (2.0 * settings.prox_eta)
    return total


def descend(problem: LocalProblem, rule: InnerRule, states: dict[str, State], settings: LocalSettings) -> None:
    """Make the local iterations, in place.

    The first gradient is gamma times that of the global loss and needs no product if autograd's is unchanged. Later ones are
    (f(A) - target)' X, or, without f and where it is cheaper, (W - W_t) X'X + gamma G, which needs no rows.
    """
    names = list(problem.trained)
    params, inner_states = [problem.trained[name] for name in names], [states[name] for name in names]
    gamma, eta, num_iters = settings.gamma, settings.prox_eta, settings.num_iters
    first = {name: grad * gamma for name, grad in problem.start_gradients().items()}
    gram = _cheaper_gram(problem, num_iters)
    start = {name: problem.trained[name].clone() for name in names} if gram is not None or eta is not None else {}
    # Before the first update, since W_t may be needed to recompute A.
    residual = _Residual(problem, gamma) if num_iters > 1 and gram is None else None
    grads = first
    for k in range(num_iters):
        if k > 0 and gram is not None:
            grads = gram.gradients({name: problem.trained[name] - start[name] for name in names}, first)
        elif k > 0 and residual is not None:
            grads = problem.rows.gradients(residual.now(), problem.trained, out=grads)
        if k > 0 and eta is not None:
            for name in names:
                grads[name].add_(problem.trained[name] - start[name], alpha=1.0 / eta)
        factor = max(1.0 - k / num_iters, settings.lr_floor)
        rule.update(params, [grads[name] for name in names], inner_states, settings.lr * factor)


def iterate_to_fixed_point(problem: LocalProblem, settings: LocalSettings) -> None:
    """Repeat W <- W_t - eta (f(X W') - Y*)' X in place; a fixed point solves the proximal problem."""
    eta = settings.prox_eta
    assert eta is not None
    residual = _Residual(problem, settings.gamma)
    start = {name: param.clone() for name, param in problem.trained.items()}
    grads = {name: grad * settings.gamma for name, grad in problem.start_gradients().items()}
    for k in range(settings.num_iters):
        if k > 0:
            grads = problem.rows.gradients(residual.now(), problem.trained, out=grads)
        for name, param in problem.trained.items():
            torch.sub(start[name], grads[name], alpha=eta, out=param)


def solve_all_exactly(problems: list[tuple[LocalProblem, LocalSettings]]) -> list[Tensors]:
    """Return the changes of the parameters that solve the squared problems; waits for the device once.

    Raises:
        NonFiniteError: If inputs or gradients are not finite.
    """
    solved = [solve_exactly(problem, settings) for problem, settings in problems]
    if not solved or not bool(torch.stack([has_failed.any() for _, has_failed in solved]).any()):
        return [change for change, _ in solved]
    return [
        _mended(change, has_failed, problem, settings)
        for (change, has_failed), (problem, settings) in zip(solved, problems, strict=True)
    ]


def _mended(change: Tensors, has_failed: Tensor, problem: LocalProblem, settings: LocalSettings) -> Tensors:
    """Replace the changes of the layers whose matrix could not be factorised."""
    if not bool(has_failed.any()):
        return change
    better = solve_by_singular_values(problem, settings)
    failed = has_failed.view(-1, 1, 1) if has_failed.dim() == 1 else has_failed  # stacked parameters are (K, ., .)
    return {name: torch.where(failed, better[name], old) for name, old in change.items()}


def solve_exactly(problem: LocalProblem, settings: LocalSettings) -> tuple[Tensors, Tensor]:
    """Return the change of the parameters that solves the squared problem, and for each layer whether that failed: (K,), or ().

    With X the inputs and a column of ones for the bias:  - gamma G (X'X + I / eta)^-1  if there are at least as many rows as
    columns, else the same number as  - gamma Delta' (X X' + I / eta)^-1 X.  Low precision is solved in float32. Fails where the
    matrix is not positive definite after rounding; `solve_by_singular_values` solves that as well.
    """
    rows, eta = problem.rows, settings.prox_eta
    assert isinstance(rows, LinearRows)
    assert eta is not None
    dtype = torch.promote_types(problem.delta.dtype, torch.float32)
    x = _columns(problem, rows.inputs.to(dtype))
    if rows.inputs.shape[-1] <= rows.num_rows:
        grads = problem.start_gradients()
        parts = [grads[name].to(dtype) for name in problem.trained]
        if "bias" in grads:
            parts[-1] = parts[-1].mT if x.dim() == 3 else parts[-1][:, None]  # (O, 1)
        gradient = torch.cat(parts, -1) if len(parts) > 1 else parts[0]  # (O, I + 1)
        change, info = _divided(gradient, x.mT @ x, 1.0 / eta)
    else:
        change, info = _divided(problem.delta.to(dtype).mT, x @ x.mT, 1.0 / eta)
        change = change @ x
    return _as_parameters(problem, change * -settings.gamma), info != 0


def solve_by_singular_values(problem: LocalProblem, settings: LocalSettings) -> Tensors:
    """Return what `solve_exactly` returns, in float64 and for matrices of any condition.

    With X = U S V':  - gamma Delta' U S (S^2 + I / eta)^-1 V'.  Directions that cannot be told from zero do not change.

    Raises:
        NonFiniteError: If the inputs or gradients are not finite.
    """
    rows, eta = problem.rows, settings.prox_eta
    assert eta is not None
    x, delta = _columns(problem, rows.inputs.double()), problem.delta.double()
    if not bool(x.isfinite().all() & delta.isfinite().all()):
        names = ", ".join(layer.name for layer in problem.layers)
        raise NonFiniteError(f"inputs and gradients of {names} must be finite, got inf or nan; take a smaller gamma or prox_eta.")
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    noise = torch.finfo(s.dtype).eps * max(x.shape[-2:]) * s.amax(-1, keepdim=True)
    denominator = s.square() + 1.0 / eta
    factors = torch.where(denominator > noise.square(), s / denominator, 0.0)  # (min(B, I + 1),)
    change = (delta.mT @ u * factors.unsqueeze(-2)) @ vh
    return _as_parameters(problem, change * -settings.gamma)


def _columns(problem: LocalProblem, inputs: Tensor) -> Tensor:
    """Return the columns of X that belong to trained parameters, (B, I + 1)."""
    ones = inputs.new_ones((*inputs.shape[:-1], 1))
    columns = ([inputs] if "weight" in problem.trained else []) + ([ones] if "bias" in problem.trained else [])
    return torch.cat(columns, -1) if len(columns) > 1 else columns[0]


def _as_parameters(problem: LocalProblem, change: Tensor) -> Tensors:
    """Split a matrix (O, I + 1) into the changes of the trained parameters."""
    change = change.to(problem.delta.dtype)
    found: Tensors = {}
    if "weight" in problem.trained:
        found["weight"] = change[..., : problem.rows.inputs.shape[-1]]
    if "bias" in problem.trained:
        last = change[..., -1]
        found["bias"] = last.unsqueeze(1) if last.dim() == 2 else last  # (K, 1, O), or (O,)
    return found


def _divided(left: Tensor, matrix: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return left (matrix + damping I)^-1, and what Cholesky's factorisation reports; the matrix is overwritten."""
    matrix.diagonal(dim1=-2, dim2=-1).add_(damping)
    factor, info = torch.linalg.cholesky_ex(matrix)
    # From the right: torch solves rows of a row-major matrix in place of copying it, a third faster than `cholesky_solve`.
    half = torch.linalg.solve_triangular(factor.mT, left, upper=True, left=False)
    return torch.linalg.solve_triangular(factor, half, upper=False, left=False), info


class _Gram:
    """X'X, X'1 and the number of rows: gradients of the squared problem without the rows."""

    def __init__(self, rows: LinearRows) -> None:
        self.matrix = rows.inputs.mT @ rows.inputs
        self.sums = rows.inputs.sum(-2)
        self.num_rows = rows.num_rows

    def gradients(self, change: Tensors, first: Tensors) -> Tensors:
        """Return [W - W_t, b - b_t] [X, 1]'[X, 1] + gamma [G, g]; `first` holds the last term."""
        found: Tensors = {}
        weight, bias = change.get("weight"), change.get("bias")
        if weight is not None and weight.dim() == 3:
            found["weight"] = torch.baddbmm(first["weight"], weight, self.matrix)
            if bias is not None:
                found["weight"].baddbmm_(bias.mT, self.sums.unsqueeze(1))
        elif weight is not None:
            found["weight"] = torch.addmm(first["weight"], weight, self.matrix)
            if bias is not None:
                found["weight"].addr_(bias, self.sums)
        if bias is not None:
            found["bias"] = torch.add(first["bias"], bias, alpha=self.num_rows)
            if weight is not None:
                found["bias"] += (weight @ self.sums.unsqueeze(-1)).reshape(bias.shape)
        return found


def _cheaper_gram(problem: LocalProblem, num_iters: int) -> _Gram | None:
    rows = problem.rows
    if num_iters == 1 or not problem.transfer.is_identity or not isinstance(rows, LinearRows):
        return None
    num_inputs, num_outputs = rows.inputs.shape[-1], problem.delta.shape[-1]
    with_rows = 2 * (num_iters - 1) * rows.num_rows * num_outputs
    without = rows.num_rows * num_inputs + (num_iters - 1) * num_outputs * num_inputs
    return _Gram(rows) if without < with_rows else None  # both times 2 num_inputs: floating-point operations
