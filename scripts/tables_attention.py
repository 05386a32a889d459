"""Print the tables of docs/nn/attention.md about errors of random features of the softmax kernel.

First single pairs of vectors with independent projections, measured against the formulas of `rlopt.nn.kernel_variances`; then whole
attention matrices of random queries and keys, with orthogonal projections as the modules take them. Kinds are compared at equal
numbers of features: a sine and a cosine share a projection, so do exp(w . x) and exp(-w . x).

Examples:
    python scripts/tables_attention.py
    python scripts/tables_attention.py --num-features 64 --num-estimates 20000
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from rlopt.nn.kernel_variances import (
    hyperbolic_variance,
    mean_pair_norm,
    optimal_a,
    positive_variance,
    trigonometric_variance,
)
from rlopt.nn.random_features import FavorPlus, FavorPlusPlus, orthogonal_projections

KINDS = ("favor+", "favor++", "trigonometric", "hyperbolic")
# |x| = |y|, cosine of the angle between x and y, D: |x + y|^2 = 2 |x|^2 (1 + cosine). Equal vectors have 4, 16 and 100, for which
# the best A and the gain are known.
POINTS = (
    (0.5, 0.0, 8),
    (1.0, 1.0, 8),
    (1.0, 0.0, 8),
    (1.0, -1.0, 8),
    (2.0, 1.0, 64),
    (2.0, 0.0, 64),
    (5.0, 1.0, 64),
    (5.0, 0.0, 64),
)
# Draws that are made at once: the memory of the script.
BLOCK_NUMBERS = 4_000_000


@dataclass(frozen=True)
class Config:
    """What is measured."""

    num_features: tuple[int, ...] = (16, 64, 256)
    """Features m, even and > 0; all kinds are compared at equal numbers of them."""
    num_estimates: int = 4000
    """Independent estimates of each pair, > 1."""
    lengths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0)
    """Root mean square lengths |x| of the queries and keys of matrices, > 0, after the scale of attention."""
    num_tokens: int = 128
    """Queries, and keys, of a matrix, > 0."""
    head_dim: int = 32
    """Width of the queries and keys of matrices, > 0."""
    num_draws: int = 25
    """Draws of projections for each matrix, > 0."""

    def __post_init__(self) -> None:
        least = {"num_estimates": 2, "num_tokens": 1, "head_dim": 1, "num_draws": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be >= {value}, got {getattr(self, name)}")
        for option in ("num_features", "lengths"):
            if not getattr(self, option) or not min(getattr(self, option)) > 0:
                raise ValueError(f"{option} must be one or more numbers > 0, got {getattr(self, option)}")
        if any(count % 2 for count in self.num_features):
            raise ValueError(f"num_features must be even, since two features can share a projection, got {self.num_features}")


def main(config: Config) -> None:
    """Print the tables."""
    print_pairs(config)
    print()
    print_matrices(config)


def print_pairs(config: Config) -> None:
    """Print relative RMS errors of the estimates of exp(x . y)."""
    middle = config.num_features[len(config.num_features) // 2]
    print(f"Relative RMS error of exp(x . y) from {config.num_estimates} estimates with independent projections\n")
    ratios = [f"measured / formula, m = {count}" for count in config.num_features]
    print_row("D, `|x|`, angle", "z", "features", f"formula, m = {middle}", "relative to favor+", *ratios)
    print_rule(5 + len(ratios))
    for norm, cosine, dim in POINTS:
        x, y = make_pair(norm, cosine, dim)
        z = float((x + y).square().sum())
        reference = relative_error("favor+", x, y, middle)
        for kind in KINDS:
            expected = relative_error(kind, x, y, middle)
            cells = []
            for count in config.num_features:
                found = measured_error(kind, x, y, count, config.num_estimates)
                formula = relative_error(kind, x, y, count)
                cells.append(f"{found / formula:.3f}" if formula else f"error {0.0 if found < 1e-12 else found:.3g}")
            relative_to = f"{expected / reference:.3g}" if reference else "–"
            place = f"{dim}, {norm:g}, {round(math.degrees(math.acos(cosine)))}°"
            print_row(place, f"{z:.3g}", kind, f"{expected:.3g}", relative_to, *cells)


def print_row(*cells: str) -> None:
    """Print a row of a table in Markdown."""
    print("| " + " | ".join(cells) + " |")


def print_rule(num_columns: int) -> None:
    """Print the line below the header of a table."""
    print("|" + " --- |" * num_columns)


def num_projections(kind: str, num_features: int) -> int:
    """Projections that make so many features: sine and cosine, and the pair of exponentials, make two of each."""
    return num_features if kind.startswith("favor") else num_features // 2


def make_pair(norm: float, cosine: float, dim: int) -> tuple[Tensor, Tensor]:
    """Return two vectors of a length with an angle between them."""
    x, y = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    x[0], y[0], y[1] = norm, norm * cosine, norm * math.sqrt(1.0 - cosine**2)
    return x, y


def variance(kind: str, x: Tensor, y: Tensor, A: Tensor | None = None) -> Tensor:
    """Variance of the estimate from one projection; `favor++` takes the best A of each pair, or the given one."""
    if kind == "favor++":
        return positive_variance(x, y, optimal_a((x + y).square().sum(-1), x.shape[-1]) if A is None else A)
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "favor+": positive_variance,
        "trigonometric": trigonometric_variance,
        "hyperbolic": hyperbolic_variance,
    }
    return functions[kind](x, y)


def relative_error(kind: str, x: Tensor, y: Tensor, num_features: int) -> float:
    """Root of the variance by formula with independent projections, divided by exp(x . y); rounding below 0 counts as 0."""
    return float((variance(kind, x, y) / num_projections(kind, num_features)).clamp(min=0.0).sqrt() / (x @ y).exp())


def measured_error(kind: str, x: Tensor, y: Tensor, num_features: int, num_estimates: int) -> float:
    """Relative RMS error of independent estimates."""
    dim = x.shape[-1]
    A = optimal_a((x + y).square().sum(-1), dim)
    generator = torch.Generator().manual_seed(0)
    count_each = num_projections(kind, num_features)
    block = max(1, BLOCK_NUMBERS // (count_each * dim))
    total = 0.0
    for start in range(0, num_estimates, block):
        count = min(block, num_estimates - start)
        w = torch.randn(count, count_each, dim, generator=generator, dtype=torch.float64)
        estimates = single_estimates(kind, w, x, y, A).mean(-1)  # (count,)
        total += float((estimates / (x @ y).exp() - 1.0).square().sum())
    return math.sqrt(total / num_estimates)


def single_estimates(kind: str, w: Tensor, x: Tensor, y: Tensor, A: Tensor) -> Tensor:
    """Estimates of exp(x . y) from each projection w (..., D)."""
    half_norms = 0.5 * (x @ x + y @ y)
    if kind == "trigonometric":
        return half_norms.exp() * (w @ (x - y)).cos()
    if kind == "hyperbolic":
        return (-half_norms).exp() * (w @ (x + y)).cosh()
    if kind == "favor+":
        return (w @ (x + y) - half_norms).exp()
    exponent = 2.0 * A * w.square().sum(-1) + (1.0 - 4.0 * A).sqrt() * (w @ (x + y)) - half_norms
    return (exponent + x.shape[-1] / 2.0 * torch.log1p(-4.0 * A)).exp()


def print_matrices(config: Config) -> None:
    """Print relative errors of matrices of kernel values, attention weights and outputs."""
    tokens, dim = config.num_tokens, config.head_dim
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(2, tokens, dim, generator=generator, dtype=torch.float64) / math.sqrt(dim)
    value = torch.randn(tokens, dim, generator=generator, dtype=torch.float64)
    kernel_rows, weight_rows = [], []
    for length in config.lengths:
        query, key = length * directions
        exact = (query @ key.T).softmax(-1)
        uniform = relative(torch.full_like(exact, 1.0 / tokens), exact)
        for num_features in config.num_features:
            errors = [matrix_errors(kind, query, key, value, num_features, config.num_draws) for kind in KINDS]
            expected = [expected_matrix_error(kind, query, key, num_features) for kind in KINDS]
            kernel_rows.append([f"{kernel:.3g} ({wanted:.3g})" for (kernel, _, _), wanted in zip(errors, expected, strict=True)])
            weight_rows.append([f"{weights:.3g} / {outputs:.3g}" for _, weights, outputs in errors] + [f"{uniform:.3g}"])
    places = [(f"{length:g}", str(count)) for length in config.lengths for count in config.num_features]
    print(
        f"Relative errors (Frobenius norm), {tokens} normal queries and keys of width {dim}: medians over {config.num_draws} draws "
        "of orthogonal projections.\n\nMatrix of exp(x . y), in brackets the formula for independent projections:\n"
    )
    for header, rows in ((KINDS, kernel_rows), ((*KINDS, "uniform weights"), weight_rows)):
        if rows is weight_rows:
            print("\nAttention weights / outputs:\n")
        print_row("RMS `|x|`", "m", *header)
        print_rule(2 + len(header))
        for place, row in zip(places, rows, strict=True):
            print_row(*place, *row)


def expected_matrix_error(kind: str, query: Tensor, key: Tensor, num_features: int) -> float:
    """Root of the sum of variances of all pairs over the norm of the matrix; `favor++` has one A for all pairs."""
    x, y = query[:, None], key[None, :]
    A = optimal_a(mean_pair_norm(query[None, None], key[None, None])[0, 0], query.shape[-1])
    variances = variance(kind, x, y, A) / num_projections(kind, num_features)
    return float((variances.sum() / (2.0 * query @ key.T).exp().sum()).sqrt())


def matrix_errors(
    kind: str, query: Tensor, key: Tensor, value: Tensor, num_features: int, num_draws: int
) -> tuple[float, float, float]:
    """Median relative errors of the kernel matrix, the attention weights and the outputs."""
    exact = (query @ key.T).exp()
    weights = exact / exact.sum(-1, keepdim=True)
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(num_draws):
        estimate = estimated_kernel(kind, query, key, num_features, generator)
        normalised = estimate / estimate.sum(-1, keepdim=True)
        found.append([relative(estimate, exact), relative(normalised, weights), relative(normalised @ value, weights @ value)])
    kernel, attention, outputs = torch.tensor(found, dtype=torch.float64).median(0).values.tolist()
    return kernel, attention, outputs


def estimated_kernel(kind: str, query: Tensor, key: Tensor, num_features: int, generator: torch.Generator) -> Tensor:
    """Estimates of exp(x . y) for all pairs from one draw of orthogonal projections; those of FAVOR by rlopt's modules."""
    dim = query.shape[-1]
    if kind.startswith("favor"):
        features = (
            FavorPlus(dim, num_features, generator=generator).double()
            if kind == "favor+"
            else FavorPlusPlus(dim, num_features, A="auto", generator=generator).double()
        )
        log_query, log_key = (part[0, 0] for part in features(query[None, None], key[None, None]))
        kernel: Tensor = log_query.exp() @ log_key.exp().T
        return kernel
    w = orthogonal_projections(num_projections(kind, num_features), dim, generator)
    sign = 1.0 if kind == "trigonometric" else -1.0
    of_query, of_key = (x @ w.T for x in (query, key))
    factors = [(sign * 0.5 * x.square().sum(-1, keepdim=True)).exp() for x in (query, key)]
    if kind == "trigonometric":
        products = of_query.cos() @ of_key.cos().T + of_query.sin() @ of_key.sin().T
    else:
        products = 0.5 * (of_query.exp() @ of_key.exp().T + (-of_query).exp() @ (-of_key).exp().T)
    estimate: Tensor = factors[0] * products * factors[1].T / len(w)
    return estimate


def relative(estimate: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact matrix."""
    return float((estimate - exact).norm() / exact.norm())


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
