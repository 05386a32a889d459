from __future__ import annotations

import math

import pytest
import torch

from rlopt.nn.rotary import rotate


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def test_pairs_turn_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]], dtype=torch.float64)  # pairs (1, 3) and (2, 4)
    turned = rotate(x, torch.tensor([5]), base=100.0)[0, 0, 0]
    for pair, angle in ((0, 5.0), (1, 0.5)):
        a, b = float(x[0, 0, 0, pair]), float(x[0, 0, 0, pair + 2])
        assert math.isclose(float(turned[pair]), a * math.cos(angle) - b * math.sin(angle), rel_tol=1e-6)
        assert math.isclose(float(turned[pair + 2]), a * math.sin(angle) + b * math.cos(angle), rel_tol=1e-6)


def test_products_depend_on_distance_only() -> None:
    q, k = draw(1, 2, 1, 8), draw(2, 2, 1, 8)[:1]
    products = [(rotate(q, torch.tensor([i])) * rotate(k, torch.tensor([i - 3]))).sum() for i in (3, 10, 50)]
    torch.testing.assert_close(torch.stack(products), products[0].expand(3), rtol=1e-5, atol=1e-6)


def test_position_zero_is_the_identity_and_lengths_stay() -> None:
    x = draw(2, 3, 4, 6)
    torch.testing.assert_close(rotate(x, torch.zeros(4)), x)
    torch.testing.assert_close(rotate(x, torch.arange(4)).norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0.0)


def test_rows_may_have_positions_of_their_own() -> None:
    x = draw(2, 3, 4, 6)
    positions = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]])
    both = rotate(x, positions)
    for row in range(2):
        torch.testing.assert_close(both[row : row + 1], rotate(x[row : row + 1], positions[row]))


def test_half_precision_keeps_its_dtype() -> None:
    assert rotate(draw(1, 1, 2, 4, dtype=torch.float32).bfloat16(), torch.arange(2)).dtype == torch.bfloat16


def test_odd_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="head_dim must be even for rotary positions, got 3"):
        rotate(draw(1, 1, 2, 3), torch.arange(2))
