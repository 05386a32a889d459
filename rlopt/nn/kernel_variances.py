"""How well random features estimate exp(x . y): variances, and the best parameter of exponential features.

w is normal with identity covariance in D dimensions. All variances are of one draw of w; m independent draws divide them by m. All
functions take vectors in the last dimension and broadcast over the others.

References: Choromanski et al., Rethinking attention with Performers, ICLR 2021, arXiv 2009.14794. Likhosherstov et al., Chefs'
random tables: non-trigonometric random features, NeurIPS 2022, arXiv 2205.15317.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positive_variance(x: Tensor, y: Tensor, A: Tensor | float = 0.0) -> Tensor:
    """Variance of f(w, x) f(w, y), the positive estimate of exp(x . y) with parameter A.

        f(w, x) = (1 - 4A)^(D/4) exp(A |w|^2 + sqrt(1 - 4A) w . x - |x|^2 / 2)
        E f^2 f^2 = exp(-|x|^2 - |y|^2) (1 - 4A)^D (1 - 8A)^(-D/2) exp(2 (1 - 4A) z / (1 - 8A)),  z = |x + y|^2

    minus exp(2 x . y). A = 0, the features of FAVOR+: exp(2 x . y) exp(z) (1 - exp(-z)).

    Args:
        x: (..., D).
        y: (..., D).
        A: < 1/8, where the variance is finite.

    Returns:
        (...), the variance of one feature.

    Example:
        >>> x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> round(float(positive_variance(x, y)), 4)  # exp(2) - 1
        6.3891
    """
    dim = x.shape[-1]
    A = torch.as_tensor(A, dtype=x.dtype, device=x.device)
    z = (x + y).square().sum(-1)
    log_second_moment = (
        dim * torch.log1p(-4.0 * A) - dim / 2.0 * torch.log1p(-8.0 * A) + 2.0 * (1.0 - 4.0 * A) * z / (1.0 - 8.0 * A)
    ) - _square_norms(x, y)
    return log_second_moment.exp() - (2.0 * _dot(x, y)).exp()


def trigonometric_variance(x: Tensor, y: Tensor) -> Tensor:
    """Variance of the trigonometric estimate, the pair of sine and cosine.

        exp((|x|^2 + |y|^2) / 2) cos(w . (x - y)) has the variance exp(z - 2 x . y) (1 - exp(-|x - y|^2))^2 / 2

    Args:
        x: (..., D).
        y: (..., D).

    Returns:
        (...).
    """
    z = (x + y).square().sum(-1)
    return 0.5 * (z - 2.0 * _dot(x, y)).exp() * torch.expm1(-(x - y).square().sum(-1)).square()


def hyperbolic_variance(x: Tensor, y: Tensor) -> Tensor:
    """Variance of the mean of the positive estimates (A = 0) with w and -w: (1 - exp(-z)) / 2 of the variance with w alone.

    Args:
        x: (..., D).
        y: (..., D).

    Returns:
        (...).
    """
    return -0.5 * torch.expm1(-(x + y).square().sum(-1)) * positive_variance(x, y)


def orthogonal_variance_bound(x: Tensor, y: Tensor, num_features: int) -> Tensor:
    """Upper bound of the variance of the mean over m <= D orthogonal features with A = 0.

        var / m - 2 (m - 1) / (m (D + 2)) (exp(x . y) - exp(-(|x|^2 + |y|^2) / 2))^2,  var = `positive_variance(x, y)`

    The form is from memory of the FAVOR+ paper; the tests hold it against simulations.

    Args:
        x: (..., D).
        y: (..., D).
        num_features: m, in [1, D].

    Returns:
        (...).

    Raises:
        ValueError: For m outside [1, D].
    """
    dim = x.shape[-1]
    if not 1 <= num_features <= dim:
        raise ValueError(f"num_features must be in [1, {dim}], the dimension of x, got {num_features}.")
    gain = 2.0 * (num_features - 1) / (num_features * (dim + 2))
    return positive_variance(x, y) / num_features - gain * (_dot(x, y).exp() - (-0.5 * _square_norms(x, y)).exp()).square()


def optimal_a(z: Tensor, head_dim: int) -> Tensor:
    """Parameter A of the least variance for pairs with |x + y|^2 = z.

        A = (1 - 2p - sqrt((2p + 1)^2 + 8p)) / 16,  p = z / D

    0 at z = 0, else negative, which makes features bounded (`feature_bound`).

    Args:
        z: >= 0, any shape.
        head_dim: D.

    Returns:
        Shape of `z`.

    Example:
        >>> round(float(optimal_a(torch.tensor(100.0, dtype=torch.float64), 64)), 6)
        -0.472364
    """
    p = z / head_dim
    # 1 - sqrt((2p + 1)^2 + 8p) without cancellation for small p: (1 - s)(1 + s) = -(4p^2 + 12p).
    root = ((2.0 * p + 1.0).square() + 8.0 * p).sqrt()
    return (-(4.0 * p.square() + 12.0 * p) / (1.0 + root) - 2.0 * p) / 16.0


def mean_pair_norm(x: Tensor, y: Tensor, x_valid: Tensor | None = None, y_valid: Tensor | None = None) -> Tensor:
    """Mean of |x_i + y_j|^2 over all pairs (i, j), without forming them.

        mean_i |x_i|^2 + mean_j |y_j|^2 + 2 (mean_i x_i) . (mean_j y_j)

    Args:
        x: (B, H, L, D).
        y: (B, H, S, D).
        x_valid: (B, L) booleans, the rows of x that count; None: all.
        y_valid: (B, S) booleans, the rows of y that count; None: all.

    Returns:
        (B, H); rows that do not exist count as zeros.

    Example:
        >>> mean_pair_norm(torch.tensor([[[[1.0], [3.0]]]]), torch.tensor([[[[2.0]]]])).item()  # (9 + 25) / 2
        17.0
    """
    mean_x, square_x = _moments(x, x_valid)
    mean_y, square_y = _moments(y, y_valid)
    return square_x + square_y + 2.0 * _dot(mean_x, mean_y)


def feature_bound(x: Tensor, A: Tensor | float) -> Tensor:
    """Largest value of f(w, x) over all w, for A < 0: (1 - 4A)^(D/4) exp(|x|^2 (1/2 + 1 / (4 |A|))).

    Reached at w = sqrt(1 - 4A) x / (2 |A|). Without negative A there is no bound.

    Args:
        x: (..., D).
        A: < 0.

    Returns:
        (...).
    """
    A = torch.as_tensor(A, dtype=x.dtype, device=x.device)
    return (x.shape[-1] / 4.0 * torch.log1p(-4.0 * A) + x.square().sum(-1) * (0.5 - 0.25 / A)).exp()


def _moments(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean vector (B, H, D) and mean squared norm (B, H) of the rows that count."""
    if valid is None:
        return x.mean(-2), x.square().sum(-1).mean(-1)
    kept = torch.where(valid[:, None, :, None], x, torch.zeros_like(x))
    count = valid.sum(-1).clamp(min=1)[:, None]  # (B, 1)
    return kept.sum(-2) / count[..., None], kept.square().sum((-2, -1)) / count


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1)


def _square_norms(x: Tensor, y: Tensor) -> Tensor:
    return x.square().sum(-1) + y.square().sum(-1)
