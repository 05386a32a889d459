"""Attention through decision trees: a query reads only what its tree holds near it.

References: Madaan, Bhojanapalli, Jain, Jain, Treeformer: dense gradient trees for efficient attention computation, ICLR 2023, arXiv
2208.09015 (no code was released); for the gradients of trees Karthikeyan, Jain, Natarajan, Jain, Learning accurate decision trees
with bandit feedback via quantized gradient descent, 2021, arXiv 2102.07567.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rlopt.nn import _tree_dense as dense
from rlopt.nn import _tree_sparse as sparse
from rlopt.nn._tree_routing import HyperplaneTree, StraightThrough
from rlopt.nn.attention import (
    Attention,
    AttentionState,
    append_to_cache,
    check_inputs,
    check_step,
    repeat_heads,
    widen,
)

__all__ = ["CapRule", "HyperplaneTree", "StraightThrough", "TreeAttention", "TreeMode", "suggest_height"]

TreeMode = Literal["tf", "tc"]
CapRule = Literal["recent", "norm"]


class TreeAttention(Attention):
    """Attention to the keys that a decision tree puts together with the query.

    Each head has a complete binary tree of hyperplanes, which sends queries and keys alike to one of 2^height leaves. With N_l(q)
    the keys that share the node of q at level l (level 0: all, level height: the leaf):

        "tf" (fine):   out = sum over j in N_height(q) of softmax_j(scale * <q, k_j>) v_j
        "tc" (coarse): out = sum over levels l of alpha_l * mean of v_j over j in N_l(q),  alpha = softmax of learned logits

    From the paper's abstract come these two kinds, the tree for queries and keys, and training layer by layer
    (`rlopt.nn.tree_bootstrap`); no code was published. What else is said here is a design of rlopt's own that agrees with it:

    * In "tf", a query whose leaf holds no visible key reads from the deepest ancestor that does. With `is_causal`, query i always
      sees key i, too. `leaf_cap` bounds the keys that a query reads, to leaf_cap + 1.
    * In "tc", levels without a visible key are left out and the other alphas add up to 1. No product of query and key is taken, so
      `scale` has no meaning.
    * Gradients of the tree: see `StraightThrough`. In "tf" they come as if the numerator of a pair had the factor <M(q_i), M(k_j)>
      of one-hot leaves; in "tc" from the sums and means, written with one-hot nodes.

    Two ways of computing give the same up to rounding. With gradients for the tree, masks over all pairs are used: O(L S). Else
    (no gradient needed, or `gradient=None`) keys are sorted by leaf and only pairs of one node are computed.

    Args:
        num_heads: H.
        head_dim: D, of queries and keys.
        height: Of the trees, in [0, 20]; 0: "tf" is exact attention, "tc" the mean of all values. See `suggest_height`.
        mode: "tf" or "tc".
        leaf_cap: Most keys that a query reads, >= 1; None: all in its leaf. "tf" only. (A recommendation for long contexts: 64.)
        cap_rule: Which keys stay: "recent", the last ones; "norm", those with the largest norm, the first of equal ones (not with
            `is_causal`, where a late key could push out an early one). None: "recent". Only with `leaf_cap`.
        shared_tree: Whether all heads use one tree.
        gradient: How the tree learns; None: not at all, and training uses the sparse form as well.
        seed: Of the hyperplanes, >= 0; give layers different ones.

    Parameters: `tree.hyperplanes[l]` (H or 1, 2^l, D) from N(0, 1 / D), `tree.biases[l]` (H or 1, 2^l), zeros; for "tc"
    `level_logits[l]` (H,), zeros.

    Raises:
        ValueError: For options outside their range, and for options without effect in this mode.

    Example:
        >>> x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
        >>> out, stats = TreeAttention(2, 4, height=1)(x, x, x, is_causal=True, return_stats=True)
        >>> out.shape, stats["leaf_counts"].sum(-1).tolist()
        (torch.Size([1, 2, 5, 4]), [[5, 5]])
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        height: int,
        mode: TreeMode = "tf",
        *,
        leaf_cap: int | None = None,
        cap_rule: CapRule | None = None,
        shared_tree: bool = False,
        gradient: StraightThrough | None = StraightThrough(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or head_dim < 1:
            raise ValueError(f"num_heads and head_dim must be >= 1, got {num_heads} and {head_dim}.")
        if mode not in get_args(TreeMode):
            raise ValueError(f"mode must be 'tf' or 'tc', got {mode!r}.")
        if leaf_cap is not None and (mode == "tc" or leaf_cap < 1):
            raise ValueError(f"leaf_cap must be None or >= 1, and None with mode 'tc', got {leaf_cap} with mode {mode!r}.")
        if cap_rule is not None and (leaf_cap is None or cap_rule not in get_args(CapRule)):
            raise ValueError(
                f"cap_rule must be None, or with leaf_cap 'recent' or 'norm', got {cap_rule!r} with leaf_cap {leaf_cap}."
            )
        if mode == "tc" and gradient is not None and gradient.pairs != "kept":
            raise ValueError(f"gradient.pairs must be 'kept' with mode 'tc', which has no pairs, got {gradient.pairs!r}.")
        self.num_heads, self.head_dim, self.mode = num_heads, head_dim, mode
        self.leaf_cap, self.cap_rule, self.gradient = leaf_cap, cap_rule, gradient
        self.tree = HyperplaneTree(1 if shared_tree else num_heads, head_dim, height, seed=seed)
        if mode == "tc":
            self.level_logits = nn.ParameterList(nn.Parameter(torch.zeros(num_heads)) for _ in range(height + 1))

    @property
    def height(self) -> int:
        """Height of the trees."""
        return self.tree.height

    def set_height(self, height: int) -> list[nn.Parameter]:
        """Make the trees taller or lower, keeping the nodes that are in both.

        New nodes are drawn as in the constructor; the logit of a new level is the mean of those there are. States of `step` belong
        to one height: make new ones.

        Args:
            height: In [0, 20].

        Returns:
            The new parameters, for the optimizer: `optimizer.add_param_group({"params": new})`. Others stay the same objects.

        Raises:
            ValueError: If the height is out of range.

        Example:
            >>> attention = TreeAttention(2, 4, height=1)
            >>> [tuple(p.shape) for p in attention.set_height(2)]
            [(2, 2, 4), (2, 2)]
        """
        new = self.tree.set_height(height)
        if self.mode == "tc":
            logits = list(self.level_logits)[: height + 1]
            mean = torch.stack([p.detach() for p in logits]).mean(dim=0)
            added = [nn.Parameter(mean.clone()) for _ in range(height + 1 - len(logits))]
            self.level_logits = nn.ParameterList(logits + added)
            new += added
        self.train(self.training)  # new lists are modules
        return new

    def extra_repr(self) -> str:
        """The options."""
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}, height={self.height}, mode={self.mode!r}"

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
        key_padding_mask: Tensor | None = None,
        return_stats: bool = False,
    ) -> Any:
        """Attend; arguments as in `rlopt.nn.attention.Attention`.

        Returns:
            (B, H, L, Dv), dtype of the query. With `return_stats` also a dictionary: "leaf_counts" (B, H, 2^height), the real keys
            in each leaf; "empty_leaf_rate", of queries whose leaf holds no visible key; "flops" of the sparse form, counted for
            these queries and keys: 2 (L + S) height D per head to find leaves, and in "tf" 2 (D + Dv) for every pair that is read,
            in "tc" (L + S) (height + 1) Dv per head; "dense_flops", 2 (D + Dv) for every visible pair; "flops_ratio", dense_flops /
            flops.

        Raises:
            NotImplementedError: For `attn_mask` and `dropout_p`.
            ValueError: If shapes do not fit, or `is_causal` meets cap_rule "norm".
        """
        if attn_mask is not None:
            raise NotImplementedError("TreeAttention takes no attn_mask: use is_causal and key_padding_mask.")
        if dropout_p > 0.0:
            raise NotImplementedError(f"TreeAttention has no dropout of attention weights: dropout_p must be 0, got {dropout_p}.")
        check_inputs(query, key, value, attn_mask, is_causal, key_padding_mask)
        self._check_heads(query)
        if is_causal:
            self._check_causal()
        key, value = repeat_heads(query, key, value, enable_gqa=enable_gqa)
        scale = 1.0 / math.sqrt(self.head_dim) if scale is None else scale
        valid = key_padding_mask
        if valid is None:
            valid = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool, device=key.device)
        with torch.autocast(query.device.type, enabled=False):
            q, k, v = widen(query), widen(key), widen(value)
            leaves = self.tree.leaves(q), self.tree.leaves(k)
            if not (query.shape[2] and key.shape[2]):
                out = v.new_zeros(*q.shape[:-1], v.shape[-1])
            elif self.gradient is not None and self._needs_gradient(q, k, v):
                out = self._attend_dense(q, k, v, leaves, valid, is_causal, scale, self.gradient)
            else:
                out = self._attend_sparse(q, k, v, leaves, valid, is_causal, scale)
            out = out.to(query.dtype)
            return (out, self._count(k, v.shape[-1], leaves, valid, is_causal)) if return_stats else out

    def _attend_dense(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        leaves: tuple[Tensor, Tensor],
        valid: Tensor,
        causal: bool,
        scale: float,
        gradient: StraightThrough,
    ) -> Tensor:
        of_query = self.tree.memberships(query, leaves[0], gradient)
        of_key = self.tree.memberships(key, leaves[1], gradient)
        if self.mode == "tc":
            logits = torch.stack(list(self.level_logits), dim=-1).to(value.dtype)
            return dense.attend_path(value, valid=valid, causal=causal, logits=logits, members=(of_query, of_key))
        visible = dense.visible_pairs(query.shape[2], valid, causal=causal)
        kept = dense.kept_pairs(*leaves, visible)
        if self.leaf_cap is not None:
            kept = dense.cap_pairs(kept, self.leaf_cap, self._rank(key))
        if causal:
            kept = kept | (visible & torch.eye(*kept.shape[-2:], dtype=torch.bool, device=kept.device))
        last = of_query[-1], of_key[-1]
        return dense.attend_leaf(query, key, value, kept=kept, visible=visible, scale=scale, members=last, pairs=gradient.pairs)

    def _attend_sparse(
        self, query: Tensor, key: Tensor, value: Tensor, leaves: tuple[Tensor, Tensor], valid: Tensor, causal: bool, scale: float
    ) -> Tensor:
        valid = valid.repeat_interleave(self.num_heads, dim=0)  # (B * H, S)
        leaf_query, leaf_key = (x.flatten(0, 1) for x in leaves)  # (B, H, L) -> (B * H, L)
        if self.mode == "tc":
            logits = torch.stack(list(self.level_logits), dim=-1).to(value.dtype).repeat(len(value), 1)  # (B * H, height + 1)
            out = sparse.attend_path(
                value.flatten(0, 1), leaf_query, leaf_key, self.height, valid=valid, causal=causal, logits=logits
            )
        else:
            rank = self._rank(key)
            out = sparse.attend_leaf(
                query.flatten(0, 1),
                key.flatten(0, 1),
                value.flatten(0, 1),
                leaf_query,
                leaf_key,
                self.height,
                valid=valid,
                causal=causal,
                cap=self.leaf_cap,
                rank=None if rank is None else rank.flatten(0, 1),
                scale=scale,
            )
        return out.view(*query.shape[:-1], -1)  # (B * H, L, Dv) -> (B, H, L, Dv)

    @torch.no_grad()
    def _count(self, key: Tensor, value_dim: int, leaves: tuple[Tensor, Tensor], valid: Tensor, causal: bool) -> dict[str, Tensor]:
        num_queries, num_keys = leaves[0].shape[-1], leaves[1].shape[-1]
        counts = torch.zeros(*leaves[1].shape[:2], 2**self.height, dtype=torch.long, device=valid.device)
        counts = counts.scatter_add(-1, leaves[1], valid.unsqueeze(1).expand_as(leaves[1]).long())
        seen = valid.sum(dim=-1, keepdim=True).expand(-1, num_queries)
        if causal and num_keys:
            seen = valid.cumsum(dim=-1)[:, torch.arange(num_queries, device=valid.device).clamp(max=num_keys - 1)]
        dense_flops = 2.0 * (self.head_dim + value_dim) * self.num_heads * seen.sum().double()
        num_rows = leaves[0].shape[0] * self.num_heads
        flops = torch.zeros_like(dense_flops) + 2.0 * num_rows * (num_queries + num_keys) * self.height * self.head_dim
        num_pairs, reads_leaf = torch.zeros_like(dense_flops), 0
        if num_queries and num_keys:
            rank = self._rank(key)
            found = sparse.find_routes(
                leaves[0].flatten(0, 1),
                leaves[1].flatten(0, 1),
                self.height,
                valid=valid.repeat_interleave(self.num_heads, dim=0),
                causal=causal,
                cap=self.leaf_cap,
                rank=None if rank is None else rank.flatten(0, 1),
            )
            for above_leaves, routes in enumerate(found):
                num_pairs += (routes.end - routes.start).sum() + routes.itself.sum()
                reads_leaf = len(routes.query) if not above_leaves else reads_leaf
        if self.mode == "tc":
            flops += num_rows * (num_queries + num_keys) * (self.height + 1) * value_dim
        else:
            flops += 2.0 * (self.head_dim + value_dim) * num_pairs
        return {
            "leaf_counts": counts,
            "empty_leaf_rate": torch.ones_like(flops) - reads_leaf / max(1, leaves[0].numel()),
            "flops": flops,
            "dense_flops": dense_flops,
            "flops_ratio": dense_flops / flops.clamp(min=1.0),
        }

    def _rank(self, key: Tensor) -> Tensor | None:
        """Places of keys (B, H, S) in the order in which they stay under the cap; None: by position, from the last one."""
        if self.cap_rule != "norm":
            return None
        order = key.detach().square().sum(dim=-1).argsort(dim=-1, descending=True, stable=True)
        return order.argsort(dim=-1)

    def _needs_gradient(self, *inputs: Tensor) -> bool:
        return torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *self.parameters()))

    def _check_causal(self) -> None:
        if self.cap_rule == "norm":
            raise ValueError("cap_rule must be 'recent' in causal attention, got 'norm': a late key could push out an early one.")

    def _check_heads(self, query: Tensor) -> None:
        if query.shape[1] != self.num_heads or query.shape[-1] != self.head_dim:
            raise ValueError(
                f"query must have {self.num_heads} heads of width {self.head_dim} as the trees do, got {tuple(query.shape)}."
            )

    def init_state(
        self,
        batch_size: int,
        *,
        num_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        context: int,
        device: Any = None,
        dtype: Any = None,
    ) -> AttentionState:
        """Make the state before the first token.

        "tf": the last `context` tokens: "key", "value", "leaf" and "valid". "tc": "sums" (B, H, N, Dv) of values and "counts"
        (B, H, N) for all N = 2^(height + 1) - 1 nodes, in float32 at least; nothing is forgotten, `context` has no meaning. As keys
        and values do, leaves stay those of the parameters with which they were computed; make new states after `set_height`.

        Raises:
            ValueError: If heads or width do not fit the trees, or a number is < 1.
        """
        if min(batch_size, num_heads, context) < 1:
            raise ValueError(f"batch_size, num_heads and context must be >= 1, got {batch_size}, {num_heads} and {context}.")
        if self.num_heads % num_heads or head_dim != self.head_dim:
            raise ValueError(
                f"num_heads must divide {self.num_heads} and head_dim be {self.head_dim} as the trees do, "
                f"got {num_heads} and {head_dim}."
            )
        num_heads = self.num_heads  # leaves differ between heads that share keys
        value_dim = head_dim if value_dim is None else value_dim
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if self.mode == "tc":
            wide = torch.promote_types(dtype, torch.float32)
            num_nodes = 2 ** (self.height + 1) - 1
            return {
                "sums": torch.zeros(batch_size, num_heads, num_nodes, value_dim, device=device, dtype=wide),
                "counts": torch.zeros(batch_size, num_heads, num_nodes, device=device, dtype=wide),
            }
        return {
            "key": torch.zeros(batch_size, num_heads, context, head_dim, device=device, dtype=dtype),
            "value": torch.zeros(batch_size, num_heads, context, value_dim, device=device, dtype=dtype),
            "leaf": torch.zeros(batch_size, num_heads, context, device=device, dtype=torch.long),
            "valid": torch.zeros(batch_size, context, device=device, dtype=torch.bool),
        }

    def step(
        self, query: Tensor, key: Tensor, value: Tensor, state: AttentionState, *, scale: float | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Attend with one new token; see `rlopt.nn.attention.Attention.step`.

        Values, keys and queries get gradients, the trees do not. "tf" compares leaves with all tokens that are remembered, and
        computes scores of leaf_cap + 1 of them, or without a cap of all.

        Raises:
            ValueError: If shapes do not fit, for cap_rule "norm", and in "tc" for a state of another height.
        """
        check_step(query, key, value)
        check_inputs(query, key, value, None, False, None)
        self._check_heads(query)
        self._check_causal()
        key, value = repeat_heads(query, key, value, enable_gqa=True)
        with torch.autocast(query.device.type, enabled=False):
            leaf_query, leaf_key = self.tree.leaves(widen(query)), self.tree.leaves(widen(key))  # (B, H, 1)
            if self.mode == "tc":
                out, state = self._step_path(leaf_query, leaf_key, value, state)
            else:
                scale = 1.0 / math.sqrt(self.head_dim) if scale is None else scale
                out, state = self._step_leaf(widen(query), key, value, leaf_query, leaf_key, state, scale)
            return out.to(query.dtype), state

    def _step_leaf(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        leaf_query: Tensor,
        leaf_key: Tensor,
        state: AttentionState,
        scale: float,
    ) -> tuple[Tensor, AttentionState]:
        leaf = torch.cat([state["leaf"][:, :, 1:].long(), leaf_key], dim=2)  # (B, H, C)
        state = {**append_to_cache(key, value, state), "leaf": leaf}
        keys, values = state["key"].to(query.dtype), state["value"].to(query.dtype)
        kept = dense.kept_pairs(leaf_query, leaf, state["valid"].bool()[:, None, None, :])  # (B, H, 1, C)
        if self.leaf_cap is not None:
            kept = dense.cap_pairs(kept, self.leaf_cap, None)
        kept = torch.cat([kept[..., :-1], torch.ones_like(kept[..., -1:])], dim=-1)  # always itself
        if self.leaf_cap is not None and self.leaf_cap + 1 < kept.shape[-1]:
            mask, chosen = kept.squeeze(2).to(torch.uint8).topk(self.leaf_cap + 1, dim=-1)  # (B, H, leaf_cap + 1)
            kept = mask.bool().unsqueeze(2)
            keys, values = (x.gather(2, chosen.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])) for x in (keys, values))
        scores = scale * query @ keys.transpose(-2, -1)  # (B, H, 1, C)
        return dense.masked_softmax(scores, kept) @ values, state

    def _step_path(
        self, leaf_query: Tensor, leaf_key: Tensor, value: Tensor, state: AttentionState
    ) -> tuple[Tensor, AttentionState]:
        sums, counts = state["sums"], state["counts"]
        if counts.shape[-1] != 2 ** (self.height + 1) - 1:
            raise ValueError(
                f"state must belong to height {self.height}, got one of {counts.shape[-1]} nodes: make a new one with init_state."
            )
        levels = torch.arange(self.height + 1, device=value.device)
        of_query, of_key = (
            (leaf >> (self.height - levels)) + 2**levels - 1 for leaf in (leaf_query, leaf_key)
        )  # (B, H, height + 1)
        wide = (-1, -1, -1, value.shape[-1])
        sums = sums.scatter_add(2, of_key.unsqueeze(-1).expand(wide), value.to(sums.dtype).expand(-1, -1, self.height + 1, -1))
        counts = counts.scatter_add(2, of_key, torch.ones_like(of_key, dtype=counts.dtype))
        count = counts.gather(2, of_query)  # (B, H, height + 1)
        means = sums.gather(2, of_query.unsqueeze(-1).expand(wide)) / count.clamp(min=1.0).unsqueeze(-1)
        logits = torch.stack(list(self.level_logits), dim=-1).to(sums.dtype)
        alpha = dense.masked_softmax(logits.expand(count.shape), count > 0)
        return alpha.unsqueeze(2) @ means, {"sums": sums, "counts": counts}


def suggest_height(length: int, *, leaf_size: int = 32) -> int:
    """Height at which a balanced tree has about `leaf_size` keys in each leaf, at least 1 (a rule of thumb of rlopt's own).

    Args:
        length: Keys, >= 1.
        leaf_size: Keys in a leaf, >= 1.

    Example:
        >>> suggest_height(16384)
        9
    """
    return max(1, int(math.log2(max(length, 1) / leaf_size))) if length > leaf_size else 1
