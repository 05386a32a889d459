"""What every data set looks like once it is loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Arrays of a data set, with where they come from.

    The arrays keep the type of the source (pixels are uint8, characters are uint8 codes), which is four to eight times
    smaller than floats; convert batch by batch.

    Args:
        name: Name under which `rlopt.data.load` knows it.
        inputs: Examples, the first axis counts them.
        targets: One target for each example; None for data without targets.
        test_inputs: Held-out examples of the published split; None if the data have no split of their own.
        test_targets: Targets of `test_inputs`.
        feature_names: Names of the columns of a table; empty for other data.
        target_names: Meaning of target k: the class, the character, or the sentence.
        groups: Integer per example; examples of one group (one animal, one article) depend on each other. None: no groups.
        license: Licence of the data.
        source: Authors, and where the data are published.

    Example:
        >>> Dataset("pair", np.zeros((2, 3)), np.array([0, 1]))
        Dataset('pair', inputs (2, 3) float64, targets (2,) int64)
    """

    name: str
    inputs: Array
    targets: Array | None = None
    test_inputs: Array | None = None
    test_targets: Array | None = None
    feature_names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    groups: NDArray[np.int64] | None = None
    license: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        for label, inputs, targets in (
            ("targets", self.inputs, self.targets),
            ("test_targets", self.test_inputs, self.test_targets),
            ("groups", self.inputs, self.groups),
        ):
            if targets is not None and (inputs is None or len(targets) != len(inputs)):
                expected = "no inputs" if inputs is None else f"{len(inputs)} inputs"
                raise ValueError(f"{label} must have one entry for each input, got {len(targets)} for {expected}.")

    def __repr__(self) -> str:
        """Shapes instead of numbers."""
        parts = [repr(self.name)]
        for label in ("inputs", "targets", "test_inputs", "test_targets"):
            array = getattr(self, label)
            if array is not None:
                parts.append(f"{label} {array.shape} {array.dtype}")
        return f"Dataset({', '.join(parts)})"

    def split(self, test_share: float = 0.2, *, seed: int = 0) -> Dataset:
        """Hold out a random part, whole groups at a time where the examples have groups.

        With groups, groups are held out in random order as long as the part stays within `test_share` of the examples.

        Args:
            test_share: Share of the examples to hold out, in (0, 1).
            seed: Seed of the order.

        Returns:
            A data set with a test part and without groups.

        Raises:
            ValueError: If there is a test part already, or `test_share` is outside (0, 1) or leaves one part empty.

        Example:
            >>> data = Dataset("pair", np.arange(10), groups=np.arange(10) // 5).split(0.5)
            >>> sorted(data.test_inputs.tolist()) in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
            True
        """
        if self.test_inputs is not None:
            raise ValueError(
                f"split is for data without a test part, but {self.name!r} has one of {len(self.test_inputs)} examples."
            )
        if not 0.0 < test_share < 1.0:
            raise ValueError(f"test_share must be in (0, 1), got {test_share}.")
        count = len(self.inputs)
        groups = np.arange(count) if self.groups is None else self.groups
        labels, sizes = np.unique(groups, return_counts=True)
        order = np.random.default_rng(seed).permutation(len(labels))
        # Tolerance: 0.3 * 10 is a little below 3 in floating point for some shares.
        held_out = labels[order[np.cumsum(sizes[order]) <= test_share * count + 1e-9]]
        is_test = np.isin(groups, held_out)
        if not 0 < is_test.sum() < count:
            raise ValueError(f"test_share must leave examples in both parts, got {test_share} of {len(labels)} groups.")
        return dataclasses.replace(
            self,
            inputs=self.inputs[~is_test],
            targets=None if self.targets is None else self.targets[~is_test],
            test_inputs=self.inputs[is_test],
            test_targets=None if self.targets is None else self.targets[is_test],
            groups=None,
        )
