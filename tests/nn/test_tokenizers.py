from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rlopt.nn.tokenizers import ImagePatchTokenizer, PerDimensionTokenizer, StepTokenizer, VectorPatchTokenizer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(5))


def test_each_number_is_a_token_of_its_own() -> None:
    tokenizer, x = PerDimensionTokenizer(3, 4, generator=generator()), draw(2, 3)
    tokens = tokenizer(x)
    assert tokenizer.num_tokens == 3
    for sample in range(2):
        for place in range(3):
            expected = x[sample, place] * tokenizer.weight[place] + tokenizer.bias[place]
            torch.testing.assert_close(tokens[sample, place], expected)


def test_patches_of_a_vector_have_maps_of_their_own_and_the_last_is_filled() -> None:
    tokenizer, x = VectorPatchTokenizer(5, 2, 4, generator=generator()), draw(2, 5)
    tokens = tokenizer(x)
    assert tokens.shape == (2, 3, 4) == (2, tokenizer.num_tokens, 4)
    torch.testing.assert_close(tokens[:, 1], x[:, 2:4] @ tokenizer.weight[1] + tokenizer.bias[1])
    torch.testing.assert_close(tokens[:, 2], x[:, 4:5] @ tokenizer.weight[2, :1] + tokenizer.bias[2])


def test_patches_of_an_image_are_a_convolution_with_stride() -> None:
    tokenizer, x = ImagePatchTokenizer((3, 4, 6), 2, 5, generator=generator()), draw(2, 3, 4, 6)
    kernel = tokenizer.weight.T.reshape(5, 3, 2, 2)
    expected = F.conv2d(x, kernel, tokenizer.bias, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokenizer(x), expected)
    assert tokenizer.num_tokens == 6


def test_steps_share_one_map() -> None:
    tokenizer, x = StepTokenizer(3, 4, generator=generator()), draw(2, 5, 3)
    torch.testing.assert_close(tokenizer(x), x @ tokenizer.weight + tokenizer.bias)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: PerDimensionTokenizer(3, 64, generator=g),
        lambda g: VectorPatchTokenizer(64, 8, 64, generator=g),
        lambda g: ImagePatchTokenizer((3, 8, 8), 4, 64, generator=g),
        lambda g: StepTokenizer(16, 64, generator=g),
    ],
)
def test_weights_come_from_the_generator_and_keep_the_variance(make: object) -> None:
    one, same, other = (make(generator(seed)) for seed in (0, 0, 1))  # type: ignore[operator]
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)
    fan_in = one.weight.shape[-2] if one.weight.ndim == 3 or not isinstance(one, PerDimensionTokenizer) else 1
    assert float(one.weight.detach().var()) * fan_in == pytest.approx(1.0, rel=0.2)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_size must be > 0, got 0"):
        VectorPatchTokenizer(4, 0, 8, generator=generator())
    with pytest.raises(ValueError, match="patch_size must divide both sides of the image, 4 x 6, got 4"):
        ImagePatchTokenizer((3, 4, 6), 4, 8, generator=generator())
