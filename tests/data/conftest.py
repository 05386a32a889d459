import os
from pathlib import Path

import pytest


@pytest.fixture
def data_dir() -> Path:
    """Folder of the real data sets; tests that need it are skipped without it."""
    folder = os.environ.get("RLOPT_DATA_DIR")
    if not folder or not (Path(folder) / "mnist").is_dir():
        pytest.skip("needs the published data sets: set RLOPT_DATA_DIR to a folder that holds them")
    return Path(folder)


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and no RLOPT_DATA_DIR; returns the folder of data sets in the cache."""
    monkeypatch.delenv("RLOPT_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rlopt" / "data"
