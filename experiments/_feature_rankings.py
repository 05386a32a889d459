"""Classic feature selections: each gives features in an order, best first, from standardised inputs and one-hot targets."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Order = NDArray[np.int64]

# Rows that the estimate of mutual information takes at most: its cost grows faster than their number.
MUTUAL_INFORMATION_ROWS = 3000
# Halvings of the interval of the penalty of the lasso.
LASSO_BISECTIONS = 25


def matching_pursuit(inputs: Matrix, targets: Matrix, k: int) -> Order:
    """Simultaneous orthogonal matching pursuit: one set of features for all columns of the targets.

    The next feature is the one whose correlations with the residuals of all targets have the largest norm,
    argmax_i ||x_i' R|| / ||x_i||; then all targets are fitted anew by least squares. With one target this is what scikit-learn's
    `OrthogonalMatchingPursuit` does, which for several targets selects for each of them on its own and so more than k in all.

    Args:
        inputs: (n, d).
        targets: (n, c).
        k: Features to select.
    """
    x, y = inputs - inputs.mean(0), targets - targets.mean(0)
    gram, products = x.T @ x, x.T @ y  # (d, d), (d, c)
    norms = np.sqrt(np.diag(gram))
    norms[norms < 1e-9 * norms.max()] = np.inf  # constant columns are never taken
    chosen: list[int] = []
    for _ in range(k):
        residual = products
        if chosen:
            weights = np.linalg.lstsq(gram[np.ix_(chosen, chosen)], products[chosen], rcond=None)[0]
            residual = products - gram[:, chosen] @ weights
        scores = np.linalg.norm(residual, axis=1) / norms
        scores[chosen] = -1.0
        chosen.append(int(scores.argmax()))
    return np.array(chosen)


def lasso(inputs: Matrix, targets: Matrix, k: int) -> Order:
    """The rows of scikit-learn's `MultiTaskLasso` that are not zero, with the largest penalty that leaves at least k.

    The penalty is found by bisection on a logarithmic scale; where more than k rows are left, those with the largest norms are
    taken, and these norms are the order. The problem depends on the data through X'X and X'Y only, so the inputs are replaced by a
    d x d factor of X'X, which gives the same solution sooner.

    Args:
        inputs: (n, d).
        targets: (n, c).
        k: Features to select.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import MultiTaskLasso

    x, y = inputs - inputs.mean(0), targets - targets.mean(0)
    if len(x) > x.shape[1]:
        x, y = _compress(x, y)
    high = float(np.linalg.norm(x.T @ y, axis=1).max()) / len(x)  # here all rows are zero
    low = high * 1e-4
    model = MultiTaskLasso(fit_intercept=False, warm_start=True, max_iter=2000, tol=1e-4)
    norms = np.zeros(x.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near the optimum is near enough for the set of features
        for _ in range(LASSO_BISECTIONS):
            model.alpha = float(np.sqrt(low * high))
            model.fit(x, y)
            found = np.linalg.norm(model.coef_, axis=0)  # coef_ is (c, d)
            enough = (found > 0).sum() >= k
            if enough:
                low, norms = model.alpha, found
            else:
                high = model.alpha
            if (found > 0).sum() == k:
                break
    return np.argsort(-norms, kind="stable")[:k]


def mutual_information(inputs: NDArray[Any], classes: NDArray[np.int64], k: int, seed: int) -> Order:
    """The k features with the largest mutual information with the class, each on its own (scikit-learn's nearest neighbours).

    Args:
        inputs: (n, d); at most `MUTUAL_INFORMATION_ROWS` rows, drawn by the seed, are used.
        classes: (n,).
        k: Features to select.
        seed: Seed of the rows, and of the noise that the estimator adds.
    """
    from sklearn.feature_selection import mutual_info_classif

    rows = np.random.default_rng(seed).permutation(len(inputs))[:MUTUAL_INFORMATION_ROWS]
    scores = mutual_info_classif(inputs[rows], classes[rows], random_state=seed)
    return np.argsort(-scores, kind="stable")[:k]


def random_features(num_features: int, k: int, seed: int) -> Order:
    """Return k different features, drawn by the seed."""
    return np.random.default_rng(seed).permutation(num_features)[:k]


def _compress(x: Matrix, y: Matrix) -> tuple[Matrix, Matrix]:
    """Return F (d, d) and T (d, c) with F'F = X'X and F'T = X'Y, whatever the rank."""
    values, vectors = np.linalg.eigh(x.T @ x)
    roots = np.sqrt(np.maximum(values, 0.0))
    factor = roots[:, None] * vectors.T
    safe = np.where(roots > 1e-9 * roots.max(), roots, np.inf)
    return factor, (vectors.T @ (x.T @ y)) / safe[:, None]
