"""Networks: scale-invariant modules and a small language model."""

from rlopt.nn.language_model import CharTransformer, CharTransformerConfig, GeneratorDropout
from rlopt.nn.scale_invariant import (
    LayerNormNoAffine,
    ScaleInvariantAttention,
    ScaleInvariantBlock,
    ScaleInvariantLinear,
    ScaleInvariantMLP,
)

__all__ = [
    "CharTransformer",
    "CharTransformerConfig",
    "GeneratorDropout",
    "LayerNormNoAffine",
    "ScaleInvariantAttention",
    "ScaleInvariantBlock",
    "ScaleInvariantLinear",
    "ScaleInvariantMLP",
]
