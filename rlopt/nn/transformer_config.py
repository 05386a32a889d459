"""Configurations of a `Transformer`: alternatives are dataclasses beside each other, so that no option is without effect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn

from rlopt.nn.attention import Attention, ReluAttention, SoftmaxAttention
from rlopt.nn.attention_masks import Decay
from rlopt.nn.heads import check_heads
from rlopt.nn.linear_attention import LinearAttention
from rlopt.nn.mlp import Activation, DenseMLP
from rlopt.nn.moe import Group, MoE
from rlopt.nn.random_features import EluFeatures, FavorPlus, FavorPlusPlus
from rlopt.nn.routing import ExpertChoice, TokenChoice
from rlopt.nn.scale_invariant import AttentionWeights, ScaleInvariantActivation, check_activation, check_weights
from rlopt.nn.soft_moe import SoftMoE
from rlopt.nn.topk_mlp import TopKMLP
from rlopt.nn.tree_attention import TreeAttention


@dataclass(frozen=True)
class SoftmaxAttentionConfig:
    """Exact attention, time O(L^2)."""

    def build(self, num_heads: int, head_dim: int, *, causal: bool, seed: int) -> Attention:
        """Make the module."""
        return SoftmaxAttention()


@dataclass(frozen=True)
class ReluAttentionConfig:
    """Weights are ReLU(q k') divided by their sum, time O(L^2); see `ReluAttention`."""

    def build(self, num_heads: int, head_dim: int, *, causal: bool, seed: int) -> Attention:
        """Make the module."""
        return ReluAttention()


@dataclass(frozen=True)
class FavorAttentionConfig:
    """Softmax attention estimated by random features, time O(L); see `FavorPlus` and `FavorPlusPlus`."""

    num_features: int = 64
    """Random features, > 0; the error falls with their square root."""
    kind: Literal["favor+", "favor++"] = "favor++"
    """Positive features, or positive and bounded ones with the smallest variance for the data: for those of the sequence, and in a
    causal transformer for those of earlier batches, as of the last call of `Transformer.update_features`."""
    chunk_size: int = 64
    """Tokens that a causal form computes at once, > 0."""

    def build(self, num_heads: int, head_dim: int, *, causal: bool, seed: int) -> Attention:
        """Make the module."""
        generator = torch.Generator().manual_seed(seed)
        if self.kind == "favor+":
            return LinearAttention(FavorPlus(head_dim, self.num_features, generator=generator), chunk_size=self.chunk_size)
        # The best A of a sequence depends on later tokens too; a causal form may only know it from earlier batches.
        features = FavorPlusPlus(
            head_dim,
            self.num_features,
            A="ema" if causal else "auto",
            num_heads=num_heads if causal else None,
            generator=generator,
        )
        return LinearAttention(features, chunk_size=self.chunk_size)


@dataclass(frozen=True)
class LinearAttentionConfig:
    """Attention with products of ELU + 1 as weights, not an estimate of softmax, time O(L); see `EluFeatures`."""

    decay: float | None = None
    """Weights fall by this factor per step of distance, in (0, 1]; None: not at all. Causal only."""
    chunk_size: int = 64
    """Tokens that a causal form computes at once, > 0."""

    def build(self, num_heads: int, head_dim: int, *, causal: bool, seed: int) -> Attention:
        """Make the module."""
        mask = None if self.decay is None else Decay(self.decay)
        return LinearAttention(EluFeatures(head_dim), mask, chunk_size=self.chunk_size)


@dataclass(frozen=True)
class TreeAttentionConfig:
    """Attention to the keys in the same leaf of a learned tree, or to the means along its path; see `TreeAttention`."""

    height: int = 2
    """Levels below the root, >= 0; there are 2^height leaves."""
    mode: Literal["tf", "tc"] = "tf"
    """tf: softmax in the leaf. tc: means of the nodes on the path."""
    leaf_cap: int | None = None
    """Most keys of a leaf that are read, > 0; None: all."""

    def build(self, num_heads: int, head_dim: int, *, causal: bool, seed: int) -> Attention:
        """Make the module."""
        return TreeAttention(num_heads, head_dim, self.height, mode=self.mode, leaf_cap=self.leaf_cap, seed=seed)


AttentionConfig = SoftmaxAttentionConfig | FavorAttentionConfig | LinearAttentionConfig | TreeAttentionConfig | ReluAttentionConfig


@dataclass(frozen=True)
class DenseMLPConfig:
    """Two linear maps with an activation between them."""

    activation: Activation = "gelu"
    """Between the maps."""


@dataclass(frozen=True)
class TopKMLPConfig:
    """Only the largest activations of a token pass; see `TopKMLP`."""

    k: int | None = None
    """How many, > 0, at most the size of the hidden layer; None: a sixteenth of it."""


@dataclass(frozen=True)
class MoEConfig:
    """A mixture of experts in place of the MLP of every n-th layer; see `MoE`."""

    num_experts: int = 8
    """Experts, > 0, each as large as the MLP it replaces."""
    router: TokenChoice | ExpertChoice = field(default_factory=TokenChoice)
    """Who chooses: tokens their experts, or experts their tokens."""
    group: Group = "sample"
    """Tokens that compete for experts: those of one sample, or of the batch."""
    every: int = 2
    """Of every so many layers the last one has experts, > 0 (GLaM: 2)."""


@dataclass(frozen=True)
class SoftMoEConfig:
    """A soft mixture of experts in place of the MLP of every n-th layer; see `SoftMoE`."""

    num_experts: int = 8
    """Experts, > 0, each as large as the MLP it replaces."""
    slots_per_expert: int = 1
    """Mixtures of tokens that each expert sees, > 0."""
    every: int = 2
    """Of every so many layers the last one has experts, > 0."""


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and parts of a `Transformer`."""

    width: int = 128
    """Size of the representation of a token. (This and the next three: nanoGPT's setting for CPUs.)"""
    num_layers: int = 4
    """Layers, > 0."""
    num_heads: int = 4
    """Attention heads; they divide the width."""
    context: int = 64
    """Longest input; acting token by token, exact attention remembers this many tokens."""
    hidden_width: int | None = None
    """Hidden layer of each MLP or expert, > 0; None: 4 * width."""
    causal: bool = True
    """Whether position i sees only positions <= i; needed to act token by token."""
    attention: AttentionConfig = SoftmaxAttentionConfig()
    """How tokens see each other."""
    mlp: DenseMLPConfig | TopKMLPConfig = DenseMLPConfig()
    """Of layers without experts."""
    moe: MoEConfig | SoftMoEConfig | None = None
    """Experts in every n-th layer; None: nowhere."""
    positions: Literal["learned", "rotary", "none"] = "learned"
    """learned: a vector is added for each position. rotary: queries and keys turn, scores depend on distances, and acting may go on
    beyond the context."""
    norm: Literal["pre", "post"] = "pre"
    """Whether a normalisation stands before each part, or after its residual connection."""
    gating: Literal["residual", "gru"] = "residual"
    """How parts join the stream: a sum, or the gates of GTrXL, which start near the identity."""
    dropout: float = 0.0
    """Probability of dropping, in [0, 1): inputs and residual branches, not attention weights."""
    init_std: float = 0.02
    """Standard deviation of the initial weights, > 0 (nanoGPT); last maps of branches: divided by sqrt(2 num_layers)."""
    allow_future_leak: bool = False
    """Whether a causal transformer may have experts that see later tokens, or other tokens of the batch, when they choose. It then
    cannot act token by token as it was trained."""
    seed: int = 0
    """Of initial weights, random features and dropout; torch's global generator is not used."""

    def __post_init__(self) -> None:
        """Check the options."""
        check_sizes(self)
        if self.hidden_width is not None and self.hidden_width < 1:
            raise ValueError(f"hidden_width must be > 0, got {self.hidden_width}.")
        if self.moe is not None and not 1 <= self.moe.every <= self.num_layers:
            raise ValueError(
                f"moe.every must be in [1, num_layers = {self.num_layers}], got {self.moe.every}: no layer has experts."
            )
        if self.positions == "rotary" and self.width // self.num_heads % 2:
            raise ValueError(f"width / num_heads must be even with rotary positions, got {self.width} / {self.num_heads}.")
        if self.causal and self.moe is not None and not self.allow_future_leak and not self._is_causal_safe(self.moe):
            raise ValueError(
                "moe of a causal transformer must be token choice without a capacity: here, what a token gets would depend on "
                "later ones. Take TokenChoice(capacity_factor=None), causal=False, or allow_future_leak=True."
            )
        if not self.causal and isinstance(self.attention, LinearAttentionConfig) and self.attention.decay is not None:
            raise ValueError(f"attention.decay must be None unless causal, got {self.attention.decay}.")
        if self.gating == "gru" and self.norm == "post":
            raise ValueError("norm must be 'pre' with gating 'gru': its stream must reach the output without a normalisation.")

    @staticmethod
    def _is_causal_safe(moe: MoEConfig | SoftMoEConfig) -> bool:
        return isinstance(moe, MoEConfig) and moe.router.causal_safe

    def build_mlp(self, layer: int) -> nn.Module:
        """Make what stands behind the attention of a layer, without weights that the transformer draws."""
        hidden_width = 4 * self.width if self.hidden_width is None else self.hidden_width
        seed = layer_seed(self.seed, layer, part=1)
        if self.moe is not None and (layer + 1) % self.moe.every == 0:
            if isinstance(self.moe, SoftMoEConfig):
                slots = self.moe.slots_per_expert
                return SoftMoE(self.width, hidden_width, self.moe.num_experts, slots_per_expert=slots, seed=seed)
            return MoE(self.width, hidden_width, self.moe.num_experts, self.moe.router, group=self.moe.group, seed=seed)
        if isinstance(self.mlp, TopKMLPConfig):
            return TopKMLP(self.width, hidden_width, self.mlp.k, seed=seed)
        return DenseMLP(self.width, hidden_width, self.mlp.activation)


@dataclass(frozen=True)
class ScaleInvariantConfig:
    """Sizes of a `Transformer` whose output does not change when all its weights are multiplied by c > 0."""

    width: int = 128
    """Size of the representation of a token. (This and the next three: nanoGPT's setting for CPUs.)"""
    num_layers: int = 4
    """Layers, > 0."""
    num_heads: int = 4
    """Attention heads; they divide the width."""
    context: int = 64
    """Longest input."""
    causal: bool = True
    """Whether position i sees only positions <= i; needed to act token by token."""
    attention: AttentionWeights = "relu"
    """Weights of the attention (default: paper), see `ScaleInvariantAttention`."""
    activation: ScaleInvariantActivation = "relu"
    """Of the hidden layers (default: paper), see `ScaleInvariantBlock`."""
    balanced: bool = False
    """Whether initial weights have sizes at which a step of SGD turns all tensors about equally far (ours, measured): gain 0.3
    instead of 1, first linear map 3.3, embeddings 2.2, queries and keys 0.5 times init_std."""
    dropout: float = 0.0
    """Probability of dropping, in [0, 1): inputs and residual branches, not attention weights."""
    init_std: float = 0.02
    """Standard deviation of the initial weights, > 0 (paper): normal, truncated at two deviations."""
    seed: int = 0
    """Of initial weights and dropout; torch's global generator is not used."""

    def __post_init__(self) -> None:
        """Check the options."""
        check_sizes(self)
        check_weights(self.attention, self.width // self.num_heads)
        check_activation(self.activation)


def check_sizes(config: TransformerConfig | ScaleInvariantConfig) -> None:
    """Refuse sizes that no transformer can have."""
    for name in ("width", "num_layers", "context", "init_std"):
        if getattr(config, name) <= 0:
            raise ValueError(f"{name} must be > 0, got {getattr(config, name)}.")
    check_heads(config.width, config.num_heads)
    if not 0.0 <= config.dropout < 1.0:
        raise ValueError(f"dropout must be in [0, 1), got {config.dropout}.")


def layer_seed(seed: int, layer: int, part: int) -> int:
    """Seed of one part of one layer, different for all of them."""
    return int(np.random.SeedSequence([seed, layer, part]).generate_state(1)[0])
