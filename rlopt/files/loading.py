"""Reading any file or folder that rlopt wrote, without running code in it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from rlopt.files.checkpoint import MANIFEST, list_checkpoints, read_manifest
from rlopt.files.state_file import read_state


def load(path: str | Path) -> dict[str, Any]:
    """Return what a file or a checkpoint of rlopt holds, as plain data: numbers, strings, arrays, tensors, dicts and lists.

    Nothing is executed, whoever made the file. To go on with an agent, give `learn` its `Checkpoints` or use its `load`.

    Args:
        path: A state file, as `save` of replays writes; the folder of a checkpoint of an agent or a trainer; or a folder of such
            checkpoints, of which the newest is taken.

    Returns:
        For a state file, its content. For a checkpoint, "manifest" (which agent or trainer, how many steps, which files), and the
        content of its state files by their name without ending, such as "state".

    Raises:
        ValueError: If it is none of these, incomplete or damaged, or would have to be unpickled.

    Example:
        >>> import tempfile
        >>> import rlopt
        >>> from rlopt.agents import DQN, Checkpoints
        >>> folder = tempfile.mkdtemp()
        >>> agent = DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu").learn(40, checkpoints=Checkpoints(folder))
        >>> found = rlopt.load(folder)
        >>> found["manifest"]["agent"], found["manifest"]["num_timesteps"], sorted(found["state"]["modules"])
        ('DQN', 40, ['policy', 'policy.optimizer'])
    """
    path = Path(path)
    if path.is_dir():
        inside = list_checkpoints(path)
        if not (path / MANIFEST).exists() and inside:
            path = inside[-1]
        manifest = read_manifest(path)
        return {"manifest": manifest} | {file.stem: read_state(file) for file in sorted(path.glob("*.npz"))}
    if _needs_pickle(path):
        raise ValueError(
            f"{path} must be a file without code, but reading this one can run what its author put there: if you trust it, use "
            f"what it was made for, such as an agent's `load` or `torch.load`."
        )
    return read_state(path)


def _needs_pickle(path: Path) -> bool:
    """Whether a file is one of Stable-Baselines3 or PyTorch, or a pickle."""
    if not path.is_file():
        return False
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (OSError, ValueError, zipfile.BadZipFile):
            return False
        return any(name.endswith((".pkl", ".pth")) or name == "_stable_baselines3_version" for name in names)
    with path.open("rb") as file:
        return file.read(2) in {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}
