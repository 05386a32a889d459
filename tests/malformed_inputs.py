"""Bad inputs, each with the one sentence that it is answered with; `test_malformed.py` tries them, `docs/errors.md` lists them."""

from __future__ import annotations

import gzip
import importlib
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

import rlopt_envs  # noqa: F401  # registers its environments
from rlopt.agents import DDPG, DQN, PPO, SAC, TD3, Checkpoints, GymnasiumVecEnv, HistoryWrapper, SequenceLearning
from rlopt.data import load
from rlopt.data.idx import read_idx
from rlopt.nn import MoEConfig, Transformer, TransformerConfig
from rlopt.optim import LBFGS, Adam, LocoPropSpec, Sam, Sgd, build_optimizer
from rlopt.replay import PrioritizedReplay, UniformReplay
from rlopt.study.files import write_json
from rlopt.study.grid import expand
from rlopt.study.record import update_study
from rlopt.study.task import Task
from rlopt.supervised import ArrayData, EarlyStopping, Trainer, TrainerConfig

Work = Callable[[Path], object]


@dataclass(frozen=True)
class Row:
    """One bad input."""

    group: str
    what: str
    """In words, or the command line, where TMP is a new folder."""
    message: str
    """All that is said; `...` stands for anything, TMP for the folder."""
    work: Work | None = None
    """What is done in the folder; None: `what` is a command line, which ends with status 2."""
    before: Work | None = None
    """What is done in the folder before; after `work`, everything in it must be as it was."""
    kind: type[Exception] = ValueError
    """Type of the error."""


BOX, DISCRETE = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)
UNBOUNDED = spaces.Box(-np.inf, np.inf, (2,))
MLP = "MlpPolicy"


class Anything(gym.Env[Any, Any]):
    """An environment with any spaces, which returns what it is told to."""

    def __init__(self, observations: Any, actions: Any, gives: Any = None, reward: Any = 0.0) -> None:
        self.observation_space, self.action_space, self.gives, self.reward = observations, actions, gives, reward

    def _see(self) -> Any:
        return self.observation_space.sample() if self.gives is None else self.gives

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return self._see(), {}

    def step(self, action: Any) -> Any:
        return self._see(), self.reward, False, False, {}


def commands() -> list[Row]:
    """Command lines."""
    rows = {
        "rlopt": "a command must be given, one of status, report, compare, power",
        "rlopt statos TMP": "Unrecognized options: statos, TMP; did you mean status?",
        "rlopt status": "RUNS must be given; --help says what it is",
        "rlopt status TMP": "TMP must be the folder of a study, but it has no study.json",
        "rlopt report TMP/missing": "TMP/missing must be the folder of a study, but it has no study.json",
        "rlopt compare TMP": "RUNS_B must be given; --help says what it is",
        "replay --agnet dqn": "Unrecognized options: --agnet, dqn; did you mean --agent?",
        "replay stray": "Unrecognized options: stray",
        "replay --agent a2c": "agent must be one of auto, dqn, ddpg, td3, sac, got a2c",
        "replay --seeds two": "seeds must be a whole number, got 'two'",
        "replay --seeds 1.5": "seeds must be a whole number, got '1.5'",
        "replay --jobs 0": "jobs must be > 0, got 0",
        "replay --total-timesteps -5": "total_timesteps must be > 0, got -5",
        "replay --learning-rate fast": "learning_rate must be None or a number, got fast",
        "replay --learning-rate inf": "learning_rate must be a finite number, got inf",
        "replay --learning-rate nan": "learning_rate must be > 0, got nan",
        "replay --gamma 2": "gamma must be in (0, 1], got 2.0",
        "replay --prioritized.alpha nan": "alpha must be at least 0, got nan",
        "replay --prioritized-lr-factor 0.5 --replays uniform": (
            "prioritized_lr_factor has no effect: prioritized is not among the replays; drop the option"
        ),
        "replay --env-id": "env_id must be different names, got none",
        "replay --env-id CartPol-v1": (
            "env_id must be an environment that is installed, got CartPol-v1; did you mean CartPole-v1...?"
        ),
        "replay --env-id Pendulum-v1 --agent dqn": (
            "agent must be td3 or ddpg or sac for the continuous actions of Pendulum-v1, got dqn"
        ),
        "replay --env-id Blackjack-v1": "env_id must have Box, Discrete or Dict observations, those of Blackjack-v1 are a Tuple",
        "replay --replays unifrom": "replays must be among uniform, ... introspective, got unifrom; did you mean uniform?",
        "replay --replays hindsight": "replays must not hold hindsight for CartPole-v1: its observations have no desired_goal",
        "replay --device tpu": "device must be one that this machine has, got tpu; try cpu or cuda",
        "replay --preset best": "preset must be one of tuned, paper, quickstart, got best",
        "control --action-limit inf": "action_limit must be a finite number, got inf",
        "control --discount 1": "discount must be in (0, 1), got 1.0",
        "deep_autoencoder --optimizers adan": "optimizers must be among sgd, ... got adan; did you mean adam?",
        "efficient_attention --num-heads 3": "num_heads must divide width = 64, got 3",
        "feature_selection --k 0": "k must be > 0, got 0",
        "language_model --warmup-steps 100000000": "warmup_steps must be in [0, num_steps = ...), got 100000000",
        "linear_q_learning --methods qlaerning": (
            "methods must be among qlearning, ... qrex_dare, got qlaerning; did you mean qlearning...?"
        ),
        "mixture_of_experts --seeds 0": "seeds must be > 0, got 0",
        "rl_optimizers --optimizers adan": "optimizers must be among sgd, ... got adan; did you mean adam...?",
        "system_identification --noise-std -1": "noise_std must be > 0, got -1.0",
        "train_language_model --num-experts 2 --top-k 3": "num_experts must be > 1 and at least top_k = 3, got 2",
        "train_language_model --num-layers 0 --output TMP": "num_layers must be > 0, got 0",
        "transformer_policy --tasks tmase": "tasks must be among ..., got tmase; did you mean tmaze?",
    }
    return [Row("command lines", f"{line}", f"error: {message}\n") for line, message in rows.items()]


# Folders of studies

REPLAY_STUDY = ["--preset", "quickstart", "--seeds", "1", "--name", "s"]


def make_study(folder: Path) -> None:
    """What `replay --preset quickstart --seeds 1 --name s --output FOLDER` leaves when it is stopped at once."""
    options = importlib.import_module("replay").prepare([*REPLAY_STUDY, "--output", str(folder)])
    for run in expand(options["folder"], options["tasks"], options["variants"], range(1)):
        run.folder.mkdir(parents=True)
        write_json(run.folder / "config.json", run.config)
    update_study(options["folder"], options["tasks"], list(options["variants"]), None, "a command")


def small_study(folder: Path) -> None:
    """A study with one run."""
    run = folder / "t" / "v" / "seed_0"
    run.mkdir(parents=True)
    write_json(run / "config.json", {"task": "t", "variant": "v", "seed": 0})
    write_json(run / "manifest.json", {"status": "finished"})
    (run / "evaluations.csv").write_text("step,score,seconds\n1,2.0,3.0\n")
    update_study(folder, [Task("t", 10)], ["v"], None, "a command")


def with_file(name: str, content: str | bytes, make: Work = small_study) -> Work:
    """A study one of whose files holds something else."""

    def before(folder: Path) -> None:
        make(folder)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return before


def studies() -> list[Row]:
    """Folders of studies."""
    resume = f"replay {' '.join(REPLAY_STUDY)} --output TMP"
    run = "t/v/seed_0"
    broken = {
        "study.json": [
            ("{", "TMP/study.json is not valid JSON (...); delete it or restore it"),
            ("[1]", "TMP/study.json must hold a JSON object, got list"),
            ('{"tasks": 3}', "TMP/study.json must hold tasks, variants, baseline and commands, got a problem with ..."),
            (b"\xff\xfe\x00", "TMP/study.json is not valid JSON (...); delete it or restore it"),
        ],
        f"{run}/config.json": [
            ("{'a': 1}", f"TMP/{run}/config.json is not valid JSON (...); delete it or restore it"),
            ('"text"', f"TMP/{run}/config.json must hold a JSON object, got str"),
            (
                '{"task": "t", "variant": "v"}',
                f"TMP/{run}/config.json must hold the task, variant and seed of a run, got no seed; restore it",
            ),
            (
                '{"task": "t", "variant": "v", "seed": NaN}',
                f"TMP/{run}/config.json is not valid JSON (NaN is not a value of JSON); delete it or restore it",
            ),
        ],
        f"{run}/manifest.json": [("", f"TMP/{run}/manifest.json is not valid JSON (...); delete it or restore it")],
        f"{run}/evaluations.csv": [
            (
                "step,score\n1,x\n",
                f"TMP/{run}/evaluations.csv must have the columns step, score, seconds; delete this run's folder",
            ),
            ("", f"TMP/{run}/evaluations.csv must have the columns step, score, seconds; delete this run's folder"),
            (
                "step,score,seconds\n1,nan,2\n",
                f"TMP/{run}/evaluations.csv must hold finite scores, got nan at step 1; delete this run's folder",
            ),
        ],
    }
    rows = [
        Row(
            "studies",
            f"{resume} --gamma 0.5 (a study of another gamma)",
            "error: TMP/s/CartPole-v1/.../seed_0 holds a run with options.gamma = ..., but options.gamma = 0.5 is asked for...\n",
            before=make_study,
        ),
    ]
    for name, cases in broken.items():
        for content, message in cases:
            shown = repr(content) if content else "nothing"
            what = f"rlopt report TMP ({name} holds {shown})"
            rows.append(Row("studies", what, f"error: {message}\n", before=with_file(name, content)))
    return rows


# Files that hold states


def trainer(folder: Path | None = None, optimizer: Any = None, width: int = 3, **options: Any) -> Trainer:
    """A small trainer."""
    x = torch.linspace(-1, 1, 12).reshape(-1, 3)
    data = ArrayData(x, x.sum(1, keepdim=True), batch_size=4)
    config = TrainerConfig(num_steps=2, **options)
    model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 1))
    return Trainer(model, nn.functional.mse_loss, optimizer or Adam(), data, config, folder=folder)


def changed(part: str, change: Callable[[bytes], bytes], make: Work) -> Work:
    """Make something, then change the content of one of its files."""

    def before(folder: Path) -> None:
        make(folder)
        path = folder / part
        path.write_bytes(change(path.read_bytes()))

    return before


def flipped(data: bytes) -> bytes:
    """One bit in the middle is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


class Harmful:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def pickled() -> bytes:
    """A pickle that makes a folder."""
    return pickle.dumps(Harmful())


def trained(folder: Path) -> None:
    """A folder with the checkpoint of a trainer."""
    trainer(folder).train()


def folder_in_place(part: str, make: Work) -> Work:
    """Make something, then put a folder in the place of a file."""

    def before(folder: Path) -> None:
        make(folder)
        (folder / part).unlink()
        (folder / part).mkdir()

    return before


def with_foreign_file(part: str, make: Work) -> Work:
    """Make something, then add a file that would run code if it was unpickled."""

    def before(folder: Path) -> None:
        make(folder)
        (folder / part).write_bytes(pickled())

    return before


def trainer_checkpoints() -> list[Row]:
    """Checkpoints of the trainer."""
    place = "checkpoints/step_00000002"
    state, manifest = f"{place}/state.npz", f"{place}/manifest.json"
    resume: Work = lambda folder: trainer(folder).resume()  # noqa: E731
    end = "and there is no good one before it: move it away to start again."
    other = f"TMP/{place} is damaged: state.npz is not as it was written, {end}"
    foreign = f"TMP/{place} must be the folder of a checkpoint, with a manifest.json, but ..., {end}"
    cases: list[tuple[str, str, Work]] = [
        ("state.npz is truncated", other, changed(state, lambda data: data[:-100], trained)),
        ("state.npz has a flipped bit", other, changed(state, flipped, trained)),
        ("state.npz is empty", other, changed(state, lambda _: b"", trained)),
        ("state.npz is a pickle", other, changed(state, lambda _: pickled(), trained)),
        (
            "state.npz is a folder",
            f"TMP/{place} is not complete: the file state.npz is missing, {end}",
            folder_in_place(state, trained),
        ),
        ("manifest.json is truncated", foreign, changed(manifest, lambda data: data[:-10], trained)),
        (
            "manifest.json is that of something else",
            f"TMP/{place} must be a checkpoint of the format 'rlopt-checkpoint-1', got None, {end}",
            changed(manifest, lambda _: b'{"step": 1}', trained),
        ),
        (
            "a file that does not belong there",
            f"TMP/{place} has a file evil.pt that its manifest.json does not know: remove it, {end}",
            with_foreign_file(f"{place}/evil.pt", trained),
        ),
    ]
    rows = [Row("checkpoints of the trainer", what, message, resume, before) for what, message, before in cases]
    fits = [
        (
            "of another optimizer",
            f"optimizer must be that of the run in TMP/{place}, 'Adam', got 'SGD'.",
            lambda folder: trainer(folder, Sgd()).resume(),
        ),
        (
            "of another seed",
            f"seed must be that of the run in TMP/{place}, 0, got 4.",
            lambda folder: trainer(folder, seed=4).resume(),
        ),
        (
            "of another network",
            f"model and optimizer must be those of the run in TMP/{place}, got others: ...",
            lambda folder: trainer(folder, width=4).resume(),
        ),
        (
            "without `resume()`",
            "folder must be a new one, or resume() called first, got TMP with checkpoints of a run.",
            lambda folder: trainer(folder).train(),
        ),
    ]
    return rows + [Row("checkpoints of the trainer", what, message, work, trained) for what, message, work in fits]


def filled(folder: Path) -> None:
    """A file with a replay."""
    replay = UniformReplay(20, BOX, DISCRETE)
    for i in range(10):
        replay.add(np.full((1, 3), 0.1 * i), np.zeros((1, 3)), np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])
    replay.save(folder / "replay.npz")


def foreign_npz(folder: Path) -> None:
    """A file of NumPy that is not ours."""
    np.savez(folder / "replay.npz", x=np.zeros(3))


def lying_npz(folder: Path) -> None:
    """A small file of NumPy whose array says that it has 2^50 numbers."""
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1125899906842624,), }"
    header += b" " * (64 - (10 + len(header) + 1) % 64) + b"\n"
    with zipfile.ZipFile(folder / "replay.npz", "w") as archive:
        archive.writestr("json.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"12")


def replay_files() -> list[Row]:
    """Files of replays."""
    read: Work = lambda folder: UniformReplay(20, BOX, DISCRETE).load(folder / "replay.npz")  # noqa: E731
    message = "'TMP/replay.npz' is not a state file of rlopt, or it is damaged (...)."
    name = "replay.npz"
    cases: list[tuple[str, str, Work | None, Work]] = [
        ("a replay file is missing", "'TMP/replay.npz' does not exist.", None, read),
        ("a replay file is truncated", message, changed(name, lambda data: data[: len(data) // 2], filled), read),
        ("a replay file has a flipped bit", message, changed(name, flipped, filled), read),
        ("a replay file is empty", message, changed(name, lambda _: b"", filled), read),
        ("a replay file is a pickle", message, changed(name, lambda _: pickled(), filled), read),
        ("a replay file is another file of NumPy", message, foreign_npz, read),
        ("a replay file says that it is huge", message, lying_npz, read),
        ("a replay file is a folder", message, lambda folder: (folder / name).mkdir(), read),
        (
            "a replay file is of another size",
            "The saved replay buffer has capacity=20, this one 30: build it with the same options.",
            filled,
            lambda folder: UniformReplay(30, BOX, DISCRETE).load(folder / name),
        ),
        (
            "a replay file is of another space",
            "The saved replay buffer has observation_space='Box(-1.0, 1.0, (3,), float32)', this one "
            "'Box(-1.0, 1.0, (4,), float32)': build it with the same options.",
            filled,
            lambda folder: UniformReplay(20, spaces.Box(-1, 1, (4,)), DISCRETE).load(folder / name),
        ),
        (
            "a replay file is of another replay",
            "The saved replay buffer has replay='UniformReplay', this one 'PrioritizedReplay': build it with the same options.",
            filled,
            lambda folder: PrioritizedReplay(20, BOX, DISCRETE).load(folder / name),
        ),
    ]
    return [Row("replay files", what, said, work, before) for what, said, before, work in cases]


# Data


def mnist_with(content: bytes) -> Work:
    """A folder of MNIST whose first file holds this."""

    def before(folder: Path) -> None:
        (folder / "mnist").mkdir()
        for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
            (folder / "mnist" / f"{name}.gz").write_bytes(content)

    return before


def text_with(content: bytes) -> Work:
    """A folder of Shakespeare that holds this."""

    def before(folder: Path) -> None:
        (folder / "tiny_shakespeare").mkdir()
        (folder / "tiny_shakespeare" / "input.txt").write_bytes(content)

    return before


def idx_with(content: bytes) -> Work:
    """A file in the format IDX, or nearly."""
    return lambda folder: (folder / "x.idx").write_bytes(content)


def nowhere(name: str) -> Work:
    """Load a data set with RLOPT_DATA_DIR at a folder without it, and no download."""

    def work(folder: Path) -> None:
        kept = {key: os.environ.get(key) for key in ("RLOPT_DATA_DIR", "XDG_CACHE_HOME")}
        os.environ |= {"RLOPT_DATA_DIR": str(folder / "wrong"), "XDG_CACHE_HOME": str(folder / "cache")}
        try:
            load(name, download=False)
        finally:
            for key, value in kept.items():
                os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)

    return work


def data_files() -> list[Row]:
    """Data sets and their files."""
    published = "TMP/mnist/train-images-idx3-ubyte.gz must "
    mnist: Work = lambda folder: load("mnist", root=folder, download=False)  # noqa: E731
    shakespeare: Work = lambda folder: load("tiny_shakespeare", root=folder, download=False)  # noqa: E731
    idx: Work = lambda folder: read_idx(folder / "x.idx")  # noqa: E731
    cases: list[tuple[str, str, Work | None, Work]] = [
        ("load('minst')", "name must be one of digits, ... got 'minst'; did you mean mnist?", None, lambda _: load("minst")),
        ("load('digits', num=3)", "data set 'digits' has no options, got option 'num'.", None, lambda _: load("digits", num=3)),
        ("load('curves', num=0)", "num must be >= 1, got 0.", None, lambda _: load("curves", num=0)),
        (
            "a file of MNIST is truncated",
            f"{published}be a complete gzip file, got a damaged one (...); delete it and load again.",
            mnist_with(gzip.compress(bytes(100))[:-12]),
            mnist,
        ),
        (
            "a file of MNIST is no gzip file",
            f"{published}be a complete gzip file, got a damaged one (...); delete it and load again.",
            mnist_with(b"<html>"),
            mnist,
        ),
        (
            "a file of MNIST holds other data",
            f"{published}hold the published data (md5 ... after decompression), got other content ...",
            mnist_with(gzip.compress(b"other")),
            mnist,
        ),
        (
            "a text is empty",
            "TMP/tiny_shakespeare/input.txt must hold the published data ..., got other content (md5 ..., 0 bytes); ...",
            text_with(b""),
            shakespeare,
        ),
        (
            "an IDX file has another magic number",
            "TMP/x.idx: an IDX file of bytes must begin with 00 00 08, got 00 00 0d 01.",
            idx_with(bytes([0, 0, 13, 1, 0, 0, 0, 1, 0])),
            idx,
        ),
        (
            "an IDX file is cut in its header",
            "TMP/x.idx: an IDX file with 3 axes must have a header of 16 bytes, got 5 bytes in all.",
            idx_with(bytes([0, 0, 8, 3, 0])),
            idx,
        ),
        (
            "an IDX file has too few values",
            "TMP/x.idx: an IDX file of shape (5,) must hold 5 values, got 2.",
            idx_with(bytes([0, 0, 8, 1, 0, 0, 0, 5, 1, 2])),
            idx,
        ),
        (
            "an IDX file says that it is huge",
            "TMP/x.idx: an IDX file of shape (4294967295,) must hold 4294967295 values, got 0.",
            idx_with(bytes([0, 0, 8, 1, 255, 255, 255, 255])),
            idx,
        ),
        ("an IDX file is empty", "TMP/x.idx: an IDX file of bytes must begin with 00 00 08, got nothing.", idx_with(b""), idx),
    ]
    rows = [Row("data", what, said, work, before) for what, said, before, work in cases]
    missing = (
        "data set 'mnist' is in none of TMP/wrong, TMP/cache/rlopt/data, and download is off; put train-images-idx3-ubyte.gz, ... "
        "into a folder 'mnist' and give the folder above it as root or as RLOPT_DATA_DIR."
    )
    return [
        *rows,
        Row("data", "RLOPT_DATA_DIR is a folder without the data set", missing, nowhere("mnist"), kind=FileNotFoundError),
    ]


# Agents and environments


def learns(kind: Any, env: gym.Env[Any, Any]) -> Work:
    """Let an agent learn a little."""
    options = {"n_steps": 8, "batch_size": 8} if kind is PPO else {"learning_starts": 4, "buffer_size": 50}
    return lambda _: kind(MLP, env, device="cpu", **options).learn(16)


def environments() -> list[Row]:
    """Environments that an agent cannot use."""
    pictures = spaces.Dict({"image": spaces.Box(0, 255, (36, 36, 3), np.uint8), "speed": BOX})
    pair = spaces.Tuple((BOX, DISCRETE))
    ends = "there is no checkpoint; see what the environment computes."
    cases: list[tuple[str, str, Work]] = [
        (
            "DQN with Box actions",
            "env must have Discrete actions for DQN, got Box(-2.0, 2.0, (1,), float32).",
            lambda _: DQN(MLP, "Pendulum-v1"),
        ),
        ("TD3 with Discrete actions", "env must have Box actions for TD3, got Discrete(2).", lambda _: TD3(MLP, "CartPole-v1")),
        ("SAC with Discrete actions", "env must have Box actions for SAC, got Discrete(2).", lambda _: SAC(MLP, "CartPole-v1")),
        (
            "DDPG with MultiDiscrete actions",
            "env must have Box actions for DDPG, got MultiDiscrete([2 2]).",
            lambda _: DDPG(MLP, Anything(BOX, spaces.MultiDiscrete([2, 2]))),
        ),
        (
            "PPO with Dict actions",
            "env must have Box or Discrete or MultiDiscrete or MultiBinary actions for PPO, got Dict('a': Discrete(2)).",
            lambda _: PPO(MLP, Anything(BOX, spaces.Dict({"a": DISCRETE}))),
        ),
        (
            "SAC with unbounded actions",
            "env must have actions with finite bounds for SAC, got Box(-inf, inf, (2,), float32): bound its action_space.",
            lambda _: SAC(MLP, Anything(BOX, UNBOUNDED)),
        ),
        (
            "PPO with unbounded actions",
            "env must have actions with finite bounds for PPO, got Box(-inf, inf, (2,), float32): bound its action_space.",
            lambda _: PPO(MLP, Anything(BOX, UNBOUNDED)),
        ),
        (
            "PPO with Tuple observations",
            "env must have Box, Discrete, MultiDiscrete, MultiBinary or Dict observations, got Tuple(...).",
            lambda _: PPO(MLP, Anything(pair, DISCRETE)),
        ),
        (
            "DQN with Tuple observations",
            "observation_space must be a Box, Discrete, MultiDiscrete or MultiBinary space, got Tuple(...).",
            lambda _: DQN(MLP, Anything(pair, DISCRETE)),
        ),
        (
            "MlpPolicy with Dict observations and images",
            "You must use `MultiInputPolicy` when working with dict observation space, not MlpPolicy",
            lambda _: DQN(MLP, Anything(pictures, DISCRETE)),
        ),
        (
            "MultiInputPolicy with Box observations",
            "policy must be MlpPolicy or CnnPolicy, as observations are no Dict, got MultiInputPolicy for Box(...).",
            lambda _: DQN("MultiInputPolicy", Anything(BOX, DISCRETE)),
        ),
        (
            "CnnPolicy with vectors",
            "policy must be MlpPolicy, as observations are no images, got CnnPolicy for Box(-1.0, 1.0, (3,), float32).",
            lambda _: PPO("CnnPolicy", Anything(BOX, DISCRETE)),
        ),
        (
            "observations of another shape",
            "env must return observations of its space Box(-1.0, 1.0, (3,), float32), got others: could "
            "not broadcast input array from shape (4,) into shape (3,).",
            learns(DQN, Anything(BOX, DISCRETE, np.zeros(4, np.float32))),
        ),
        (
            "observations that are text",
            "env must return observations of its space Box(-1.0, 1.0, (3,), float32), got others: could "
            "not convert string to float: 'abc'.",
            learns(PPO, Anything(BOX, DISCRETE, "abc")),
        ),
        (
            "an environment of another kind",
            "env must be a gymnasium.vector.VectorEnv, got TimeLimit.",
            lambda _: GymnasiumVecEnv(gym.make("CartPole-v1")),
        ),
        ("no environment", "env must be an environment, or the id of one, got None.", lambda _: DQN(MLP, None)),
        (
            "sequences without histories",
            "sequences needs observations of a HistoryWrapper or VecHistory, got Box(...): wrap the environment.",
            lambda _: DQN(MLP, "CartPole-v1", sequences=SequenceLearning()),
        ),
        ("a history of length 0", "length must be at least 1, got 0.", lambda _: HistoryWrapper(gym.make("CartPole-v1"), length=0)),
        (
            "an LQR whose matrices do not fit",
            "B must have shape (2, m) with m >= 1, got (3, 3); its rows belong to the states of A.",
            lambda _: gym.make("rlopt/LQR-v0", A=np.eye(2), B=np.eye(3)),
        ),
        (
            "a reward that is nan",
            f"step 1: the reward of environment 0 is nan; {ends}",
            learns(DQN, Anything(BOX, DISCRETE, reward=np.nan)),
        ),
        (
            "an observation that is nan",
            f"step 0: the observation of environment 0 is nan; {ends}",
            learns(PPO, Anything(BOX, DISCRETE, np.full(3, np.nan, np.float32))),
        ),
        (
            "an observation that is infinite",
            f"step 0: the observation of environment 0 is inf; {ends}",
            learns(DQN, Anything(BOX, DISCRETE, np.full(3, np.inf, np.float32))),
        ),
    ]
    kinds = {"an environment of another kind": TypeError} | dict.fromkeys(
        ("a reward that is nan", "an observation that is nan", "an observation that is infinite"), FloatingPointError
    )
    rows = [Row("environments", what, said, work, kind=kinds.get(what, ValueError)) for what, said, work in cases]
    unknown = "Environment `CartPol` doesn't exist. Did you mean: `CartPole`?"
    return [*rows, Row("environments", "an unknown id", unknown, lambda _: DQN(MLP, "CartPol-v1"), kind=gym.error.Error)]


def options() -> list[Row]:
    """Options of agents, replays, optimizers, networks, and trainers."""
    cart = "CartPole-v1"
    cases: list[tuple[str, str, Work]] = [
        ("PPO(gamma=1.5)", "gamma must be a finite number in [0, 1], got 1.5.", lambda _: PPO(MLP, cart, gamma=1.5)),
        ("DQN(batch_size=0)", "batch_size must be a whole number >= 1, got 0.", lambda _: DQN(MLP, cart, batch_size=0)),
        ("DQN(batch_size=2.5)", "batch_size must be a whole number >= 1, got 2.5.", lambda _: DQN(MLP, cart, batch_size=2.5)),
        ("SAC(tau=-1)", "tau must be a finite number in [0, 1], got -1.", lambda _: SAC(MLP, "Pendulum-v1", tau=-1)),
        (
            "TD3(learning_rate=nan)",
            "learning_rate must be a finite number >= 0, got nan.",
            lambda _: TD3(MLP, "Pendulum-v1", learning_rate=np.nan),
        ),
        (
            "DQN(device='tpu')",
            "device must be one that this machine has, such as cpu or cuda, got tpu.",
            lambda _: DQN(MLP, cart, device="tpu"),
        ),
        ("DQN(bufer_size=3)", "DQN has no option 'bufer_size'; did you mean buffer_size?", lambda _: DQN(MLP, cart, bufer_size=3)),
        ("DQN().learn(-5)", "total_timesteps must be >= 0, got -5.", lambda _: DQN(MLP, cart).learn(-5)),
        (
            "DQN(non_finite='ignore')",
            "non_finite must be 'raise' or 'skip', got 'ignore'.",
            lambda _: DQN(MLP, cart, non_finite="ignore"),
        ),
        (
            "DQN(optimizer='adan')",
            "optimizer must be among sgd, ..., got 'adan'; did you mean adam?",
            lambda _: DQN(MLP, cart, optimizer="adan"),
        ),
        (
            "DQN(optimizer=LBFGS(), max_grad_norm=1.0)",
            "max_grad_norm must be left out or math.inf with LBFGS, which does not step along the gradient, got 1.0: drop it.",
            lambda _: DQN(MLP, cart, optimizer=LBFGS(), max_grad_norm=1.0),
        ),
        ("Checkpoints(every=0)", "every must be > 0, got 0.", lambda folder: Checkpoints(folder, every=0)),
        ("SequenceLearning(length=0)", "length must be > 0, got 0.", lambda _: SequenceLearning(length=0)),
        (
            "UniformReplay(n_steps=0)",
            "n_steps must be a whole number of at least 1, got 0.",
            lambda _: UniformReplay(10, BOX, DISCRETE, n_steps=0),
        ),
        (
            "UniformReplay(layout='dense')",
            "layout must be 'plain' or 'shared', got 'dense'.",
            lambda _: UniformReplay(10, BOX, DISCRETE, layout="dense"),
        ),
        (
            "PrioritizedReplay(alpha=inf)",
            "alpha must be at least 0, got inf.",
            lambda _: PrioritizedReplay(10, BOX, DISCRETE, alpha=np.inf),
        ),
        (
            "a draw from an empty replay",
            "sample: the replay buffer is empty; add transitions first (learning_starts > 0).",
            lambda _: UniformReplay(10, BOX, DISCRETE).sample(3),
        ),
        ("Adam(lr=nan)", "lr must be a finite number >= 0, got nan.", lambda _: Adam(lr=np.nan)),
        ("Sgd(momentum=-1)", "momentum must be in [0, 1), got -1.0.", lambda _: Sgd(momentum=-1.0)),
        ("Sam(rho=nan)", "rho must be > 0, got nan.", lambda _: build_optimizer(Sam(rho=np.nan), nn.Linear(1, 1))),
        (
            "LocoPropSpec(variant='both')",
            "variant must be one of ('squared', 'matching'), got 'both'.",
            lambda _: build_optimizer(LocoPropSpec(variant="both"), nn.Linear(1, 1)),
        ),
        (
            "an optimizer for no parameters",
            "module must have parameters, got a ReLU without.",
            lambda _: build_optimizer("adam", nn.ReLU()),
        ),
        (
            "TransformerConfig(width=10, num_heads=3)",
            "num_heads must be a divisor of width, got 3 heads for width 10.",
            lambda _: TransformerConfig(width=10, num_heads=3),
        ),
        ("TransformerConfig(dropout=nan)", "dropout must be in [0, 1), got nan.", lambda _: TransformerConfig(dropout=np.nan)),
        (
            "Transformer with MoEConfig(num_experts=0)",
            "top_k must be at most num_experts (0), got 2.",
            lambda _: Transformer(TransformerConfig(moe=MoEConfig(num_experts=0))),
        ),
        (
            "TrainerConfig(precision='float8')",
            "precision must be 'float32', 'bfloat16' or 'float16', got 'float8'.",
            lambda _: TrainerConfig(precision="float8"),
        ),
        (
            "TrainerConfig(early_stopping=...) without eval_every",
            "eval_every must be given with early_stopping, got None.",
            lambda _: TrainerConfig(early_stopping=EarlyStopping()),
        ),
        (
            "Trainer without a folder for save_every",
            "folder must be given with save_every, got None.",
            lambda _: trainer(save_every=1),
        ),
    ]
    kinds: dict[str, Any] = {"DQN(bufer_size=3)": TypeError}
    return [Row("options", what, said, work, kind=kinds.get(what, ValueError)) for what, said, work in cases]


def all_rows() -> list[Row]:
    """The table."""
    parts = (commands, studies, trainer_checkpoints, replay_files, data_files, environments, options)
    return [row for part in parts for row in part()]
