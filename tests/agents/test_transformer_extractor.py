"""Features from a transformer: tokens of all kinds of observations, equal log-probabilities, initial weights, auxiliary losses."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from rlopt.agents import DQN
from rlopt.agents.history import HistoryWrapper
from rlopt.agents.transformer_extractor import TransformerExtractor
from rlopt.nn.transformer_config import MoEConfig, SoftMoEConfig, TransformerConfig

SMALL = TransformerConfig(width=16, num_layers=1, num_heads=2, causal=False, context=64)


def history_space(length: int = 5, **options: bool) -> spaces.Dict:
    space = HistoryWrapper(gym.make("CartPole-v1"), length, **options).observation_space
    assert isinstance(space, spaces.Dict)
    return space


def sample(space: spaces.Space[Any], num: int, seed: int = 0) -> Any:
    space.seed(seed)
    drawn = [space.sample() for _ in range(num)]
    if isinstance(space, spaces.Dict):
        return {name: th.as_tensor(np.stack([d[name] for d in drawn])).float() for name in space.spaces}
    return th.as_tensor(np.stack(drawn)).float()


def history(num: int, length: int = 5, seed: int = 0) -> dict[str, th.Tensor]:
    obs = {"observations": th.randn(num, length, 4, generator=th.Generator().manual_seed(seed))}
    obs["valid"] = th.ones(num, length)
    return obs


SPACES: dict[str, tuple[spaces.Space[Any], dict[str, Any], int]] = {  # space, options, tokens
    "vector": (spaces.Box(-1, 1, (6,)), {}, 6),
    "patches": (spaces.Box(-1, 1, (6,)), {"tokenizer": "patch", "patch_size": 4}, 2),
    "dict": (spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Box(0, 1, (1, 8, 8))}), {"patch_size": 4}, 3 + 4),
    "history": (history_space(), {}, 5),
}


@pytest.mark.parametrize("name", ["vector", "patches", "dict", "history"])
def test_number_of_tokens_and_size_of_features(name: str) -> None:
    space, options, num_tokens = SPACES[name]
    extractor = TransformerExtractor(space, **options)
    obs = history(3) if name == "history" else sample(space, 3)
    tokens, _ = extractor.tokens(obs)
    assert tokens.shape == (3, num_tokens, 64)
    assert extractor.num_tokens == num_tokens == extractor.transformer.config.context
    assert extractor(obs).shape == (3, extractor.features_dim) == (3, 64)


def test_images_have_seven_patches_along_their_shorter_side() -> None:
    assert TransformerExtractor(spaces.Box(0, 1, (3, 84, 84)), SMALL).num_tokens == 49
    with pytest.raises(ValueError, match="patch_size must divide both sides of the image, 14 x 21, got 2"):
        TransformerExtractor(spaces.Box(0, 1, (3, 14, 21)))


def test_history_features_are_those_of_the_newest_step_and_ignore_padding() -> None:
    extractor = TransformerExtractor(history_space()).eval()
    obs = history(2)
    obs["valid"][:, :2] = 0
    features = extractor(obs)
    obs["observations"][:, :2] = 100.0
    th.testing.assert_close(extractor(obs), features)
    tokens, _ = extractor.tokens(obs)
    th.testing.assert_close(features, extractor.transformer(tokens[:, 2:]).output[:, -1], rtol=1e-5, atol=1e-6)
    obs["observations"][:, 2] = 0.0  # a valid step in the past does matter
    assert not th.allclose(extractor(obs), features)


def test_previous_actions_and_rewards_are_part_of_the_tokens() -> None:
    extractor = TransformerExtractor(history_space(include_actions=True, include_rewards=True)).eval()
    obs = history(2)
    obs["previous_actions"], obs["previous_rewards"] = th.zeros(2, 5, 2), th.zeros(2, 5)
    base = extractor(obs)
    for part in ("previous_actions", "previous_rewards"):
        changed = {**obs, part: obs[part] + 1.0}
        assert not th.allclose(extractor(changed), base)


def test_mean_pooling_is_the_mean_over_valid_tokens() -> None:
    extractor = TransformerExtractor(history_space(), SMALL, pooling="mean").eval()
    obs = history(1)
    obs["valid"][:, :2] = 0
    tokens, valid = extractor.tokens(obs)
    assert valid is not None
    th.testing.assert_close(extractor(obs)[0], extractor.transformer(tokens, valid).output[0, 2:].mean(0))
    plain = TransformerExtractor(spaces.Box(-1, 1, (6,)), SMALL).eval()
    x = sample(spaces.Box(-1, 1, (6,)), 2)
    th.testing.assert_close(plain(x), plain.transformer(plain.tokens(x)[0]).output.mean(1))


@pytest.mark.parametrize("moe", [None, MoEConfig(4, every=1), SoftMoEConfig(4, every=1)])
def test_log_probabilities_do_not_depend_on_the_batch(moe: Any) -> None:
    config = TransformerConfig(width=16, num_layers=1, num_heads=2, causal=False, context=4, moe=moe)
    policy_kwargs = {"features_extractor_class": TransformerExtractor, "features_extractor_kwargs": {"transformer": config}}
    policy = sb3.PPO("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, seed=0).policy
    obs, actions = th.randn(8, 4, generator=th.Generator().manual_seed(0)), th.tensor([0, 1] * 4)
    policy.set_training_mode(False)
    together = policy.evaluate_actions(obs, actions)[1]
    policy.set_training_mode(True)
    order = th.randperm(8, generator=th.Generator().manual_seed(1))
    alone = th.cat([policy.evaluate_actions(obs[i : i + 1], actions[i : i + 1])[1] for i in range(8)])
    permuted = policy.evaluate_actions(obs[order], actions[order])[1]
    th.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    th.testing.assert_close(together[order], permuted, rtol=0, atol=1e-5)


def test_orthogonal_initialisation_leaves_the_transformer_alone() -> None:
    config = TransformerConfig(width=16, num_layers=2, num_heads=2, causal=False, context=4, moe=MoEConfig(4))
    policy_kwargs = {"features_extractor_class": TransformerExtractor, "features_extractor_kwargs": {"transformer": config}}
    policy = sb3.PPO("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, seed=0).policy
    own = TransformerExtractor(spaces.Box(-np.inf, np.inf, (4,)), config).state_dict()
    found = policy.features_extractor.state_dict()
    assert all(th.equal(own[name], found[name]) for name in own)
    # Other functions are applied to all parts.
    seen: list[str] = []
    policy.features_extractor.apply(lambda module: seen.append(type(module).__name__))
    assert {"Linear", "MoE", "TransformerExtractor"} <= set(seen)


def test_auxiliary_losses_are_those_of_the_latest_training_pass() -> None:
    config = TransformerConfig(width=16, num_layers=2, num_heads=2, causal=False, context=6, moe=MoEConfig(4))
    extractor = TransformerExtractor(spaces.Box(-1, 1, (6,)), config)
    first, second = sample(spaces.Box(-1, 1, (6,)), 3), sample(spaces.Box(-1, 1, (6,)), 3, seed=1)
    extractor.eval()(first)
    assert extractor.pop_aux_losses() == {}
    extractor.train()(first)
    extractor(second)
    losses = extractor.pop_aux_losses()
    expected = extractor.transformer(extractor.tokens(second)[0]).aux_losses
    assert sorted(losses) == ["balance", "router_z"]
    th.testing.assert_close(losses["balance"], expected["balance"])
    losses["router_z"].backward()
    assert extractor.transformer.blocks[1].mlp.router_weight.grad.abs().sum() > 0
    assert extractor.pop_aux_losses() == {}


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (spaces.Box(-1, 1, (6,)), {"tokenizer": "history"}, "tokenizer 'history' needs observations of a HistoryWrapper"),
        (
            spaces.Box(-1, 1, (6,)),
            {"tokenizer": "words"},
            "tokenizer must be one of auto, per_dimension, patch, history, got 'words'",
        ),
        (spaces.Box(-1, 1, (6,)), {"pooling": "max"}, "pooling must be one of auto, last, mean, got 'max'"),
        (spaces.Box(-1, 1, (6,)), {"patch_size": 2}, "patch_size must be None without patches, got 2"),
        (spaces.Box(-1, 1, (6,)), {"pooling": "last"}, "pooling 'last' needs a causal transformer"),
        (spaces.Box(-1, 1, (99,)), {"transformer": SMALL}, "transformer.context must be at least the 99 tokens .* got 64"),
        (spaces.Box(0, 1, (3, 8, 8)), {"tokenizer": "per_dimension"}, "tokenizer must be 'patch' or 'auto' for images"),
        (history_space(), {"patch_size": 2}, "patch_size must be None with the tokenizer 'history', got 2"),
    ],
)
def test_wrong_option_is_named(space: spaces.Space[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerExtractor(space, **options)


@pytest.mark.parametrize("agent", [sb3.PPO, sb3.DQN, DQN])
def test_agents_learn_save_and_load_with_it(agent: Any, tmp_path: Any) -> None:
    env = make_vec_env(lambda: HistoryWrapper(gym.make("CartPole-v1"), 4), n_envs=1)
    config = TransformerConfig(width=16, num_layers=1, num_heads=2, context=4)
    policy_kwargs = {"features_extractor_class": TransformerExtractor, "features_extractor_kwargs": {"transformer": config}}
    options: dict[str, Any] = {"n_steps": 32, "n_epochs": 1, "batch_size": 16} if agent is sb3.PPO else {"learning_starts": 20}
    model = agent("MultiInputPolicy", env, policy_kwargs=policy_kwargs, seed=0, **options)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    model.learn(64)
    after = model.policy.state_dict()
    assert any("transformer" in name and not th.equal(before[name], after[name]) for name in after)
    model.save(tmp_path / "agent")
    loaded = agent.load(tmp_path / "agent", env=env)
    obs = env.reset()
    assert np.array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert all(th.equal(after[name], tensor) for name, tensor in loaded.policy.state_dict().items())
