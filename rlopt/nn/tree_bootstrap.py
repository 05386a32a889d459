"""From a trained transformer to tree attention, group by group of layers and level by level of the trees.

Reference: Madaan, Bhojanapalli, Jain, Jain, Treeformer: dense gradient trees for efficient attention computation, ICLR 2023, arXiv
2208.09015: training is bootstrapped on two levels. How in detail is rlopt's own reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, get_args

from torch import nn

from rlopt.nn.attention import Attention
from rlopt.nn.tree_attention import TreeAttention, TreeMode

BuildTree = Callable[[nn.Module, int, TreeMode, int], TreeAttention]
"""Makes the attention for a layer: (module that holds it, height, mode, seed) to a `TreeAttention`."""


class TreeBootstrapSchedule:
    """Converts groups of layers of a trained model from exact to tree attention, one after the other, and grows their trees.

    A stage lasts `steps_per_stage` training steps. In the first, the first group gets trees of the first height, in the second they
    grow to the second height, ...; then the next group is converted, while those before keep the last height. Only the `Attention`
    is exchanged: the projections of the layer stay as they are.

    Call `step` before each training step, and add the parameters that it returns to the optimizer. After the last stage nothing
    changes any more.

    Args:
        layer_groups: Names of `Attention` submodules as in `model.named_modules()`, in the order of conversion: from the last
            layers to the first. See `find_layer_groups`.
        heights: Of the trees, increasing.
        steps_per_stage: Training steps of each stage, >= 1.
        modes: "tf" or "tc" of each group; None: "tc" for the first group, "tf" for the others.
        build: Makes the attention of a layer; see `build_tree`.
        seed: The trees get seed, seed + 1, ... in the order of conversion.

    Raises:
        ValueError: For options that do not fit together.

    Example:
        >>> from rlopt.nn.multi_head import MultiHeadAttention
        >>> from rlopt.nn.attention import SoftmaxAttention
        >>> model = nn.ModuleList(MultiHeadAttention(8, 2, SoftmaxAttention(), causal=True) for _ in range(2))
        >>> schedule = TreeBootstrapSchedule(find_layer_groups(model), heights=[1, 2], steps_per_stage=10)
        >>> new = [len(schedule.step(model)) for _ in range(40)]
        >>> [(step, count) for step, count in enumerate(new) if count]
        [(0, 4), (10, 3), (20, 2), (30, 2)]
        >>> [(layer.attention.mode, layer.attention.height) for layer in model]
        [('tf', 2), ('tc', 2)]
    """

    def __init__(
        self,
        layer_groups: Sequence[Sequence[str]],
        heights: Sequence[int],
        steps_per_stage: int,
        *,
        modes: Sequence[TreeMode] | None = None,
        build: BuildTree | None = None,
        seed: int = 0,
    ) -> None:
        names = [name for group in layer_groups for name in group]
        if not names or not all(layer_groups) or len(set(names)) < len(names):
            raise ValueError(f"layer_groups must be groups of different names, none of them empty, got {layer_groups!r}.")
        if not heights or any(a >= b for a, b in pairwise(heights)):
            raise ValueError(f"heights must be increasing and at least one, got {heights!r}.")
        if steps_per_stage < 1:
            raise ValueError(f"steps_per_stage must be >= 1, got {steps_per_stage}.")
        if modes is not None and (len(modes) != len(layer_groups) or not set(modes) <= set(get_args(TreeMode))):
            raise ValueError(f"modes must be 'tf' or 'tc' for each of {len(layer_groups)} groups, got {modes!r}.")
        self.layer_groups = [list(group) for group in layer_groups]
        self.heights, self.steps_per_stage, self.seed = list(heights), steps_per_stage, seed
        default: list[TreeMode] = ["tc" if not group else "tf" for group in range(len(layer_groups))]
        self.modes = default if modes is None else list(modes)
        self.build = build_tree if build is None else build
        self.num_steps = 0

    @property
    def num_stages(self) -> int:
        """Stages in all: groups times heights."""
        return len(self.layer_groups) * len(self.heights)

    @property
    def num_begun(self) -> int:
        """Stages that have begun."""
        return min(self.num_stages, -(-self.num_steps // self.steps_per_stage))

    def step(self, model: nn.Module) -> list[nn.Parameter]:
        """Begin the next stage if it is time, and count one training step.

        Args:
            model: Is changed in place.

        Returns:
            The new parameters: none for most steps.

        Raises:
            ValueError: If a name is not that of an `Attention` that is still to be converted.
        """
        begun = self.num_begun
        new = self._begin(model, begun) if begun < self.num_stages and self.num_steps == begun * self.steps_per_stage else []
        self.num_steps += 1
        return new

    def state_dict(self) -> dict[str, Any]:
        """The number of steps."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> None:
        """Continue from a checkpoint.

        Args:
            state: From `state_dict`.
            model: As it was before the first step. It is converted as far as it was then, so that its own state can be loaded next.
        """
        self.num_steps = state["num_steps"]
        for stage in range(self.num_begun):
            self._begin(model, stage)

    def _begin(self, model: nn.Module, stage: int) -> list[nn.Parameter]:
        group, which_height = divmod(stage, len(self.heights))
        first = sum(len(names) for names in self.layer_groups[:group])
        modules = dict(model.named_modules())
        new: list[nn.Parameter] = []
        for number, name in enumerate(self.layer_groups[group], start=first):
            old = modules.get(name)
            if which_height and isinstance(old, TreeAttention):
                new += old.set_height(self.heights[which_height])
            elif not which_height and isinstance(old, Attention) and not isinstance(old, TreeAttention):
                layer = modules[name.rpartition(".")[0]]
                tree = self.build(layer, self.heights[0], self.modes[group], self.seed + number)
                like = next(layer.parameters(), None)
                tree = tree if like is None else tree.to(like.device, like.dtype)
                model.set_submodule(name, tree.train(old.training))
                new += tree.parameters()
            else:
                wanted = "a TreeAttention of an earlier stage" if which_height else "an Attention that is not a TreeAttention yet"
                raise ValueError(f"layer_groups must name {wanted}, got {name!r}, which is {type(old).__name__}.")
        return new


def build_tree(layer: nn.Module, height: int, mode: TreeMode, seed: int) -> TreeAttention:
    """Make a `TreeAttention` with default options for a layer that has `num_heads` and `width`.

    Args:
        layer: Such as `rlopt.nn.multi_head.MultiHeadAttention`.
        height: Of the trees.
        mode: "tf" or "tc".
        seed: Of the hyperplanes.

    Raises:
        ValueError: If the layer does not tell its heads and width.
    """
    num_heads, width = getattr(layer, "num_heads", None), getattr(layer, "width", None)
    if not isinstance(num_heads, int) or not isinstance(width, int):
        raise ValueError(f"build must be given for a layer without num_heads and width, got {type(layer).__name__}.")
    return TreeAttention(num_heads, width // num_heads, height, mode, seed=seed)


def find_layer_groups(model: nn.Module, *, group_size: int = 1) -> list[list[str]]:
    """Names of the submodules of class `Attention`, from the last to the first, in groups; those that are trees are left out.

    Args:
        model: With layers in order of application.
        group_size: Layers in a group, >= 1; the group at the end may be smaller.

    Raises:
        ValueError: For a smaller group.
    """
    if group_size < 1:
        raise ValueError(f"group_size must be >= 1, got {group_size}.")
    named = [
        name for name, module in model.named_modules() if isinstance(module, Attention) and not isinstance(module, TreeAttention)
    ][::-1]
    return [named[i : i + group_size] for i in range(0, len(named), group_size)]
