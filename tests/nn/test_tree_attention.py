"""Tree attention against a twin of plain loops, torch's attention, and derivatives worked out by hand."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlopt.nn._tree_dense import kept_pairs
from rlopt.nn.tree_attention import StraightThrough, TreeAttention, suggest_height

SHAPES = [(7, 7), (4, 9), (9, 4)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(num_queries: int = 7, num_keys: int = 7, *, batch: int = 2, heads: int = 3, dtype: torch.dtype = torch.float32) -> Any:
    return (
        draw(batch, heads, num_queries, 4, seed=1, dtype=dtype),
        draw(batch, heads, num_keys, 4, seed=2, dtype=dtype),
        draw(batch, heads, num_keys, 5, seed=3, dtype=dtype),
    )


def padding(batch: int, num_keys: int) -> Tensor:
    valid = torch.rand(batch, num_keys, generator=torch.Generator().manual_seed(4)) > 0.3
    valid[0, 0] = False
    return valid


def path_of(attention: TreeAttention, head: int, x: Tensor) -> list[int]:
    """Node at every level, by the definition of a tree."""
    node, nodes = 0, [0]
    for weight, bias in zip(attention.tree.hyperplanes, attention.tree.biases, strict=True):
        tree = min(head, len(weight) - 1)
        node = 2 * node + (0 if float(weight[tree, node] @ x + bias[tree, node]) >= 0 else 1)
        nodes.append(node)
    return nodes


@torch.no_grad()
def twin(attention: TreeAttention, query: Tensor, key: Tensor, value: Tensor, valid: Tensor, *, causal: bool) -> Any:
    """Outputs, pairs that are read, and queries with an empty leaf, query by query."""
    out = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=query.dtype)
    num_pairs = num_empty = 0
    for b, h in product(range(query.shape[0]), range(query.shape[1])):
        paths = [path_of(attention, h, x) for x in key[b, h]]
        for i, q in enumerate(query[b, h]):
            path = path_of(attention, h, q)
            visible = [j for j in range(len(paths)) if valid[b, j] and (j <= i or not causal)]
            of_level = [[j for j in visible if paths[j][level] == path[level]] for level in range(len(path))]
            num_empty += not of_level[-1]
            if attention.mode == "tc":
                used = [(level, keys) for level, keys in enumerate(of_level) if keys]
                if used:
                    alpha = torch.stack([attention.level_logits[level][h] for level, _ in used]).softmax(0)
                    out[b, h, i] = sum(a * value[b, h, keys].mean(0) for a, (_, keys) in zip(alpha, used, strict=True))
                continue
            read = next((keys for keys in reversed(of_level) if keys), [])
            if attention.leaf_cap is not None and attention.cap_rule == "norm":
                read = sorted(read, key=lambda j: (-float(key[b, h, j].square().sum()), j))[: attention.leaf_cap]
            elif attention.leaf_cap is not None:
                read = read[-attention.leaf_cap :]
            if causal and i in visible and i not in read:
                read = [*read, i]
            num_pairs += len(read)
            if read:
                out[b, h, i] = (key[b, h, read] @ q / 2.0).softmax(0) @ value[b, h, read]  # sqrt(D) = 2
    return out, num_pairs, num_empty


def make(height: int = 3, mode: Any = "tf", **options: Any) -> TreeAttention:
    attention = TreeAttention(3, 4, height, mode, **options)
    with torch.no_grad():
        for level, bias in enumerate(attention.tree.biases):
            bias.copy_(0.3 * draw(*bias.shape, seed=10 + level))
        for level, logit in enumerate(attention.level_logits if mode == "tc" else []):
            logit.copy_(draw(3, seed=20 + level))
    return attention


KINDS: list[tuple[Any, dict[str, Any], bool]] = [
    ("tf", {}, False),
    ("tf", {}, True),
    ("tf", {"leaf_cap": 2}, False),
    ("tf", {"leaf_cap": 2}, True),
    ("tf", {"leaf_cap": 2, "cap_rule": "norm"}, False),
    ("tf", {"shared_tree": True}, True),
    ("tc", {}, False),
    ("tc", {}, True),
]


@pytest.mark.parametrize(("mode", "options", "causal"), KINDS)
@pytest.mark.parametrize("lengths", SHAPES)
@pytest.mark.parametrize("height", [0, 1, 3])
def test_both_forms_equal_the_twin(mode: Any, options: Any, causal: bool, lengths: tuple[int, int], height: int) -> None:
    attention = make(height, mode, **options)
    query, key, value = inputs(*lengths)
    valid = padding(2, lengths[1])
    expected, num_pairs, num_empty = twin(attention, query, key, value, valid, causal=causal)
    dense, stats = attention(query, key, value.requires_grad_(), is_causal=causal, key_padding_mask=valid, return_stats=True)
    assert dense.requires_grad
    with torch.no_grad():
        sparse = attention(query, key, value, is_causal=causal, key_padding_mask=valid)
    torch.testing.assert_close(dense.detach(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(sparse, expected, atol=1e-6, rtol=1e-5)

    num_rows = 2 * 3 * sum(lengths)  # B * H * (L + S)
    flops = 2 * num_rows * height * 4 + (18 * num_pairs if mode == "tf" else num_rows * (height + 1) * 5)  # 2 (D + Dv) = 18
    num_visible = sum(bool(valid[b, j]) and (j <= i or not causal) for b in (0, 1) for i, j in product(*map(range, lengths)))
    assert stats["flops"].item() == flops
    assert stats["dense_flops"].item() == 18 * 3 * num_visible
    assert stats["flops_ratio"].item() == pytest.approx(18 * 3 * num_visible / flops)
    assert stats["empty_leaf_rate"].item() == pytest.approx(num_empty / (2 * 3 * lengths[0]))
    assert torch.equal(stats["leaf_counts"].sum(-1), valid.sum(-1, keepdim=True).expand(-1, 3))


@pytest.mark.parametrize("mode", ["tf", "tc"])
@pytest.mark.parametrize("causal", [False, True])
def test_sparse_form_equals_dense_form_over_many_tiles(mode: Any, causal: bool) -> None:
    attention = TreeAttention(2, 8, 3, mode, seed=5)
    query, key, value = (draw(3, 2, 700, 8, seed=seed) for seed in (1, 2, 3))
    dense = attention(query, key, value, is_causal=causal).detach()
    with torch.no_grad():
        torch.testing.assert_close(attention(query, key, value, is_causal=causal), dense, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_height_zero_is_exact_attention_or_the_mean(causal: bool, needs_grad: bool) -> None:
    query, key, value = inputs()
    value.requires_grad_(needs_grad)
    exact = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    torch.testing.assert_close(TreeAttention(3, 4, 0)(query, key, value, is_causal=causal), exact, atol=1e-6, rtol=1e-5)
    means = value.cumsum(2) / torch.arange(1, 8).view(-1, 1) if causal else value.mean(2, keepdim=True).expand(-1, -1, 7, -1)
    with torch.set_grad_enabled(needs_grad):
        coarse = TreeAttention(3, 4, 0, "tc")(query, key, value, is_causal=causal)
    torch.testing.assert_close(coarse, means, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("height", [1, 4])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_tree_that_sends_all_to_one_leaf_is_exact_attention(causal: bool, height: int, needs_grad: bool) -> None:
    attention = TreeAttention(3, 4, height)
    for weight, bias in zip(attention.tree.hyperplanes, attention.tree.biases, strict=True):
        nn.init.zeros_(weight)
        nn.init.ones_(bias)
    query, key, value = inputs()
    with torch.set_grad_enabled(needs_grad):
        out = attention(query, key, value, is_causal=causal, scale=0.7)
    exact = F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=0.7)
    torch.testing.assert_close(out, exact, atol=1e-6, rtol=1e-5)


def path_matrix(height: int) -> Tensor:
    """(2^h, 2^h - 1): 1 where the leaf lies left of the node, -1 right, 0 elsewhere."""
    matrix = torch.zeros(2**height, 2**height - 1)
    for leaf in range(2**height):
        node = 0
        for level in range(height):
            bit = leaf >> (height - 1 - level) & 1
            matrix[leaf, node] = 1.0 - 2.0 * bit
            node = 2 * node + 1 + bit
    return matrix


def test_descent_takes_the_leaf_with_the_largest_sum_of_signs() -> None:
    height = 4
    tree = TreeAttention(1, 6, height, seed=3).tree
    x = draw(1, 1, 1000, 6)
    weight = torch.cat([w[0] for w in tree.hyperplanes])
    score = torch.where(x[0, 0] @ weight.T >= 0, 1.0, -1.0) @ path_matrix(height).T  # (1000, 2^h)
    best, second = score.topk(2, dim=-1).values.unbind(-1)
    assert torch.equal(tree.leaves(x)[0, 0], score.argmax(-1))
    assert bool((best == height).all())
    assert bool((second <= height - 2).all())


@pytest.mark.parametrize("sign", ["clipped", "triangular"])
@pytest.mark.parametrize("leaf", ["identity", "softmax"])
def test_gradient_of_leaves_is_that_of_the_path_matrix(sign: Any, leaf: Any) -> None:
    height = 3
    tree = TreeAttention(1, 6, height, seed=3).tree
    x = draw(1, 1, 50, 6).requires_grad_()
    one_hot = tree.memberships(x, tree.leaves(x), StraightThrough(sign=sign, leaf=leaf))[-1]
    assert torch.equal(one_hot.detach()[0, 0], F.one_hot(tree.leaves(x)[0, 0], 8).float())
    upstream = draw(50, 8, seed=7)
    (one_hot[0, 0] * upstream).sum().backward()

    weight = torch.cat([w[0] for w in tree.hyperplanes]).detach()
    score = x.detach()[0, 0] @ weight.T
    matrix = path_matrix(height)
    if leaf == "softmax":
        p = (torch.where(score >= 0, 1.0, -1.0) @ matrix.T).softmax(-1)
        upstream = p * (upstream - (p * upstream).sum(-1, keepdim=True))
    slope = (score.abs() <= 1).float() if sign == "clipped" else (1.0 - score.abs()).clamp(min=0.0)
    of_score = upstream @ matrix * slope  # (50, nodes)
    torch.testing.assert_close(
        torch.cat([w.grad[0] for w in tree.hyperplanes]), of_score.T @ x.detach()[0, 0], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(torch.cat([b.grad[0] for b in tree.biases]), of_score.sum(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad[0, 0], of_score @ weight, atol=1e-5, rtol=1e-5)


def test_one_token_teaches_hyperplanes_off_its_path() -> None:
    tree = TreeAttention(1, 4, 3).tree
    x = 0.1 * draw(1, 1, 1, 4)
    tree.memberships(x, tree.leaves(x), StraightThrough())[-1].mul(draw(8, seed=5)).sum().backward()
    assert all(bool((bias.grad != 0).all()) for bias in tree.biases)


@pytest.mark.parametrize("causal", [False, True])
def test_coarse_attention_teaches_every_hyperplane_that_is_not_clipped(causal: bool) -> None:
    attention = TreeAttention(1, 4, 3, "tc")
    with torch.no_grad():
        attention.tree.biases[1][0, 1] = 20.0  # |s| > 1 for all tokens
    query, key, value = (draw(1, 1, 60, 4, seed=seed) for seed in (1, 2, 3))
    (attention(query, key, value, is_causal=causal) * draw(1, 1, 60, 4, seed=4)).sum().backward()
    for level, (weight, bias) in enumerate(zip(attention.tree.hyperplanes, attention.tree.biases, strict=True)):
        for node in range(2**level):
            if (level, node) == (1, 1):
                assert not weight.grad[0, node].any()
                assert bias.grad[0, node] == 0
            elif (level, node) != (2, 3):  # nobody gets below the clipped node on its right
                assert bool((weight.grad[0, node] != 0).all())
                assert bias.grad[0, node] != 0


def test_coarse_gradient_of_a_key_is_its_distance_from_the_mean() -> None:
    attention = TreeAttention(1, 4, 1, "tc")
    query, key, value = (draw(1, 1, 9, 4, seed=seed) for seed in (1, 2, 3))
    leaf_query, leaf_key = (attention.tree.leaves(x)[0, 0] for x in (query, key))
    assert len(leaf_key.unique()) == 2
    upstream = draw(9, 4, seed=5)
    attention(query, key.requires_grad_(), value)[0, 0].mul(upstream).sum().backward()
    weight, bias = attention.tree.hyperplanes[0][0, 0].detach(), attention.tree.biases[0][0, 0].detach()
    for j in range(9):
        toward = []
        for node in (0, 1):
            members = value[0, 0, leaf_key == node]
            received = 0.5 * upstream[leaf_query == node].sum(0)  # alpha = 1/2
            toward.append(float(received @ (value[0, 0, j] - members.mean(0))) / len(members))
        unclipped = float(abs(key[0, 0, j].detach() @ weight + bias) <= 1)
        torch.testing.assert_close(key.grad[0, 0, j], unclipped * (toward[0] - toward[1]) * weight, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_coarse_gradients_are_those_of_sums_and_counts_of_every_node(causal: bool) -> None:
    attention = make(2, "tc")
    query, key, value = (x.requires_grad_() for x in inputs())
    upstream = draw(2, 3, 7, 5, seed=6)
    tensors = [query, key, value, *attention.parameters()]
    ours = torch.autograd.grad((attention(query, key, value, is_causal=causal) * upstream).sum(), tensors)

    of_query, of_key = (attention.tree.memberships(x, attention.tree.leaves(x), StraightThrough()) for x in (query, key))
    alpha = torch.stack(list(attention.level_logits), dim=-1).view(1, 3, 1, 3)
    occupied, terms = [], []
    for members, keys in zip(of_query, of_key, strict=True):
        sums, counts = (
            (keys.unsqueeze(-1) * value.unsqueeze(-2)).cumsum(2),
            keys.cumsum(2),
        )  # (B, H, S, nodes, Dv), (B, H, S, nodes)
        if not causal:
            sums, counts = sums[:, :, -1:], counts[:, :, -1:]
        terms.append((members.unsqueeze(-1) * sums / counts.clamp(min=1.0).unsqueeze(-1)).sum(-2))
        occupied.append((members * counts).sum(-1).detach() > 0)
    alpha = alpha.masked_fill(~torch.stack(occupied, dim=-1), float("-inf")).softmax(-1)
    out = sum(alpha[..., level : level + 1] * term for level, term in enumerate(terms))
    expected = torch.autograd.grad((out * upstream).sum(), tensors)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_fine_gradients_are_those_of_factors_on_the_numerators(causal: bool) -> None:
    attention = make(2)
    query, key, value = (x.requires_grad_() for x in inputs())
    upstream = draw(2, 3, 7, 5, seed=6)
    tensors = [query, key, value, *attention.parameters()]
    ours = torch.autograd.grad((attention(query, key, value, is_causal=causal) * upstream).sum(), tensors)

    leaves = attention.tree.leaves(query), attention.tree.leaves(key)
    members = [attention.tree.memberships(x, leaf, StraightThrough())[-1] for x, leaf in zip((query, key), leaves, strict=True)]
    visible = torch.ones(7, 7, dtype=torch.bool)
    visible = visible.tril() if causal else visible
    kept = kept_pairs(*leaves, visible)
    kept = kept | (visible & torch.eye(7, dtype=torch.bool)) if causal else kept
    product_ = members[0] @ members[1].transpose(-2, -1)
    factor = torch.where(leaves[0].unsqueeze(-1) == leaves[1].unsqueeze(-2), product_, 1.0 + product_)  # 1 for every kept pair
    numerators = (query @ key.transpose(-2, -1) / 2.0).exp() * kept * factor
    expected = torch.autograd.grad(((numerators / numerators.sum(-1, keepdim=True)) @ value * upstream).sum(), tensors)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_query_side_of_a_fine_tree_learns_only_from_pairs_that_it_separates() -> None:
    # A common factor of all numerators of a query cancels: within a leaf, moving the query changes nothing.
    query, key, value = (draw(1, 1, 40, 4, seed=seed) for seed in (1, 2, 3))
    norms = []
    for pairs in ("kept", "visible"):
        attention = TreeAttention(1, 4, 1, gradient=StraightThrough(pairs=pairs))
        leaf_query, leaf_key = attention.tree.leaves(query), attention.tree.leaves(key)
        members = attention.tree.memberships(query, leaf_query, attention.gradient)[-1]
        members.retain_grad()
        attention.tree.memberships = lambda x, leaf, _, m=members: [m, m] if x is query else [F.one_hot(leaf, 2).float()] * 2
        assert len(leaf_key.unique()) == 2
        (attention(query, key, value) * draw(1, 1, 40, 4, seed=5)).sum().backward()
        norms.append(members.grad.norm().item())
    assert norms[0] < 1e-5
    assert norms[1] > 0.1


def test_hidden_pairs_count_at_most_as_all_of_the_weight() -> None:
    # One query in leaf 0 with two keys there, two hidden keys in leaf 1: one weaker, one far stronger than those that are kept.
    attention = TreeAttention(1, 1, 1, gradient=StraightThrough(pairs="visible"))
    nn.init.ones_(attention.tree.hyperplanes[0])
    query, key = torch.full((1, 1, 1, 1), 0.5), torch.tensor([1.0, 2.0, -1.0, -400.0]).view(1, 1, 4, 1)
    value = torch.tensor([1.0, 3.0, 10.0, 100.0]).view(1, 1, 4, 1)
    out = attention(query.requires_grad_(), key, value, scale=-1.0)
    weights = torch.tensor([-0.5, -1.0]).softmax(0)
    mean = float(weights @ value[0, 0, :2, 0])
    assert out.item() == pytest.approx(mean, rel=1e-6)
    out.backward()
    normaliser = torch.tensor([-0.5, -1.0]).logsumexp(0)
    hidden = float((0.5 - normaliser).exp().clamp(max=1.0)) * (10.0 - mean) + 1.0 * (100.0 - mean)
    # To the query: through leaf 1 with sign -1 (|s| = 0.5), through leaf 0 nothing; and through the scores of kept keys.
    spread = float((weights * (value[0, 0, :2, 0] - mean)) @ (-key[0, 0, :2, 0]))
    assert query.grad.item() == pytest.approx(spread - hidden, rel=1e-4)


@pytest.mark.parametrize("mode", ["tf", "tc"])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_order_of_keys_does_not_matter_and_that_of_queries_carries_over(mode: Any, needs_grad: bool) -> None:
    attention = make(2, mode)
    query, key, value = inputs(6, 8)
    keys, queries = torch.randperm(8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 1, 5, 0, 4, 2])
    with torch.set_grad_enabled(needs_grad):
        out = attention(query, key, value)
        torch.testing.assert_close(attention(query, key[:, :, keys], value[:, :, keys]), out, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(attention(query[:, :, queries], key, value), out[:, :, queries], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_cap_bounds_what_a_query_reads(causal: bool) -> None:
    attention = TreeAttention(3, 4, 1, leaf_cap=2)
    query, key, value = inputs(30, 30)
    stats = attention(query, key, value, is_causal=causal, return_stats=True)[1]
    num_pairs = (stats["flops"].item() - 2 * 2 * 3 * 60 * 4) / 18
    assert num_pairs <= 2 * 3 * 30 * (3 if causal else 2)


@pytest.mark.parametrize(("mode", "options", "causal"), [kind for kind in KINDS if kind[2]])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_future_tokens_change_nothing(mode: Any, options: Any, causal: bool, needs_grad: bool) -> None:
    attention = make(2, mode, **options)
    query, key, value = inputs()
    others = [x.clone() for x in (query, key, value)]
    for x in others:
        x[:, :, 4:] = 3.0 * draw(*x[:, :, 4:].shape, seed=9)
    with torch.set_grad_enabled(needs_grad):
        out, changed = attention(query, key, value, is_causal=causal), attention(*others, is_causal=causal)
    torch.testing.assert_close(out[:, :, :4], changed[:, :, :4], atol=1e-7, rtol=1e-6)
    assert not torch.allclose(out[:, :, 4:], changed[:, :, 4:])


@pytest.mark.parametrize("mode", ["tf", "tc"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gradient", [None, StraightThrough(), StraightThrough(sign="triangular", leaf="softmax")])
def test_query_without_visible_key_gives_zeros_and_zero_gradients(mode: Any, causal: bool, gradient: Any) -> None:
    attention = TreeAttention(3, 4, 2, mode, gradient=gradient)
    query, key, value = (x.requires_grad_() for x in inputs())
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[0] = False
    out = attention(query, key, value, is_causal=causal, key_padding_mask=valid)
    out.square().sum().backward()
    assert not out[0].any()
    assert bool(out[1].any())
    for x in (query, key, value):
        assert x.grad is None or not x.grad[0].any()
    grads = [p.grad for p in (*attention.parameters(), query, key, value) if p.grad is not None]
    assert grads
    assert all(bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize("pairs", ["kept", "visible"])
def test_empty_leaf_reads_from_the_deepest_ancestor_with_a_key(pairs: Any) -> None:
    # Height 2 on one number, thresholds 0 and +-2: leaves [2, inf), [0, 2), [-2, 0), (-inf, -2).
    attention = TreeAttention(1, 1, 2, gradient=StraightThrough(pairs=pairs))
    with torch.no_grad():
        for weight in attention.tree.hyperplanes:
            weight.fill_(1.0)
        attention.tree.biases[1].copy_(torch.tensor([[-2.0, 2.0]]))
    key = torch.tensor([3.0, 2.5, -1.0]).view(1, 1, 3, 1)
    value = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 3, 1)
    query = torch.tensor([5.0, 1.0, -3.0]).view(1, 1, 3, 1).requires_grad_()
    out, stats = attention(query, key, value, scale=0.0, return_stats=True)
    assert out.flatten().tolist() == [1.5, 1.5, 4.0]  # its leaf; the right half; the left half
    assert stats["empty_leaf_rate"].item() == pytest.approx(2 / 3)
    assert stats["leaf_counts"].flatten().tolist() == [2, 0, 1, 0]
    out.sum().backward()
    assert bool(query.grad.isfinite().all())


def decode(attention: TreeAttention, query: Tensor, key: Tensor, value: Tensor, context: int) -> Iterator[tuple[Tensor, Any]]:
    state = attention.init_state(
        len(query), num_heads=key.shape[1], head_dim=4, value_dim=value.shape[-1], context=context, dtype=query.dtype
    )
    for t in range(query.shape[2]):
        before = {name: x.clone() for name, x in state.items()}
        out, new_state = attention.step(query[:, :, t : t + 1], key[:, :, t : t + 1], value[:, :, t : t + 1], state)
        assert all(torch.equal(before[name], state[name]) for name in state)
        state = new_state
        yield out, state


STEPS: list[tuple[Any, dict[str, Any]]] = [
    ("tf", {}),
    ("tf", {"leaf_cap": 1}),
    ("tf", {"leaf_cap": 3, "shared_tree": True}),
    ("tc", {}),
]


@pytest.mark.parametrize(("mode", "options"), STEPS)
@pytest.mark.parametrize("height", [0, 2])
def test_step_is_the_last_row_of_causal_attention(mode: Any, options: Any, height: int) -> None:
    attention = make(height, mode, **options)
    query, key, value = inputs(12, 12)
    expected = attention(query, key, value, is_causal=True)
    outs = torch.cat([out for out, _ in decode(attention, query, key, value, 12)], dim=2)
    torch.testing.assert_close(outs, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"leaf_cap": 2}])
def test_fine_step_forgets_the_oldest_token(options: Any) -> None:
    attention = make(2, **options)
    query, key, value = inputs(12, 12)
    for t, (out, _) in enumerate(decode(attention, query, key, value, 5)):
        window = slice(max(0, t - 4), t + 1)
        last = attention(query[:, :, window], key[:, :, window], value[:, :, window], is_causal=True)[:, :, -1:]
        torch.testing.assert_close(out, last, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("mode", "options"), STEPS)
def test_state_times_zero_is_fresh(mode: Any, options: Any) -> None:
    attention = make(2, mode, **options)
    query, key, value = inputs(6, 6)
    *_, (_, state) = decode(attention, query, key, value, 4)
    keep = torch.tensor([0.0, 1.0])
    state = {name: x * keep.view(-1, *[1] * (x.ndim - 1)) for name, x in state.items()}
    token = [x[:, :, :1] for x in (query, key, value)]
    fresh = attention.init_state(2, num_heads=3, head_dim=4, value_dim=5, context=4)
    reset, from_fresh = attention.step(*token, state)[0], attention.step(*token, fresh)[0]
    torch.testing.assert_close(reset[0], from_fresh[0], atol=0.0, rtol=0.0)
    torch.testing.assert_close(reset[0], value[0, :, :1])
    assert not torch.allclose(reset[1], from_fresh[1])


@pytest.mark.parametrize(("mode", "options", "causal"), KINDS)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_samples_of_a_batch_do_not_matter_to_each_other(mode: Any, options: Any, causal: bool, needs_grad: bool) -> None:
    attention = make(2, mode, **options)
    query, key, value = inputs(40, 40, batch=5)
    valid = padding(5, 40)
    order = torch.tensor([3, 0, 4, 2, 1])
    with torch.set_grad_enabled(needs_grad):
        out = attention(query, key, value, is_causal=causal, key_padding_mask=valid)
        permuted = attention(query[order], key[order], value[order], is_causal=causal, key_padding_mask=valid[order])
        single = [
            attention(*(x[i : i + 1] for x in (query, key, value)), is_causal=causal, key_padding_mask=valid[i : i + 1])
            for i in range(5)
        ]
    torch.testing.assert_close(permuted, out[order], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.cat(single), out, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["tf", "tc"])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_autocast_computes_in_float32(mode: Any, needs_grad: bool) -> None:
    attention = make(2, mode)
    query, key, value = (x.bfloat16() for x in inputs())
    expected = attention(query.float(), key.float(), value.float(), is_causal=True)
    with torch.set_grad_enabled(needs_grad), torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(query, key, value, is_causal=True)
        state = attention.init_state(2, num_heads=3, head_dim=4, value_dim=5, context=7, dtype=torch.bfloat16)
        token = attention.step(query[:, :, :1], key[:, :, :1], value[:, :, :1], state)[0]
    assert out.dtype == token.dtype == torch.bfloat16
    assert torch.equal(out, expected.bfloat16())
    assert torch.equal(token, expected[:, :, :1].bfloat16())


@pytest.mark.parametrize(("mode", "options", "causal"), KINDS)
def test_gradients_with_fixed_leaves_are_exact(mode: Any, options: Any, causal: bool) -> None:
    attention = make(2, mode, gradient=None, **options).double()
    tensors = [x.requires_grad_() for x in inputs(5, 5, batch=1, dtype=torch.float64)]
    valid = padding(1, 5)
    assert torch.autograd.gradcheck(lambda *x: attention(*x, is_causal=causal, key_padding_mask=valid), tensors, fast_mode=True)


@pytest.mark.parametrize("mode", ["tf", "tc"])
def test_gradients_of_values_and_levels_are_exact_with_learning_trees(mode: Any) -> None:
    attention = make(2, mode).double()
    query, key, value = inputs(5, 5, batch=1, dtype=torch.float64)
    logits = list(attention.level_logits) if mode == "tc" else []
    assert torch.autograd.gradcheck(lambda v, *_: attention(query, key, v, is_causal=True), [value.requires_grad_(), *logits])


def test_trees_without_gradient_get_none() -> None:
    attention = make(2, gradient=None)
    query, key, value = (x.requires_grad_() for x in inputs())
    attention(query, key, value).sum().backward()
    assert all(p.grad is None for p in attention.parameters())
    assert bool(query.grad.any())


def test_grown_tree_keeps_nodes_and_equals_one_that_was_made_tall() -> None:
    attention = TreeAttention(2, 4, 1, "tc", seed=3)
    with torch.no_grad():
        attention.level_logits[0].copy_(torch.tensor([2.0, 4.0]))
    before = list(attention.parameters())
    new = attention.set_height(3)
    assert {id(p) for p in new} | {id(p) for p in before} == {id(p) for p in attention.parameters()}
    assert len(new) == 2 * 2 + 2
    assert attention.level_logits[3].tolist() == [1.0, 2.0]  # the mean
    for a, b in zip(attention.tree.parameters(), TreeAttention(2, 4, 3, seed=3).tree.parameters(), strict=True):
        assert torch.equal(a, b)
    assert attention.set_height(1) == []
    assert [id(p) for p in attention.parameters()] == [id(p) for p in before]
    with pytest.raises(ValueError, match="height must be in"):
        attention.set_height(-1)


def test_seeds_and_heads_have_trees_of_their_own() -> None:
    first, second = TreeAttention(2, 64, 2, seed=0), TreeAttention(2, 64, 2, seed=1)
    weight = first.tree.hyperplanes[1]
    assert weight.std().item() == pytest.approx(1 / 8, rel=0.2)  # N(0, 1 / D)
    assert not torch.equal(weight, second.tree.hyperplanes[1])
    assert not torch.equal(weight[0], weight[1])
    assert len(TreeAttention(2, 64, 2, shared_tree=True).tree.hyperplanes[1]) == 1


def test_keys_may_have_fewer_heads() -> None:
    attention = TreeAttention(4, 4, 1)
    query, key, value = draw(2, 4, 6, 4), draw(2, 2, 6, 4, seed=1), draw(2, 2, 6, 5, seed=2)
    wide = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    expected = attention(query, *wide, is_causal=True)
    assert torch.equal(attention(query, key, value, is_causal=True, enable_gqa=True), expected)
    outs = torch.cat([out for out, _ in decode(attention, query, key, value, 6)], dim=2)
    torch.testing.assert_close(outs, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["tf", "tc"])
def test_no_queries_or_no_keys_give_an_empty_or_zero_output(mode: Any) -> None:
    attention = TreeAttention(3, 4, 2, mode)
    out, stats = attention(*inputs(3, 0), return_stats=True)
    assert out.shape == (2, 3, 3, 5)
    assert not out.any()
    assert stats["empty_leaf_rate"].item() == 1.0
    assert attention(*inputs(0, 3), is_causal=True).shape == (2, 3, 0, 5)


def test_weights_are_no_linear_layers() -> None:
    # Stable-Baselines3 draws the weights of nn.Linear again.
    assert not any(isinstance(module, nn.Linear) for module in TreeAttention(2, 4, 2, "tc").modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 0}, "num_heads and head_dim must be >= 1"),
        ({"height": 21}, "height must be in"),
        ({"mode": "td"}, "mode must be 'tf' or 'tc'"),
        ({"leaf_cap": 0}, "leaf_cap must be None or >= 1"),
        ({"leaf_cap": 3, "mode": "tc"}, "leaf_cap must be None or >= 1"),
        ({"cap_rule": "norm"}, "cap_rule must be None"),
        ({"cap_rule": "first", "leaf_cap": 3}, "cap_rule must be None"),
        ({"mode": "tc", "gradient": StraightThrough(pairs="visible")}, "gradient.pairs must be 'kept'"),
        ({"seed": -1}, "seed must be >= 0"),
    ],
)
def test_wrong_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TreeAttention(**{"num_heads": 2, "head_dim": 4, "height": 1, **options})


@pytest.mark.parametrize("name", ["sign", "leaf", "pairs"])
def test_unknown_gradients_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        StraightThrough(**{name: "none"})


def test_what_cannot_be_honoured_is_refused() -> None:
    attention = TreeAttention(3, 4, 1, leaf_cap=2, cap_rule="norm")
    query, key, value = inputs()
    with pytest.raises(NotImplementedError, match="no attn_mask"):
        attention(query, key, value, torch.ones(7, 7, dtype=torch.bool))
    with pytest.raises(NotImplementedError, match="dropout_p must be 0"):
        attention(query, key, value, dropout_p=0.1)
    with pytest.raises(ValueError, match="cap_rule must be 'recent'"):
        attention(query, key, value, is_causal=True)
    with pytest.raises(ValueError, match="query must have 3 heads of width 4"):
        attention(query[:, :2], key[:, :2], value[:, :2])
    with pytest.raises(ValueError, match="must divide 3"):
        attention.init_state(2, num_heads=2, head_dim=4, context=4)
    with pytest.raises(ValueError, match="context must be >= 1"):
        attention.init_state(2, num_heads=3, head_dim=4, context=0)


def test_state_of_another_height_is_refused() -> None:
    attention = TreeAttention(3, 4, 1, "tc")
    state = attention.init_state(2, num_heads=3, head_dim=4, value_dim=5, context=4)
    attention.set_height(2)
    with pytest.raises(ValueError, match="state must belong to height 2"):
        attention.step(*inputs(1, 1), state)


@pytest.mark.parametrize(("length", "height"), [(1, 1), (64, 1), (127, 1), (128, 2), (1024, 5), (4096, 7)])
def test_suggested_height_leaves_about_32_keys(length: int, height: int) -> None:
    assert suggest_height(length) == height
