"""Products of masks with vectors against their matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlopt.nn.attention_masks import AttentionMask, BlockToeplitz2D, Decay, Toeplitz, block_toeplitz_matvec, toeplitz_matvec


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_toeplitz_product_equals_loop(length: int) -> None:
    lags, x = randn(3, 2 * length - 1), randn(2, 3, length, 5, seed=1)
    expected = torch.zeros_like(x)
    for i in range(length):
        for j in range(length):
            expected[:, :, i] += lags[:, i - j + length - 1, None] * x[:, :, j]
    torch.testing.assert_close(toeplitz_matvec(lags, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (4, 3), (1, 6), (6, 1)])
def test_block_toeplitz_product_equals_loop(height: int, width: int) -> None:
    lags, x = randn(3, 2 * height - 1, 2 * width - 1), randn(2, 3, height, width, 2, seed=1)
    expected = torch.zeros_like(x)
    for row in range(height):
        for column in range(width):
            for r in range(height):
                for c in range(width):
                    lag = lags[:, row - r + height - 1, column - c + width - 1, None]
                    expected[:, :, row, column] += lag * x[:, :, r, c]
    torch.testing.assert_close(block_toeplitz_matvec(lags, x), expected, rtol=1e-12, atol=1e-12)


def test_toeplitz_matrix_is_the_exponential_of_the_bias_at_its_lag() -> None:
    mask = Toeplitz(2, 5).double()
    mask.bias.data.copy_(randn(2, 9))
    for length in (1, 3, 5):
        for causal in (False, True):
            matrix = mask.dense(length, causal)
            for i in range(length):
                for j in range(length):
                    expected = mask.bias[:, i - j + 4].exp() if j <= i or not causal else torch.zeros(2, dtype=torch.float64)
                    torch.testing.assert_close(matrix[:, i, j], expected)


@pytest.mark.parametrize("num_prefix", [0, 1, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_grid_matrix_is_the_exponential_of_the_bias_at_its_lags(num_prefix: int, causal: bool) -> None:
    mask = BlockToeplitz2D(2, 3, 4, num_prefix=num_prefix).double()
    mask.bias.data.copy_(randn(2, 5, 7))
    length = num_prefix + 12
    matrix = mask.dense(length, causal)
    for i in range(length):
        for j in range(length):
            expected = torch.ones(2, dtype=torch.float64)
            if min(i, j) >= num_prefix:
                (row, column), (r, c) = divmod(i - num_prefix, 4), divmod(j - num_prefix, 4)
                expected = mask.bias[:, row - r + 2, column - c + 3].exp()
            torch.testing.assert_close(matrix[:, i, j], expected * float(j <= i or not causal))


MASKS: dict[str, tuple[AttentionMask, int]] = {
    "toeplitz": (Toeplitz(3, 9), 9),
    "short toeplitz": (Toeplitz(3, 9), 4),
    "grid": (BlockToeplitz2D(3, 2, 5), 10),
    "grid with prefix": (BlockToeplitz2D(3, 4, 2, num_prefix=2), 10),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("causal", [False, True])
def test_product_equals_that_of_the_matrix(name: str, causal: bool) -> None:
    mask, length = MASKS[name]
    mask = mask.double()
    mask.bias.data.copy_(randn(*mask.bias.shape))  # type: ignore[operator, union-attr]
    x = randn(2, 3, length, 5, seed=1)
    torch.testing.assert_close(mask(x, causal), mask.dense(length, causal) @ x, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: mask(x, causal), x.requires_grad_())


@pytest.mark.parametrize("name", MASKS)
def test_fresh_mask_is_all_ones(name: str) -> None:
    mask, length = MASKS[name]
    fresh = (
        type(mask)(3, 9) if isinstance(mask, Toeplitz) else BlockToeplitz2D(3, mask.height, mask.width, num_prefix=mask.num_prefix)
    )  # type: ignore[arg-type, union-attr]
    assert (fresh.dense(length) == 1.0).all()


def test_gradient_of_the_bias_is_that_of_the_matrix() -> None:
    mask, x = Toeplitz(3, 6).double(), randn(2, 3, 6, 5, seed=1)
    mask.bias.data.copy_(randn(3, 11))
    by_product = torch.autograd.grad((mask(x, True) ** 2).sum(), mask.bias)
    by_matrix = torch.autograd.grad(((mask.dense(6, True) @ x) ** 2).sum(), mask.bias)
    torch.testing.assert_close(by_product, by_matrix)
    assert (by_product[0][:, :5] == 0.0).all()


def test_decay_has_powers_of_gamma() -> None:
    matrix = Decay([0.5, 1.0]).dense(3)
    assert matrix[0].tolist() == [[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.25, 0.5, 1.0]]
    assert torch.equal(matrix[1], torch.ones(3, 3).tril())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Toeplitz(0, 3), "num_heads must be >= 1, got 0"),
        (lambda: Toeplitz(1, 0), "max_length must be >= 1, got 0"),
        (lambda: Toeplitz(1, 3)(torch.zeros(1, 1, 4, 1)), "max_length must be >= the length of sequences, got 3 for length 4"),
        (lambda: BlockToeplitz2D(1, 2, 0), "width must be >= 1, got 0"),
        (lambda: BlockToeplitz2D(1, 2, 2, num_prefix=-1), "num_prefix must be >= 0, got -1"),
        (lambda: BlockToeplitz2D(1, 2, 3)(torch.zeros(1, 1, 5, 1)), r"length must be 0 \+ 2 \* 3, got 5"),
        (lambda: toeplitz_matvec(torch.zeros(4), torch.zeros(2, 1)), r"lags must have 2 \* 2 - 1 entries"),
        (lambda: block_toeplitz_matvec(torch.zeros(3, 3), torch.zeros(2, 3, 1)), "for a grid of 2 x 3"),
        (lambda: Decay(0.0), r"gamma must be in \(0, 1\], got 0.0"),
        (lambda: Decay(1.1), r"gamma must be in \(0, 1\], got 1.1"),
        (lambda: Decay([]), r"gamma must be in \(0, 1\]"),
    ],
)
def test_refuses_with_one_sentence(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
