"""Texts in which characters are hidden, to be found again from what stands on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlopt.data import Dataset
from rlopt.nn import CharTransformer, CharTransformerConfig, TransformerConfig
from rlopt.supervised.batches import Batch, TextWindows
from rlopt.supervised.losses import IGNORED
from rlopt.supervised.tasks import SupervisedTask, text_task, text_windows

# Of the chosen characters (BERT): the rest stays as it is.
REPLACED_BY_MASK, REPLACED_BY_RANDOM = 0.8, 0.1
_EVALUATION_SEED = 0


class MaskedWindows:
    """Windows of a text with hidden characters; targets are the characters there, and -100 elsewhere, which losses leave out.

    In each window round(mask_rate * length) places are chosen, at least one: as many in every window, so that a mean over places
    is a mean over windows. At a chosen place stands the code `vocab_size` with probability 0.8, a random code with 0.1, and what
    was there with 0.1. Evaluations hide the same places each time, whatever the seed.

    Args:
        windows: Where windows come from; their own targets are not used.
        vocab_size: Codes are below it; the mask is the next number.
        mask_rate: Share of the places that are chosen, in (0, 1).
        seed: Seed of what is hidden in training.

    Raises:
        ValueError: For a mask_rate outside (0, 1).

    References: Devlin, Chang, Lee, Toutanova, BERT, NAACL 2019, arXiv 1810.04805 (shares).

    Example:
        >>> codes = torch.arange(100) % 10
        >>> data = MaskedWindows(TextWindows(codes, codes, length=20, batch_size=2), vocab_size=10)
        >>> inputs, targets = data.draw()
        >>> (targets != -100).sum(dim=1).tolist()  # 15 % of 20
        [3, 3]
    """

    def __init__(self, windows: TextWindows, vocab_size: int, *, mask_rate: float = 0.15, seed: int = 0) -> None:
        if not 0.0 < mask_rate < 1.0:
            raise ValueError(f"mask_rate must be in (0, 1), got {mask_rate}.")
        self._windows, self._vocab_size, self._mask_rate = windows, vocab_size, mask_rate
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Batch:
        """Windows (batch_size, length) with hidden characters, and the characters; int64."""
        return self._hide(self._windows.draw()[0], self._generator)

    def evaluation(self) -> Iterator[Batch]:
        """The windows of an evaluation, each time with the same characters hidden."""
        generator = torch.Generator().manual_seed(_EVALUATION_SEED)
        for codes, _ in self._windows.evaluation():
            yield self._hide(codes, generator)

    def _hide(self, codes: Tensor, generator: torch.Generator) -> Batch:
        num_chosen = max(1, round(self._mask_rate * codes.shape[1]))
        places = torch.rand(codes.shape, generator=generator).argsort(dim=1)[:, :num_chosen]  # (B, chosen)
        found = codes.gather(1, places)
        kind = torch.rand(places.shape, generator=generator)
        random = torch.randint(self._vocab_size, places.shape, generator=generator)
        shown = torch.where(kind < REPLACED_BY_MASK + REPLACED_BY_RANDOM, random, found)
        shown = torch.where(kind < REPLACED_BY_MASK, self._vocab_size, shown)
        targets = torch.full_like(codes, IGNORED).scatter_(1, places, found)
        return codes.scatter(1, places, shown), targets

    def state_dict(self) -> dict[str, Any]:
        """The state of the windows, and the generator of what is hidden."""
        return {"windows": self._windows.state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over both."""
        self._windows.load_state_dict(state["windows"])
        self._generator.set_state(state["generator"])


def masked_language_model(
    name: str | Dataset = "tiny_shakespeare",
    model: nn.Module | None = None,
    *,
    transformer: TransformerConfig | None = None,
    aux_loss_coefs: Mapping[str, float] | None = None,
    mask_rate: float = 0.15,
    length: int = 64,
    batch_size: int = 12,
    num_eval_windows: int = 256,
    seed: int = 0,
    root: Path | str | None = None,
    download: bool = True,
) -> SupervisedTask:
    """Find hidden characters of a text from those on both sides, a task for networks that are not causal.

    Windows are those of `language_model`, what is hidden is described in `MaskedWindows`; in evaluations the same characters
    are hidden each time. The loss is the cross-entropy per hidden character in nats.

    Args:
        name: A data set of V different character codes, or its name.
        model: Network from codes (B, L), V + 1 different ones, to logits (B, L, V + 1); None: a `rlopt.nn.CharTransformer`.
        transformer: Sizes and parts of that one, not causal, with `length` as its context and `seed` as its seed; None: the
            defaults with causal=False.
        aux_loss_coefs: See `language_model`.
        mask_rate: Share of the characters that are hidden, in (0, 1) (BERT: 0.15).
        length: Characters in a window.
        batch_size: Windows in a batch.
        num_eval_windows: Windows of an evaluation.
        seed: Of weights, places, what is hidden in training, and dropout.
        root: See `rlopt.data.load`.
        download: See `rlopt.data.load`.

    Raises:
        ValueError: As `language_model`; for a causal transformer, and for a mask_rate outside (0, 1).

    References: Devlin, Chang, Lee, Toutanova, BERT, NAACL 2019, arXiv 1810.04805.

    Example:
        >>> import numpy as np
        >>> from rlopt.supervised import TrainerConfig
        >>> text = np.tile(np.arange(5, dtype=np.uint8), 40)
        >>> cycle = Dataset("cycle", text[:-1], text[1:], text[:-1], text[1:], target_names=tuple("abcde"))
        >>> task = masked_language_model(cycle, transformer=TransformerConfig(num_layers=1, width=16, causal=False), length=8)
        >>> task.trainer("adam", TrainerConfig(num_steps=1)).train()["step"]
        1
    """
    windows, data = text_windows(name, length, batch_size, num_eval_windows, seed, root, download)
    masked = MaskedWindows(windows, len(data.target_names), mask_rate=mask_rate, seed=seed)
    if model is None:
        form = replace(TransformerConfig(causal=False) if transformer is None else transformer, context=length, seed=seed)
        if form.causal:
            raise ValueError("transformer must have causal=False: a causal one does not see what follows a hidden character.")
        model = CharTransformer(CharTransformerConfig(len(data.target_names) + 1, form))
    elif transformer is not None:
        raise ValueError("transformer must be None with a model of your own: drop one of them.")
    return text_task(f"masked_language_model-{data.name}", model, masked, aux_loss_coefs)
