"""Associative recall: sequences of any length in which what matters lies far behind, with a known best score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlopt.nn import CharTransformer, CharTransformerConfig, TransformerConfig
from rlopt.supervised.batches import Batch
from rlopt.supervised.losses import IGNORED, token_cross_entropy
from rlopt.supervised.tasks import SupervisedTask


@dataclass(frozen=True)
class RecallConfig:
    """Form of the sequences of `RecallData`."""

    length: int = 256
    """Tokens of a sequence, >= pairs and queries together."""
    num_pairs: int = 8
    """Pairs of a key and a value in a sequence, >= 1; their keys differ."""
    num_queries: int = 4
    """Keys that are asked for at the end, in [1, num_pairs]; they differ."""
    num_keys: int = 16
    """Different keys, >= num_pairs."""
    num_values: int = 8
    """Different values, >= 2."""
    adjacent: bool = False
    """Whether a pair is two tokens, key and value, instead of one. A model then must first join neighbours, which takes two layers
    of attention or a convolution; with one token for a pair a single layer is enough."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.num_pairs < 1:
            raise ValueError(f"num_pairs must be >= 1, got {self.num_pairs}.")
        if not 1 <= self.num_queries <= self.num_pairs:
            raise ValueError(f"num_queries must be in [1, num_pairs = {self.num_pairs}], got {self.num_queries}.")
        if self.num_keys < self.num_pairs:
            raise ValueError(f"num_keys must be >= num_pairs = {self.num_pairs}, whose keys differ, got {self.num_keys}.")
        if self.num_values < 2:
            raise ValueError(f"num_values must be >= 2, got {self.num_values}.")
        shortest = self.num_pairs * self.pair_size + self.num_queries
        if self.length < shortest:
            raise ValueError(f"length must be >= {shortest}, the tokens of pairs and queries, got {self.length}.")

    @property
    def pair_size(self) -> int:
        """Tokens of a pair."""
        return 2 if self.adjacent else 1

    @property
    def vocab_size(self) -> int:
        """Different tokens: the filler 0, keys from 1 on, then values, or pairs (key by key) where one token is a pair."""
        return 1 + self.num_keys + self.num_values * (1 if self.adjacent else self.num_keys)

    @property
    def chance(self) -> float:
        """Accuracy of the best guess without memory: 1 / num_values. With memory it is 1."""
        return 1.0 / self.num_values


class RecallData:
    """Random sequences: pairs of keys and values spread over filler, then keys; the target of each of these is its value.

        . . (k3 v1) . . . . (k7 v4) . (k1 v1) . . . .  k7 k3
                                                        v4 v1   (targets)

    Keys of a sequence differ, values are independent and uniform, places of the pairs are uniform. Whoever remembers the pairs is
    always right; whoever does not is right with probability 1 / num_values, whatever else it does. Targets are numbers of values,
    0 to num_values - 1, so that logits need one column for each; all other positions have the target `IGNORED`.

    Every training batch is new. Evaluations take `num_eval_rows` sequences drawn once, from a generator of their own that depends
    on `config` alone in what it draws, so that runs with different seeds are evaluated on the same sequences.

    Args:
        config: Form of the sequences.
        batch_size: Sequences of a batch, >= 1.
        num_eval_rows: Sequences of an evaluation, >= 1.
        eval_batch_size: Sequences of a batch in evaluations, >= 1; None: batch_size.
        seed: Of the training sequences.

    Raises:
        ValueError: For numbers out of range.

    References: the task goes back to Ba et al., Using fast weights to attend to the recent past, NeurIPS 2016, arXiv 1610.06258;
    with several queries Arora et al., Zoology: measuring and improving recall in efficient language models, ICLR 2024, arXiv
    2312.04927. Layout and filler are rlopt's own.

    Example:
        >>> data = RecallData(RecallConfig(length=12, num_pairs=3, num_queries=1), batch_size=2)
        >>> tokens, targets = data.draw()
        >>> tokens.shape, (targets != IGNORED).sum(1).tolist()
        (torch.Size([2, 12]), [1, 1])
    """

    def __init__(
        self,
        config: RecallConfig,
        *,
        batch_size: int,
        num_eval_rows: int = 256,
        eval_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        for name, value in (("batch_size", batch_size), ("num_eval_rows", num_eval_rows), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}.")
        self.config, self.batch_size, self._eval_batch_size = config, batch_size, eval_batch_size
        self._generator = torch.Generator().manual_seed(seed)
        # Far from the seeds that people take, so that no training sequence is one of the evaluation.
        self._eval_rows = draw_sequences(config, num_eval_rows, torch.Generator().manual_seed(2**40 + 1))

    def draw(self) -> Batch:
        """New sequences (batch_size, length) and their targets, int64."""
        return draw_sequences(self.config, self.batch_size, self._generator)

    def evaluation(self) -> Iterator[Batch]:
        """The sequences of evaluations."""
        tokens, targets = self._eval_rows
        for start in range(0, len(tokens), self._eval_batch_size):
            rows = slice(start, start + self._eval_batch_size)
            yield tokens[rows], targets[rows]

    def state_dict(self) -> dict[str, Any]:
        """The generator of training sequences."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a generator of training sequences."""
        self._generator.set_state(state["generator"])


def draw_sequences(config: RecallConfig, num_rows: int, generator: torch.Generator) -> Batch:
    """Draw sequences and targets, (num_rows, length) each; see `RecallData`.

    Args:
        config: Form of the sequences.
        num_rows: Sequences.
        generator: Source of randomness, on the CPU.
    """
    pairs, queries, size = config.num_pairs, config.num_queries, config.pair_size
    keys = _distinct(num_rows, config.num_keys, pairs, generator)
    values = torch.randint(config.num_values, (num_rows, pairs), generator=generator)
    # Where pairs are two tokens: places among filler of which each pair takes one, then room for the second token.
    num_places = config.length - queries - pairs * (size - 1)
    places = _distinct(num_rows, num_places, pairs, generator).sort(-1).values + torch.arange(pairs) * (size - 1)
    asked = _distinct(num_rows, pairs, queries, generator)
    tokens = torch.zeros(num_rows, config.length, dtype=torch.long)
    if config.adjacent:
        tokens.scatter_(1, places, 1 + keys).scatter_(1, places + 1, 1 + config.num_keys + values)
    else:
        tokens.scatter_(1, places, 1 + config.num_keys + keys * config.num_values + values)
    tokens[:, -queries:] = 1 + keys.gather(1, asked)
    targets = torch.full_like(tokens, IGNORED)
    targets[:, -queries:] = values.gather(1, asked)
    return tokens, targets


def associative_recall(
    config: RecallConfig | None = None,
    transformer: TransformerConfig | None = None,
    *,
    batch_size: int = 8,
    num_eval_rows: int = 256,
    seed: int = 0,
) -> SupervisedTask:
    """Learn to recall the values of keys, with a `rlopt.nn.CharTransformer`.

    The loss is the cross-entropy of the asked values in nats; evaluations also have "accuracy".

    Args:
        config: Form of the sequences; None: the defaults.
        transformer: Sizes and parts of the model, with the length of sequences as its context and `seed` as its seed; None: the
            defaults.
        batch_size: Sequences of a batch.
        num_eval_rows: Sequences of an evaluation.
        seed: Of weights and training sequences.

    Example:
        >>> from rlopt.supervised import TrainerConfig
        >>> form = TransformerConfig(width=16, num_layers=1, num_heads=2)
        >>> task = associative_recall(RecallConfig(length=20), form, num_eval_rows=2)
        >>> sorted(task.trainer("adam", TrainerConfig(num_steps=1)).train())
        ['accuracy', 'loss', 'step']
    """
    config = RecallConfig() if config is None else config
    form = replace(TransformerConfig() if transformer is None else transformer, context=config.length, seed=seed)
    model = CharTransformer(CharTransformerConfig(config.vocab_size, form))
    data = RecallData(config, batch_size=batch_size, num_eval_rows=num_eval_rows, seed=seed)
    return SupervisedTask("associative_recall", model, token_cross_entropy, data, {"accuracy": recall_accuracy})


def recall_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of the asked values that have the largest logit.

    Args:
        logits: (B, L, num_values or more).
        targets: (B, L) of `RecallData`.

    Example:
        >>> logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
        >>> recall_accuracy(logits, torch.tensor([[IGNORED, 0, 1]])).item()
        0.5
    """
    asked = targets != IGNORED
    return (logits.argmax(-1) == targets)[asked].float().mean()


def _distinct(num_rows: int, num_choices: int, num_drawn: int, generator: torch.Generator) -> Tensor:
    """Different numbers below num_choices in random order, (num_rows, num_drawn)."""
    return torch.rand(num_rows, num_choices, generator=generator).argsort(-1)[:, :num_drawn]
