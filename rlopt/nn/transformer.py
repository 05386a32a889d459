"""The transformer: any attention, dense, sparse or mixed layers, in one stack that also acts token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from rlopt.nn.assignment import RouterStats
from rlopt.nn.attention import AttentionState
from rlopt.nn.dropout import GeneratorDropout
from rlopt.nn.gates import GRUGate, ResidualGate
from rlopt.nn.moe import MoE, MoEOutput
from rlopt.nn.multi_head import MultiHeadAttention
from rlopt.nn.random_features import FavorPlusPlus
from rlopt.nn.scale_invariant import LayerNormNoAffine, ScaleInvariantBlock
from rlopt.nn.soft_moe import SoftMoE
from rlopt.nn.transformer_config import ScaleInvariantConfig, TransformerConfig, layer_seed


class TransformerOutput(NamedTuple):
    """What a `Transformer` returns."""

    output: Tensor
    """(B, L, width)."""
    aux_losses: dict[str, Tensor]
    """Auxiliary losses by name, summed over layers, not multiplied by any coefficient; empty without a mixture of experts."""
    router_stats: dict[str, RouterStats]
    """Statistics of routers, by the name of their layer; detached."""


class TransformerBlock(nn.Module):
    """One layer: attention, then an MLP or a mixture of experts, each joined to the residual stream.

    With g the gates and N the normalisations, norm "pre" computes x = g(x, attention(N x)), then x = g(x, mlp(N x)); norm "post"
    x = N g(x, attention(x)), then x = N g(x, mlp(x)).

    Args:
        attention: Self-attention of the layer.
        mlp: Maps (B, L, width) to the same, or to a `MoEOutput`; the latter is called with the valid tokens too.
        config: Norm placement and gating.
        dropout: Applied to the outputs of attention and mlp.
        generator: Draws the gates.
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        mlp: nn.Module,
        config: TransformerConfig,
        dropout: nn.Module,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.norm_placement, self.gating, width = config.norm, config.gating, config.width
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp = mlp
        self.dropout = dropout
        gru = config.gating == "gru"
        self.attention_gate: nn.Module = GRUGate(width, generator=generator) if gru else ResidualGate()
        self.mlp_gate: nn.Module = GRUGate(width, generator=generator) if gru else ResidualGate()

    def forward(
        self, x: Tensor, valid: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor], RouterStats | None]:
        """Apply the layer; returns its output, its auxiliary losses and the statistics of its router."""
        attended = self.attention(self._before(x, self.attention_norm), valid, positions)
        x = self._join(x, attended, self.attention_gate, self.attention_norm)
        mixed, aux_losses, stats = self._mix(self._before(x, self.mlp_norm), valid)
        return self._join(x, mixed, self.mlp_gate, self.mlp_norm), aux_losses, stats

    def step(self, x: Tensor, state: AttentionState, positions: Tensor | None) -> tuple[Tensor, AttentionState]:
        """Apply the layer to one more token (B, 1, width)."""
        attended, state = self.attention.step(self._before(x, self.attention_norm), state, positions)
        x = self._join(x, attended, self.attention_gate, self.attention_norm)
        before = self._before(x, self.mlp_norm)
        mixed = self.mlp.output(before) if isinstance(self.mlp, MoE) else self._mix(before, None)[0]
        return self._join(x, mixed, self.mlp_gate, self.mlp_norm), state

    def _mix(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, dict[str, Tensor], RouterStats | None]:
        if isinstance(self.mlp, (MoE, SoftMoE)):
            mixed: MoEOutput = self.mlp(x, valid)
            return mixed.y, mixed.aux_losses, mixed.stats
        return self.mlp(x), {}, None

    def _before(self, x: Tensor, norm: nn.Module) -> Tensor:
        return cast(Tensor, norm(x)) if self.norm_placement == "pre" else x

    def _join(self, x: Tensor, y: Tensor, gate: nn.Module, norm: nn.Module) -> Tensor:
        y = self.dropout(y)
        joined = gate(x, y.relu() if self.gating == "gru" else y)
        return cast(Tensor, norm(joined) if self.norm_placement == "post" else joined)


class Transformer(nn.Module):
    """A stack of layers on embedded inputs.

    The form is that of nanoGPT, pre-norm layers without biases, unless the configuration says otherwise. With a
    `ScaleInvariantConfig` the inputs (degree 1 in the scale of the weights) pass a normalisation with gain and bias (1) and a
    linear map without bias (2), then layers `ScaleInvariantBlock` (2), then a normalisation without parameters (0); the way from
    the inputs to the layers could not be read in the paper, this one keeps the degrees right.

    Inputs may be padded anywhere: positions are counted from the first valid token of a row, padding is never attended to nor
    routed, and the output there has no meaning.

    Args:
        config: Sizes and parts.
        generator: Draws the initial weights; None: one with the seed of the configuration.

    Shape: (B, L, width), L <= context, to (B, L, width).

    Example:
        >>> model = Transformer(TransformerConfig(width=8, num_layers=2, num_heads=2, context=5, positions="rotary"))
        >>> x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
        >>> at_once = model(x).output
        >>> state = model.init_state(1)
        >>> for t in range(5):
        ...     token, state = model.step(x[:, t : t + 1], state)
        >>> bool(torch.allclose(token, at_once[:, -1:], atol=1e-6))
        True
    """

    def __init__(
        self, config: TransformerConfig | ScaleInvariantConfig | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config = TransformerConfig() if config is None else config
        self.dropout: nn.Module = GeneratorDropout(config.dropout, config.seed) if config.dropout > 0.0 else nn.Identity()
        self.position_embedding: nn.Embedding | None = None
        generator = torch.Generator().manual_seed(config.seed) if generator is None else generator
        with torch.random.fork_rng(devices=[]):  # torch's layers draw weights, which are drawn anew below
            if isinstance(config, ScaleInvariantConfig):
                self._build_scale_invariant(config)
            else:
                self._build(config, generator)
        self._initialize(config, generator)

    def _build(self, config: TransformerConfig, generator: torch.Generator) -> None:
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.context, config.width)
        self.entry: nn.Module = nn.Identity()
        blocks = []
        for layer in range(config.num_layers):
            head_dim, seed = config.width // config.num_heads, layer_seed(config.seed, layer, part=0)
            kernel = config.attention.build(config.num_heads, head_dim, causal=config.causal, seed=seed)
            rotary = config.positions == "rotary"
            attention = MultiHeadAttention(config.width, config.num_heads, kernel, causal=config.causal, rotary=rotary)
            blocks.append(TransformerBlock(attention, config.build_mlp(layer), config, self.dropout, generator))
        self.blocks = nn.ModuleList(blocks)
        self.final_norm: nn.Module = nn.LayerNorm(config.width, bias=False) if config.norm == "pre" else nn.Identity()

    def _build_scale_invariant(self, config: ScaleInvariantConfig) -> None:
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.entry = _ScaleInvariantEntry(config.width)
        self.blocks = nn.ModuleList(
            ScaleInvariantBlock(
                config.width,
                config.num_heads,
                causal=config.causal,
                weights=config.attention,
                activation=config.activation,
                dropout=self.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = LayerNormNoAffine()

    @torch.no_grad()
    def _initialize(self, config: TransformerConfig | ScaleInvariantConfig, generator: torch.Generator) -> None:
        """Draw the weights of linear maps and embeddings, in the order of the modules; the rest has its own already."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                if isinstance(config, ScaleInvariantConfig):
                    std = config.init_std * (balance(name) if config.balanced else 1.0)
                    nn.init.trunc_normal_(module.weight, std=std, a=-2.0 * std, b=2.0 * std, generator=generator)
                else:
                    on_residual = name.endswith(("attention.out", "contract"))
                    std = config.init_std / (2 * config.num_layers) ** 0.5 if on_residual else config.init_std
                    module.weight.normal_(0.0, std, generator=generator)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
        if isinstance(config, ScaleInvariantConfig) and config.balanced:
            assert isinstance(self.entry, _ScaleInvariantEntry)
            self.entry.gain.fill_(0.3)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> TransformerOutput:
        """Apply all layers.

        Args:
            x: (B, L, width).
            valid: (B, L) booleans, False for padding; None: everything is valid.

        Raises:
            ValueError: For inputs longer than the context.
        """
        length = x.shape[1]
        if length > self.config.context:
            raise ValueError(f"inputs must have at most {self.config.context} positions (context), got {length}.")
        if valid is None:
            positions = torch.arange(length, device=x.device)  # (L,)
        else:
            positions = (valid.long().cumsum(dim=1) - 1).clamp_min(0)  # (B, L)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        x = self.dropout(self.entry(x))
        aux_losses: dict[str, Tensor] = {}
        router_stats: dict[str, RouterStats] = {}
        for layer, block in enumerate(self._layers()):
            if isinstance(block, ScaleInvariantBlock):
                x = block(x, valid)
                continue
            x, losses, stats = block(x, valid, positions)
            for name, loss in losses.items():
                aux_losses[name] = aux_losses[name] + loss if name in aux_losses else loss
            if stats is not None:
                router_stats[f"layer{layer}"] = stats
        return TransformerOutput(self.final_norm(x), aux_losses, router_stats)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AttentionState:
        """State before the first token: zeros.

        Args:
            batch_size: B.
            device: Of the state; None: that of the weights.
            dtype: Of the state; None: that of the weights.

        Returns:
            Tensors with leading dimension B. To reset some rows, multiply those rows of every tensor by 0.

        Raises:
            ValueError: If the transformer is not causal.
        """
        self._check_causal()
        weight = next(self.parameters())
        device = weight.device if device is None else device
        dtype = weight.dtype if dtype is None else dtype
        state = {"position": torch.zeros(batch_size, dtype=torch.long, device=device)}
        for layer, block in enumerate(self._layers()):
            of_layer = block.attention.init_state(batch_size, context=self.config.context, device=device, dtype=dtype)
            state |= {f"layer{layer}.{name}": tensor for name, tensor in of_layer.items()}
        return state

    def step(self, x: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, AttentionState]:
        """Apply all layers to one more token.

        As long as no more than `context` tokens were seen, the result is that of `forward` at the last of them. After that, exact
        attention forgets the oldest token in every layer.

        Args:
            x: (B, 1, width).
            state: From `init_state` or the last step; it is not modified.

        Returns:
            (B, 1, width), and the new state.

        Raises:
            ValueError: If the transformer is not causal, and, with learned positions, beyond the context.
        """
        self._check_causal()
        positions = state["position"][:, None]  # (B, 1)
        if self.position_embedding is not None:
            if bool((positions >= self.config.context).any()):
                raise ValueError(
                    f"a transformer with learned positions cannot go on beyond its context of {self.config.context} tokens; take "
                    "positions='rotary', or a larger context."
                )
            x = x + self.position_embedding(positions)
        x = self.dropout(self.entry(x))
        new: AttentionState = {"position": state["position"] + 1}
        for layer, block in enumerate(self._layers()):
            prefix = f"layer{layer}."
            of_layer = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            if isinstance(block, ScaleInvariantBlock):
                x, of_layer = block.step(x, of_layer)
            else:
                x, of_layer = block.step(x, of_layer, positions)
            new |= {prefix + name: tensor for name, tensor in of_layer.items()}
        return self.final_norm(x), new

    def update_features(self) -> None:
        """Let FAVOR++ attention of a causal transformer use the best features for the batches so far.

        Until this is called features stay as they are, so that an agent's actions keep their probabilities between acting and
        learning. Call it between updates; without such attention it does nothing.
        """
        for module in self.modules():
            if isinstance(module, FavorPlusPlus) and module.mode == "ema":
                module.update_A_()

    def scale_invariant_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters, one scale-invariant group; none in the ordinary form."""
        if isinstance(self.config, ScaleInvariantConfig):
            yield from self.parameters()

    def _layers(self) -> list[TransformerBlock | ScaleInvariantBlock]:
        return cast(list[TransformerBlock | ScaleInvariantBlock], list(self.blocks))

    def _check_causal(self) -> None:
        if not self.config.causal:
            raise ValueError("only a causal transformer acts token by token: take causal=True.")


def balance(name: str) -> float:
    """Factor of the initial spread of a module's weights in the balanced scale-invariant form."""
    if name.startswith("entry"):
        return 3.3
    if name.endswith("embedding"):
        return 2.2
    return 0.5 if name.endswith(("query", "key")) else 1.0


class _ScaleInvariantEntry(nn.Module):
    """From inputs of degree 1 to the residual stream of degree 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNormNoAffine()
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(self.norm(x) * self.gain + self.bias))
