"""A small language model of tokens, such as characters, around a `Transformer`.

The standard form follows nanoGPT (Karpathy, https://github.com/karpathy/nanoGPT) with its setting for CPUs: pre-norm blocks, GELU,
softmax attention, no biases, and output projections of residual branches that start smaller. The scale-invariant form follows Li et
al., ICML 2022, arXiv 2202.00980, made causal: see `rlopt.nn.ScaleInvariantBlock`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlopt.nn.assignment import RouterStats
from rlopt.nn.attention import AttentionState
from rlopt.nn.transformer import Transformer, balance
from rlopt.nn.transformer_config import ScaleInvariantConfig, TransformerConfig


@dataclass(frozen=True)
class CharTransformerConfig:
    """Sizes and form of a `CharTransformer`."""

    vocab_size: int
    """Number of different tokens, > 0."""
    transformer: TransformerConfig | ScaleInvariantConfig = field(default_factory=TransformerConfig)
    """Everything between the embedding of tokens and the head; its seed and init_std are those of the whole."""
    tie_head: bool = False
    """Whether the head is the transposed token embedding, as in nanoGPT; not with the scale-invariant form."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size must be > 0, got {self.vocab_size}.")
        if self.tie_head and isinstance(self.transformer, ScaleInvariantConfig):
            raise ValueError("tie_head must be False if scale invariant: the head is not part of the scale-invariant encoder.")


class LanguageModelOutput(NamedTuple):
    """What `CharTransformer.outputs` returns."""

    logits: Tensor
    """(B, L, vocab_size)."""
    aux_losses: dict[str, Tensor]
    """See `TransformerOutput`."""
    router_stats: dict[str, RouterStats]
    """See `TransformerOutput`."""


class CharTransformer(nn.Module):
    """Language model: tokens to logits of the next token.

    Args:
        config: Sizes and form.

    Shape: tokens (batch, length) of integers, length <= context, to logits (batch, length, vocab_size).

    Example:
        >>> model = CharTransformer(CharTransformerConfig(65, TransformerConfig(num_layers=1, width=32)))
        >>> model(torch.zeros(2, 8, dtype=torch.long)).shape
        torch.Size([2, 8, 65])
        >>> model.generate(torch.zeros(1, 1, dtype=torch.long), 5, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([1, 6])
    """

    def __init__(self, config: CharTransformerConfig) -> None:
        super().__init__()
        self.config, form = config, config.transformer
        generator = torch.Generator().manual_seed(form.seed)
        with torch.random.fork_rng(devices=[]):  # torch's layers draw weights, which are drawn anew below
            self.token_embedding = nn.Embedding(config.vocab_size, form.width)
            self.head = nn.Linear(form.width, config.vocab_size, bias=False)
        with torch.no_grad():
            if isinstance(form, ScaleInvariantConfig):
                std = form.init_std * (balance("token_embedding") if form.balanced else 1.0)
                nn.init.trunc_normal_(self.token_embedding.weight, std=std, a=-2.0 * std, b=2.0 * std, generator=generator)
            else:
                self.token_embedding.weight.normal_(0.0, form.init_std, generator=generator)
            self.transformer = Transformer(form, generator=generator)
            self.head.weight.normal_(0.0, form.init_std, generator=generator)
        if config.tie_head:
            self.head.weight = self.token_embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the logits of the next token at every position; auxiliary losses are in `outputs`."""
        return self.outputs(tokens).logits

    def outputs(self, tokens: Tensor) -> LanguageModelOutput:
        """Compute logits, auxiliary losses and statistics of routers."""
        out = self.transformer(self.token_embedding(tokens))  # (B, L, W)
        return LanguageModelOutput(self.head(out.output), out.aux_losses, out.router_stats)

    def init_state(self, batch_size: int) -> AttentionState:
        """State before the first token, see `Transformer.init_state`."""
        return self.transformer.init_state(batch_size)

    def step(self, tokens: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Compute the logits (batch, 1, vocab_size) behind one more token (batch, 1), and the new state."""
        out, state = self.transformer.step(self.token_embedding(tokens), state)
        return self.head(out), state

    def scale_invariant_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the encoder, one scale-invariant group; none in the standard form."""
        if isinstance(self.config.transformer, ScaleInvariantConfig):
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

        Tokens are computed one by one from a state as long as they fit into the context; after that from the last `context` tokens.

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
        context = self.config.transformer.context
        state: AttentionState | None = self.init_state(len(tokens)) if self.config.transformer.causal else None
        num_stepped = 0
        for _ in range(num_tokens):
            length = tokens.shape[1]
            if state is not None and length <= context:
                while num_stepped < length:
                    logits, state = self.step(tokens[:, num_stepped : num_stepped + 1], state)
                    num_stepped += 1
            else:
                logits = self(tokens[:, -context:])
            logits = logits[:, -1] / temperature  # (B, L, V) -> (B, V)
            if top_k is not None:
                kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
                logits = logits.masked_fill(logits < kth, -torch.inf)
            drawn = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)  # (B, 1)
            tokens = torch.cat([tokens, drawn], dim=1)
        return tokens
