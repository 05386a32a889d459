"""Features from a transformer, for every agent of Stable-Baselines3 and rlopt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast, get_args

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from rlopt.nn.tokenizers import ImagePatchTokenizer, PerDimensionTokenizer, StepTokenizer, VectorPatchTokenizer
from rlopt.nn.transformer import Transformer, TransformerOutput
from rlopt.nn.transformer_config import ScaleInvariantConfig, TransformerConfig

Tokenizer = Literal["auto", "per_dimension", "patch", "history"]
Pooling = Literal["auto", "last", "mean"]
# Patches along the side of an image unless told otherwise: 84 x 84 pixels become 7 x 7 tokens.
_PATCHES_PER_SIDE = 7


class TransformerExtractor(BaseFeaturesExtractor):
    """Observation -> tokens -> transformer -> features of size `transformer.width`.

    Tokens are, by `tokenizer`:

    * "per_dimension": each number of a vector.
    * "patch": every `patch_size` numbers of a vector; squares of an image.
    * "history": each step of the Dict that `HistoryWrapper` makes, with previous actions and rewards where there are any. Padding
      is not attended to.
    * "auto": history for such a Dict; patch for images; else per_dimension.

    A Dict that is not a history has the tokens of all its parts, one after another. The features are the output at the last token
    ("last", for histories) or the mean over tokens ("mean", for all others).

    Auxiliary losses of a mixture of experts are given by `pop_aux_losses`, which rlopt's agents call, see their `aux_loss_coefs`;
    those of Stable-Baselines3 do not have this option and learn without them. Initial weights are the transformer's own:
    `ortho_init` of on-policy agents leaves them alone. Nothing is random after construction but dropout, and, with the default
    routing, features of one observation do not depend on the others of a batch: so the log-probability of an action is the same
    when it is drawn and when it is learned from.

    Args:
        observation_space: Box, or Dict of Box, MultiBinary or (one-hot) Discrete spaces. Images are as Stable-Baselines3 gives
            them, channels first and in [0, 1].
        transformer: Sizes and parts; None: two layers of width 64 with 4 heads and just the context needed, causal for histories.
        tokenizer: See above.
        patch_size: Of "patch"; None: 4 numbers of a vector, a seventh of an image's shorter side.
        pooling: See above.

    Raises:
        ValueError: For a context shorter than the tokens of an observation, a tokenizer that does not fit the observations, a
            `patch_size` without effect, and "last" with a transformer that is not causal.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "CartPole-v1", policy_kwargs=dict(features_extractor_class=TransformerExtractor))
        >>> model.policy.features_extractor.num_tokens, model.policy.features_extractor.features_dim
        (4, 64)
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        transformer: TransformerConfig | ScaleInvariantConfig | None = None,
        *,
        tokenizer: Tokenizer = "auto",
        patch_size: int | None = None,
        pooling: Pooling = "auto",
    ) -> None:
        if tokenizer not in get_args(Tokenizer):
            raise ValueError(f"tokenizer must be one of {', '.join(get_args(Tokenizer))}, got {tokenizer!r}.")
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}.")
        self.is_history = tokenizer == "history" or (tokenizer == "auto" and _is_history(observation_space))
        if self.is_history and not _is_history(observation_space):
            raise ValueError(f"tokenizer 'history' needs observations of a HistoryWrapper, got {observation_space}.")
        config = transformer
        if config is None:
            config = TransformerConfig(width=64, num_layers=2, num_heads=4, causal=self.is_history, context=1)
        super().__init__(observation_space, config.width)
        generator = th.Generator().manual_seed(config.seed)
        self.tokenizers = nn.ModuleDict()
        if self.is_history:
            parts = cast(spaces.Dict, observation_space).spaces
            sizes = {name: spaces.utils.flatdim(part) // part.shape[0] for name, part in parts.items() if part.shape}
            self.step_parts = [name for name in sizes if name != "valid"]
            self.tokenizers["step"] = StepTokenizer(sum(sizes[name] for name in self.step_parts), config.width, generator=generator)
            self.num_tokens = cast(tuple[int, ...], parts["valid"].shape)[0]
            if patch_size is not None:
                raise ValueError(f"patch_size must be None with the tokenizer 'history', got {patch_size}.")
        else:
            is_dict = isinstance(observation_space, spaces.Dict)
            named = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"obs": observation_space}
            kinds = set()
            for name, part in named.items():
                module, kind = _make_tokenizer(
                    name if is_dict else "observation_space", part, tokenizer, patch_size, config.width, generator
                )
                self.tokenizers[name] = module
                kinds.add(kind)
            if patch_size is not None and "patch" not in kinds:
                raise ValueError(f"patch_size must be None without patches, got {patch_size}; tokenizer='patch' makes them.")
            self.num_tokens = sum(cast(int, module.num_tokens) for module in self.tokenizers.values())
        if transformer is None:
            config = replace(config, context=self.num_tokens)
        elif config.context < self.num_tokens:
            raise ValueError(
                f"transformer.context must be at least the {self.num_tokens} tokens of an observation, got {config.context}."
            )
        self.pooling = ("last" if self.is_history else "mean") if pooling == "auto" else pooling
        if self.pooling == "last" and not config.causal:
            raise ValueError("pooling 'last' needs a causal transformer: take causal=True, or pooling='mean'.")
        self.transformer = Transformer(config)
        self._aux_losses: dict[str, th.Tensor] = {}

    def forward(self, observations: Any) -> th.Tensor:
        """Features (B, features_dim), or of the wanted steps of sequences (N, features_dim), see `SequenceLearning`."""
        tokens, valid = self.tokens(observations)
        wanted: th.Tensor | None = None
        if valid is not None and valid.ndim == 3:
            valid, wanted = valid.unbind(dim=-1)  # (B, L, 2) -> two (B, L)
        out: TransformerOutput = self.transformer(tokens, valid)
        if self.training:
            self._aux_losses = out.aux_losses
        if wanted is not None:
            return out.output[wanted]  # (B, L, W) -> (N, W)
        if self.pooling == "last":
            return out.output[:, -1]  # the newest step is always valid
        if valid is None:
            return out.output.mean(dim=1)
        weights = valid.to(out.output.dtype)[..., None]  # (B, L, 1)
        return (out.output * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)

    def tokens(self, observations: Any) -> tuple[th.Tensor, th.Tensor | None]:
        """Tokens (B, L, width), and which are valid (B, L), or None if all are."""
        if self.is_history:
            parts = [
                observations[name].flatten(2) if observations[name].ndim > 2 else observations[name][..., None]
                for name in self.step_parts
            ]
            return self.tokenizers["step"](th.cat([part.float() for part in parts], dim=-1)), observations["valid"] > 0.5
        named = observations if isinstance(observations, dict) else {"obs": observations}
        tokens = []
        for name, tokenizer in self.tokenizers.items():
            part = named[name].float()
            tokens.append(tokenizer(part if isinstance(tokenizer, ImagePatchTokenizer) else part.flatten(1)))
        return th.cat(tokens, dim=1), None

    def check_sequences(self, num_steps: int) -> None:
        """Refuse to learn from sequences of which `num_steps` steps are seen at once, if set up for something else.

        Raises:
            ValueError: If observations are no histories, if the features are a mean over steps, for a shorter context, or with
                learned positions.
        """
        config = self.transformer.config
        if not self.is_history:
            raise ValueError("tokenizer must be 'history' with sequences.")
        if self.pooling != "last":
            raise ValueError(f"pooling must be 'last' with sequences, got {self.pooling!r}.")
        if config.context < num_steps:
            raise ValueError(
                f"transformer.context must be at least burn_in + length + 1 = {num_steps} of the sequences, got {config.context}."
            )
        if isinstance(config, ScaleInvariantConfig) or config.positions == "learned":
            raise ValueError(
                "transformer.positions must be 'rotary' or 'none' with sequences, got learned ones: an agent acts at the last "
                "position of its history, which sequences seldom or never learn."
            )

    def pop_aux_losses(self) -> dict[str, th.Tensor]:
        """Auxiliary losses of the latest forward pass in training mode, unscaled; the call forgets them."""
        losses, self._aux_losses = self._aux_losses, {}
        return losses

    def apply(self, fn: Any) -> TransformerExtractor:
        """As `torch.nn.Module.apply`, except that orthogonal initialisation by Stable-Baselines3 is left out."""
        if getattr(fn, "func", fn) is not ActorCriticPolicy.init_weights:
            super().apply(fn)
        return self


def _is_history(space: spaces.Space[Any]) -> bool:
    """Whether a space is that of a `HistoryWrapper`."""
    if not isinstance(space, spaces.Dict) or not {"observations", "valid"} <= space.spaces.keys():
        return False
    valid = space["valid"]
    return isinstance(valid, spaces.MultiBinary) and len(valid.shape) == 1


def _make_tokenizer(
    name: str, space: spaces.Space[Any], tokenizer: Tokenizer, patch_size: int | None, width: int, generator: th.Generator
) -> tuple[Any, str]:
    """Return the tokenizer of one part of an observation, and its kind."""
    if is_image_space(space, check_channels=False) or (isinstance(space, spaces.Box) and len(space.shape) == 3):
        if tokenizer == "per_dimension":
            raise ValueError(f"tokenizer must be 'patch' or 'auto' for images, got {tokenizer!r} for {name}.")
        channels, height, image_width = cast(tuple[int, int, int], space.shape)
        side = max(1, min(height, image_width) // _PATCHES_PER_SIDE) if patch_size is None else patch_size
        return ImagePatchTokenizer((channels, height, image_width), side, width, generator=generator), "patch"
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise ValueError(f"{name} must be a Box, Discrete, MultiDiscrete or MultiBinary space, got {space}.")
    size = spaces.utils.flatdim(space)  # numbers of a finite set come as one-hot vectors
    if tokenizer == "patch":
        return VectorPatchTokenizer(size, 4 if patch_size is None else patch_size, width, generator=generator), "patch"
    return PerDimensionTokenizer(size, width, generator=generator), "per_dimension"
