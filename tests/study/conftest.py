import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `synthetic`, `folders`, `searching` and `parabolas`


@pytest.fixture
def no_disk(monkeypatch):
    """Nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def fake(monkeypatch, no_disk):
    from searching import FakeStudy

    found = FakeStudy()
    monkeypatch.setattr("rlopt.study.search.run_study", found)
    return found
