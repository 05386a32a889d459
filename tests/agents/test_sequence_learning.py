"""Off-policy learning from sequences: the same numbers as from histories, stored as single steps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import rlopt_envs  # noqa: F401  # registers its environments
from rlopt.agents import DDPG, DQN, SAC, TD3, HistoryWrapper, SequenceLearning, TransformerExtractor, losses
from rlopt.agents.sequence_learning import counted_steps, step_space
from rlopt.nn import MoEConfig, TransformerConfig
from rlopt.replay import HindsightReplay, IntrospectiveReplay, PrioritizedReplay, ReverseReplay, UniformReplay

LENGTH = 6
TRANSFORMER = TransformerConfig(width=16, num_layers=2, num_heads=2, context=LENGTH, positions="rotary")


def policy_kwargs(transformer: TransformerConfig = TRANSFORMER, **options: Any) -> dict[str, Any]:
    """Networks of a transformer and nothing behind it."""
    extractor = {"transformer": transformer, **options}
    return {"features_extractor_class": TransformerExtractor, "features_extractor_kwargs": extractor, "net_arch": []}


def make_env(corridor_length: int = 8, **options: Any) -> gym.Env[Any, Any]:
    return HistoryWrapper(gym.make("rlopt/TMaze-v0", corridor_length=corridor_length), LENGTH, include_actions=True, **options)


def make_dqn(n_envs: int = 1, **options: Any) -> DQN:
    defaults: dict[str, Any] = {
        "policy_kwargs": policy_kwargs(), "batch_size": 8, "learning_starts": 40, "seed": 0, "device": "cpu",
        "sequences": SequenceLearning(length=4, burn_in=1), "buffer_size": 600,
    }  # fmt: skip
    return DQN("MultiInputPolicy", make_vec_env(make_env, n_envs=n_envs, seed=0), **defaults | options)


def make_continuous(kind: Any, **options: Any) -> Any:
    env = HistoryWrapper(gym.make("rlopt/PendulumNoVelocity-v0"), LENGTH, include_actions=True)
    defaults: dict[str, Any] = {"batch_size": 4, "learning_starts": 30, "seed": 0, "policy_kwargs": policy_kwargs()}
    return kind("MultiInputPolicy", env, **defaults | {"sequences": SequenceLearning(length=3, burn_in=2)} | options)


def histories_by_hand(batch: Any, last: list[tuple[int, int]], *, shifted: bool) -> dict[str, th.Tensor]:
    """Histories of LENGTH steps that end at positions (row, step) of sequences, or one step later, left-padded with 0."""
    rows: dict[str, list[th.Tensor]] = {"valid": []}
    for row, step in last:
        sequence = batch.sequences
        first = int(np.flatnonzero(sequence.valid[row].numpy())[0])
        steps = {name: sequence.observations[name][row, first : step + 1] for name in sequence.observations}
        if shifted:
            newest = {name: sequence.next_observations[name][row, step : step + 1] for name in steps}
            steps = {name: th.cat([part, newest[name]]) for name, part in steps.items()}
        for name, part in steps.items():
            padding = part.new_zeros(LENGTH - len(part), *part.shape[1:])
            rows.setdefault(name, []).append(th.cat([padding, part]))
        num = len(next(iter(steps.values())))
        rows["valid"].append(th.cat([th.zeros(LENGTH - num), th.ones(num)]))
    return {name: th.stack(parts) for name, parts in rows.items()}


@pytest.mark.parametrize("burn_in", [0, 2])
def test_features_of_sequences_are_those_of_single_histories(burn_in: int) -> None:
    agent = make_dqn(sequences=SequenceLearning(length=3, burn_in=burn_in), n_envs=2)
    agent.learn(120)
    batch = agent._sample(32)
    learn = batch.sequences.learn.numpy()
    assert not learn.all()  # some sequences start with padding, or have a burn-in
    places = list(zip(*np.nonzero(learn), strict=True))
    with th.no_grad():
        q = agent.q_net(batch.observations)
        next_q = agent.q_net(batch.next_observations)
        expected = agent.q_net(histories_by_hand(batch, places, shifted=False))
        expected_next = agent.q_net(histories_by_hand(batch, places, shifted=True))
    assert len(q) == learn.sum()
    th.testing.assert_close(q, expected, atol=1e-5, rtol=1e-5)
    th.testing.assert_close(next_q, expected_next, atol=1e-5, rtol=1e-5)


def test_other_fields_stand_in_the_order_of_the_features() -> None:
    agent = make_dqn()
    agent.learn(100)
    batch = agent._sample(16)
    learn = batch.sequences.learn
    for name in ("actions", "dones", "rewards", "weights"):
        whole = getattr(batch.sequences, name)
        expected = [whole[row, step] for row in range(len(learn)) for step in range(learn.shape[1]) if learn[row, step]]
        th.testing.assert_close(getattr(batch, name), th.stack(expected))


def test_loss_of_dqn_is_the_mean_over_counted_steps() -> None:
    agent = make_dqn()
    agent.learn(60)
    batch = agent._sample(8)
    target = th.linspace(-1, 1, len(batch.actions))[:, None]
    loss, q = agent._evaluate(batch, target)
    by_hand = [th.nn.functional.smooth_l1_loss(q[i], target[i]) for i in range(len(q))]
    th.testing.assert_close(loss, th.stack(by_hand).mean())


def test_td_errors_of_pivots_reach_the_replay() -> None:
    agent = make_dqn(replay_buffer_class=PrioritizedReplay)
    agent.learn(60)
    replay: Any = agent.replay_buffer
    batch = agent._sample(4)
    # The error of each counted step is its own number; those of the pivots are looked up by hand.
    errors = th.arange(1.0, len(batch.actions) + 1)[:, None]
    numbers = th.zeros(batch.sequences.learn.shape)
    numbers[batch.sequences.learn] = errors[:, 0]
    expected = [numbers[row, pivot].item() for row, pivot in enumerate(batch.sequences.pivots.tolist())]
    assert batch.of_pivots(errors).tolist() == expected
    seen: list[Any] = []
    replay.update = lambda indices, td_errors: seen.append((indices, td_errors.tolist()))
    agent._report(batch, errors)
    assert seen[0][0] is batch.sequences.indices
    assert seen[0][1] == expected


@pytest.mark.parametrize("n_envs", [1, 3])
def test_replay_holds_the_newest_steps_of_histories(n_envs: int) -> None:
    agent = make_dqn(n_envs=n_envs, learning_starts=10_000)
    agent.learn(60 * n_envs)
    replay: Any = agent.replay_buffer
    assert replay.observation_space.spaces.keys() == {"observations", "previous_actions"}
    assert replay.observation_space["observations"].shape == gym.make("rlopt/TMaze-v0").observation_space.shape
    # The same actions in environments of their own give the same steps, also the last ones of episodes.
    twins = make_vec_env(partial(gym.make, "rlopt/TMaze-v0", corridor_length=8), n_envs=n_envs, seed=0)
    obs: Any = twins.reset()
    for t in range(60):
        stored = replay._get_samples(np.arange(n_envs) + t * n_envs)
        np.testing.assert_array_equal(stored.observations["observations"].numpy(), obs)
        obs, rewards, dones, infos = twins.step(stored.actions[:, 0].numpy())
        after = np.array(obs)
        for env in np.flatnonzero(dones):
            after[env] = infos[env]["terminal_observation"]
        np.testing.assert_array_equal(stored.next_observations["observations"].numpy(), after)
        np.testing.assert_array_equal(stored.rewards[:, 0].numpy(), rewards)
        np.testing.assert_array_equal(stored.dones[:, 0].numpy(), dones)
        one_hot = np.eye(replay.observation_space["previous_actions"].shape[0])[stored.actions[:, 0].numpy()]
        np.testing.assert_array_equal(stored.next_observations["previous_actions"].numpy(), one_hot)


def test_space_of_steps_is_that_of_the_wrapped_environment() -> None:
    env = gym.make("Pendulum-v1")
    space = step_space(HistoryWrapper(env, 3, include_rewards=True).observation_space)
    assert space == spaces.Dict(observations=env.observation_space, previous_rewards=spaces.Box(-np.inf, np.inf, (), np.float32))


@pytest.mark.parametrize("kind", [DDPG, SAC, TD3])
@pytest.mark.parametrize("share", [False, True])
def test_agents_with_actors_learn_from_sequences(kind: Any, share: bool) -> None:
    agent = make_continuous(kind, policy_kwargs=policy_kwargs() | {"share_features_extractor": share})
    before = [p.detach().clone() for p in agent.policy.parameters()]
    agent.learn(40)
    moved = [not th.equal(old, new) for old, new in zip(before, agent.policy.parameters(), strict=True)]
    assert np.mean(moved) > 0.9  # the embedding of padding and the like stay


def test_critic_loss_of_sac_is_that_of_single_histories() -> None:
    agent = make_continuous(SAC)
    agent.learn(40)
    batch = agent._sample(6)
    places = list(zip(*np.nonzero(batch.sequences.learn.numpy()), strict=True))
    by_hand = histories_by_hand(batch, places, shifted=False)
    target = th.linspace(-1, 1, len(places))[:, None]
    loss, smallest = agent._evaluate_critic(batch, target)
    values = agent.critic(by_hand, batch.actions)
    th.testing.assert_close(loss, 0.5 * losses.squared_loss(values, target), atol=1e-5, rtol=1e-4)
    th.testing.assert_close(smallest, losses.smallest_value(values), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("replay", [UniformReplay, PrioritizedReplay, ReverseReplay])
def test_works_with_replays_that_do_not_rank_by_networks(replay: Any) -> None:
    agent = make_dqn(replay_buffer_class=replay)
    agent.learn(80)
    assert agent._n_updates > 0


def test_auxiliary_losses_reach_the_loss() -> None:
    mixture = TransformerConfig(
        width=16, num_layers=1, num_heads=2, context=LENGTH, positions="none", moe=MoEConfig(num_experts=2, every=1)
    )
    agent = make_dqn(policy_kwargs=policy_kwargs(mixture), aux_loss_coefs={"balance": 10.0})
    agent.learn(60)
    agent.policy.set_training_mode(True)
    batch = agent._sample(8)
    with_balance, q = agent._evaluate(batch, th.zeros(len(batch.actions), 1))
    assert with_balance > losses.huber_loss(q, th.zeros_like(q)) + 5.0


def test_saved_agents_learn_on_from_sequences(tmp_path: Path) -> None:
    agent = make_dqn()
    agent.learn(60)
    agent.save(tmp_path / "agent.zip")
    agent.save_replay_buffer(tmp_path / "replay")
    loaded = DQN.load(tmp_path / "agent.zip", env=make_vec_env(make_env, seed=1))
    assert loaded.sequences == SequenceLearning(length=4, burn_in=1)
    loaded.load_replay_buffer(tmp_path / "replay")
    loaded.learn(32, reset_num_timesteps=False)
    assert loaded.replay_buffer.size() == 92  # type: ignore[union-attr]


def test_dqn_solves_a_short_t_maze_from_sequences() -> None:
    env = partial(make_env, corridor_length=3)
    agent = DQN(
        "MultiInputPolicy", make_vec_env(env, seed=0), sequences=SequenceLearning(length=5),
        policy_kwargs=policy_kwargs(replace(TRANSFORMER, num_layers=1)), learning_rate=3e-3, batch_size=32, learning_starts=200,
        train_freq=4, target_update_interval=100, exploration_fraction=0.5, buffer_size=3000, seed=0,
    )  # fmt: skip
    agent.learn(2000)
    test = make_vec_env(env, seed=1000)
    obs, returns = test.reset(), []
    while len(returns) < 40:
        obs, rewards, dones, _ = test.step(agent.predict(obs, deterministic=True)[0])
        returns += [float(rewards[0])] * bool(dones[0])
    assert np.mean(returns) == 1.0  # 0 without memory


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_steps": 3}, "n_steps must be 1 with sequences, got 3"),
        ({"replay_buffer_kwargs": {"n_steps": 2}}, "n_steps must be 1 with sequences, got 2"),
        ({"replay_buffer_class": IntrospectiveReplay}, "IntrospectiveReplay, which ranks"),
        ({"replay_buffer_class": DictReplayBuffer}, "needs a replay of rlopt, got DictReplayBuffer"),
        ({"sequences": SequenceLearning(length=6)}, r"context must be at least burn_in \+ length \+ 1 = 7 of the sequences, got 6"),
        ({"policy_kwargs": {}}, "method check_sequences, such as TransformerExtractor, got CombinedExtractor"),
        ({"policy_kwargs": policy_kwargs(TransformerConfig(16, 1, 2, context=6))}, "must be 'rotary' or 'none'"),
        ({"policy_kwargs": policy_kwargs(pooling="mean")}, "pooling must be 'last' with sequences, got 'mean'"),
    ],
)
def test_what_does_not_go_with_sequences_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_dqn(**options)


def test_other_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="needs observations of a HistoryWrapper or VecHistory"):
        DQN("MlpPolicy", "CartPole-v1", sequences=SequenceLearning())
    env = VecNormalize(make_vec_env(make_env), norm_obs_keys=["observations"])
    with pytest.raises(ValueError, match="norm_obs=False"):
        DQN("MultiInputPolicy", env, sequences=SequenceLearning(length=4), policy_kwargs=policy_kwargs())
    with pytest.raises(ValueError, match="goal"):
        make_dqn(replay_buffer_class=HindsightReplay)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 0}, "length must be > 0, got 0"),
        ({"burn_in": -1}, "burn_in must be >= 0"),
        ({"pivot_at": "start"}, "'random' or"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SequenceLearning(**options)


def test_rewards_can_be_normalised() -> None:
    env = VecNormalize(make_vec_env(make_env, seed=0), norm_obs=False)
    options = {"policy_kwargs": policy_kwargs(), "learning_starts": 20, "seed": 0}
    agent = DQN("MultiInputPolicy", env, sequences=SequenceLearning(length=4), **options)
    agent.learn(50)
    raw = agent.replay_buffer._get_samples(np.arange(40)).rewards.abs().max()  # type: ignore[union-attr]
    assert raw == 1.0
    assert agent._sample(64).rewards.abs().max() != 1.0


def test_counted_steps_share_one_row_of_steps() -> None:
    agent = make_dqn()
    agent.learn(60)
    sequences = agent.replay_buffer.sample_sequences(4, 4, 1)  # type: ignore[union-attr]
    batch = counted_steps(sequences)
    assert batch.observations["observations"] is batch.next_observations["observations"]
    assert batch.observations["valid"].shape == (4, 6, 2)
