"""A small character-level transformer, in the standard form and in a scale-invariant form.

The standard form follows nanoGPT (Karpathy, https://github.com/karpathy/nanoGPT) with its setting for CPUs: pre-norm blocks, GELU,
softmax attention, no biases, and output projections of residual branches that start smaller. The scale-invariant form follows Li et
al., ICML 2022, arXiv 2202.00980, made causal: see `rlopt.nn.ScaleInvariantBlock`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlopt.nn.scale_invariant import (
    AttentionWeights,
    LayerNormNoAffine,
    ScaleInvariantActivation,
    ScaleInvariantBlock,
    check_activation,
    check_heads,
    check_weights,
    merge_heads,
    split_heads,
)


@dataclass(frozen=True)
class CharTransformerConfig:
    """Sizes and form of a `CharTransformer`."""

    vocab_size: int
    """Number of different tokens."""
    context: int = 64
    """Longest input. (This and the next four: nanoGPT's setting for CPUs.)"""
    num_layers: int = 4
    """Transformer layers."""
    num_heads: int = 4
    """Attention heads; they divide the width."""
    width: int = 128
    """Size of the representation of a token."""
    dropout: float = 0.0
    """Probability of dropping, in [0, 1): embeddings and residual branches, not attention weights."""
    scale_invariant: bool = False
    """Whether the encoder is scale invariant; the head never is."""
    attention: AttentionWeights = "relu"
    """Weights of the attention of the scale-invariant form (default: paper), see `ScaleInvariantAttention`; the standard form
    always has a softmax."""
    activation: ScaleInvariantActivation = "relu"
    """Of the hidden layers of the scale-invariant form (default: paper), see `ScaleInvariantBlock`; the standard form has GELU."""
    balanced: bool = False
    """Scale-invariant form: whether initial weights have sizes at which a step of SGD turns all tensors about equally far (ours,
    measured): gain 0.3 instead of 1, first linear map 3.3, embeddings 2.2, queries and keys 0.5 times init_std."""
    tie_head: bool = False
    """Whether the head is the transposed token embedding, as in nanoGPT; standard form only."""
    init_std: float = 0.02
    """Standard deviation of the initial weights, > 0 (nanoGPT, and paper): normal, or truncated at two if scale invariant."""
    seed: int = 0
    """Seed of the initial weights and of dropout; torch's global generator is not used."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("vocab_size", "context", "num_layers", "init_std"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}.")
        check_heads(self.width, self.num_heads)
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")
        if self.scale_invariant and self.tie_head:
            raise ValueError("tie_head must be False if scale_invariant: the head is not part of the scale-invariant encoder.")
        check_weights(self.attention, self.width // self.num_heads)
        check_activation(self.activation)
        if self.balanced and not self.scale_invariant:
            raise ValueError("balanced must be False unless scale_invariant: the standard form has no balanced weights.")


class CharTransformer(nn.Module):
    """Causal language model: tokens to logits of the next token.

    In the scale-invariant form, token and position embeddings (degree 1) pass a layer normalisation with gain and bias (1) and a
    linear map without bias (2), then the layers (2), then a normalisation without parameters (0) and the head. The way from the
    embeddings to the layers could not be read in the paper; this one keeps the degrees right.

    Args:
        config: Sizes and form.

    Shape: tokens (batch, length) of integers, length <= context, to logits (batch, length, vocab_size).

    Example:
        >>> model = CharTransformer(CharTransformerConfig(vocab_size=65, num_layers=1, width=32))
        >>> model(torch.zeros(2, 8, dtype=torch.long)).shape
        torch.Size([2, 8, 65])
        >>> model.generate(torch.zeros(1, 1, dtype=torch.long), 5, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([1, 6])
    """

    def __init__(self, config: CharTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout: nn.Module = GeneratorDropout(config.dropout, config.seed) if config.dropout > 0.0 else nn.Identity()
        with torch.random.fork_rng(devices=[]):  # torch's layers draw weights, which are drawn anew below
            self._build(config)
        self._initialize(torch.Generator().manual_seed(config.seed))
        if config.tie_head:
            self.head.weight = self.token_embedding.weight

    def _build(self, config: CharTransformerConfig) -> None:
        width = config.width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Embedding(config.context, width)
        self.entry: nn.Module
        self.final_norm: nn.Module
        if config.scale_invariant:
            self.entry = _ScaleInvariantEntry(width)
            block = ScaleInvariantBlock
            self.blocks = nn.ModuleList(
                block(
                    width,
                    config.num_heads,
                    causal=True,
                    weights=config.attention,
                    activation=config.activation,
                    dropout=self.dropout,
                )
                for _ in range(config.num_layers)
            )
            self.final_norm = LayerNormNoAffine()
        else:
            self.entry = nn.Identity()
            self.blocks = nn.ModuleList(_Block(width, config.num_heads, self.dropout) for _ in range(config.num_layers))
            self.final_norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, config.vocab_size, bias=False)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator) -> None:
        config = self.config
        for name, module in self.named_modules():
            if not isinstance(module, (nn.Linear, nn.Embedding)):
                continue
            if config.scale_invariant and module is not self.head:
                std = config.init_std * (_balance(name) if config.balanced else 1.0)
                nn.init.trunc_normal_(module.weight, std=std, a=-2.0 * std, b=2.0 * std, generator=generator)
            else:
                on_residual = name.endswith(("attention.out", "contract"))
                std = config.init_std / (2 * config.num_layers) ** 0.5 if on_residual else config.init_std
                module.weight.normal_(0.0, std, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        if isinstance(self.entry, _ScaleInvariantEntry) and config.balanced:
            self.entry.gain.fill_(0.3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the logits of the next token at every position."""
        length = tokens.shape[1]
        if length > self.config.context:
            raise ValueError(f"tokens must have at most {self.config.context} positions (context), got {length}.")
        positions = torch.arange(length, device=tokens.device)
        x = self.entry(self.token_embedding(tokens) + self.position_embedding(positions))  # (B, L, W) + (L, W)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.head(self.final_norm(x)))  # (B, L, V)

    def scale_invariant_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the encoder, one scale-invariant group; none in the standard form."""
        if self.config.scale_invariant:
            yield from (p for name, p in self.named_parameters() if not name.startswith("head."))

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        num_tokens: int,
        *,
        generator: torch.Generator,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """Continue sequences with tokens drawn from the model, in its current mode.

        Args:
            tokens: (batch, length), length >= 1; the last `context` of them are seen.
            num_tokens: Tokens to add.
            generator: Draws the tokens; on the device of the model.
            temperature: Divides the logits, > 0.
            top_k: Draw among this many most likely tokens, >= 1; None: among all.

        Returns:
            (batch, length + num_tokens).

        Raises:
            ValueError: For a temperature or top_k outside these sets.
        """
        if not temperature > 0.0:
            raise ValueError(f"temperature must be > 0, got {temperature}.")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be >= 1, got {top_k}.")
        for _ in range(num_tokens):
            logits = self(tokens[:, -self.config.context :])[:, -1] / temperature  # (B, L, V) -> (B, V)
            if top_k is not None:
                kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
                logits = logits.masked_fill(logits < kth, -torch.inf)
            drawn = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)  # (B, 1)
            tokens = torch.cat([tokens, drawn], dim=1)
        return tokens


class GeneratorDropout(nn.Module):
    """Dropout that draws from a generator of its own, one per device, instead of torch's global one.

    Args:
        probability: Share of entries that become zero in training, in [0, 1); the others are divided by 1 - probability.
        seed: Seed of the generators.
    """

    def __init__(self, probability: float, seed: int) -> None:
        super().__init__()
        self.probability, self.seed = probability, seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries in training."""
        if not self.training or self.probability == 0.0:
            return x
        if x.device not in self.generators:
            self.generators[x.device] = torch.Generator(x.device).manual_seed(self.seed)
        keep = 1.0 - self.probability
        return x * torch.bernoulli(torch.full_like(x, keep), generator=self.generators[x.device]) / keep

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the states of the generators by device, so that a model that is loaded goes on with the same draws."""
        return {str(device): generator.get_state() for device, generator in self.generators.items()}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take over the states of generators."""
        self.generators = {}
        for name, values in state.items():
            device = torch.device(name)
            self.generators[device] = torch.Generator(device)
            self.generators[device].set_state(values.cpu())


def _balance(name: str) -> float:
    """Factor of the initial spread of a module's weights in the balanced scale-invariant form."""
    if name.startswith("entry"):
        return 3.3
    if name.endswith("embedding"):
        return 2.2
    return 0.5 if name.endswith(("query", "key")) else 1.0


class _ScaleInvariantEntry(nn.Module):
    """From embeddings (degree 1) to the residual stream (degree 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNormNoAffine()
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(self.norm(x) * self.gain + self.bias))


class _Attention(nn.Module):
    """Causal softmax attention without biases."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (split_heads(layer(x), self.num_heads) for layer in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B, H, L, D)
        return cast(Tensor, self.out(merge_heads(attended)))


class _Block(nn.Module):
    """Pre-norm layer: x + attention(LN x), then x + GELU(LN x W1) W2."""

    def __init__(self, width: int, num_heads: int, dropout: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = _Attention(width, num_heads)
        self.expand_norm = nn.LayerNorm(width, bias=False)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.contract = nn.Linear(4 * width, width, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return cast(Tensor, x + self.dropout(self.contract(F.gelu(self.expand(self.expand_norm(x))))))
