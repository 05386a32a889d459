"""`load`: names and options, and the real data against the facts that their authors publish."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from rlopt.data import curves_like, load, names
from rlopt.data.published import PUBLISHED, _madelon_from_mat


def test_unknown_name_and_option_are_refused() -> None:
    with pytest.raises(ValueError, match=r"name must be one of digits, curves, .*got 'imagenet'"):
        load("imagenet")
    with pytest.raises(ValueError, match="'curves' has num, size, seed, num_test, got option 'pen'"):
        load("curves", pen=1)
    with pytest.raises(ValueError, match="'mnist' has no options, got option 'unit'"):
        load("mnist", unit="sentence")


def test_options_reach_the_generator() -> None:
    np.testing.assert_array_equal(load("curves", num=4, size=9, seed=2).inputs, curves_like(4, 9, 2).inputs)


def test_digits_need_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'rlopt\[data\]'"):
        load("digits")


def test_digits_are_all_there() -> None:
    pytest.importorskip("sklearn", reason="the data set comes with scikit-learn")
    data = load("digits")
    assert data.test_targets is not None
    assert (len(data.inputs), len(data.test_targets)) == (1500, 297)
    assert (data.inputs.min(), data.inputs.max()) == (0.0, 1.0)


def test_missing_data_set_names_its_files(no_data: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte.gz, .*RLOPT_DATA_DIR"):
        load("mnist", download=False)


def test_every_name_loads_and_tells_its_licence_and_source(data_dir: Path) -> None:
    for name in names():
        if name == "digits":
            continue
        data = load(name, data_dir, download=False)
        assert data.name == name
        assert data.license
        assert data.source


@pytest.mark.parametrize(
    ("name", "counts"),
    [("mnist", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]), ("fashion_mnist", [6000] * 10)],
)
def test_images_have_the_published_counts(data_dir: Path, name: str, counts: list[int]) -> None:
    data = load(name, data_dir)
    assert data.inputs.shape == (60_000, 28, 28)
    assert data.inputs.dtype == np.uint8
    assert np.bincount(data.targets).tolist() == counts  # type: ignore[arg-type]


def test_characters_are_those_of_the_text_and_targets_are_the_next_ones(data_dir: Path) -> None:
    data = load("tiny_shakespeare", data_dir)
    assert data.test_inputs is not None
    assert data.targets is not None
    assert (len(data.inputs) + 1, len(data.test_inputs) + 1, len(data.target_names)) == (1_003_854, 111_540, 65)
    assert "".join(data.target_names[code] for code in data.inputs[:14]) == "First Citizen:"
    assert "".join(data.target_names[code] for code in data.targets[:13]) == "irst Citizen:"
    assert data.targets.base is data.inputs.base, "targets share the memory of the inputs"


def test_madelon_is_balanced(data_dir: Path) -> None:
    data = load("madelon", data_dir)
    assert data.targets is not None
    assert data.test_targets is not None
    assert data.inputs.shape == (2000, 500)
    assert len(data.feature_names) == 500
    assert (int(data.inputs.min()), int(data.inputs.max())) == (0, 999)
    assert int(data.targets.sum() + data.test_targets.sum()) == 1300
    assert int(data.test_targets.sum()) == 300


def test_madelon_comes_out_of_the_published_matlab_file_with_the_published_checksum(data_dir: Path, tmp_path: Path) -> None:
    from scipy.io import savemat

    rows = np.loadtxt(data_dir / "madelon" / "madelon.csv.gz", delimiter=",")
    savemat(tmp_path / "madelon.mat", {"X": rows[:, :-1], "Y": rows[:, -1:].astype(np.int16)})
    content = _madelon_from_mat(tmp_path / "madelon.mat")
    assert hashlib.md5(content).hexdigest() == PUBLISHED["madelon"].files[0].md5


def test_mice_have_fifteen_measurements_each(data_dir: Path) -> None:
    data = load("mice_protein", data_dir)
    assert data.targets is not None
    assert data.groups is not None
    assert data.inputs.shape == (1080, 77)
    assert int(np.isnan(data.inputs).sum()) == 1396
    assert np.bincount(data.groups).tolist() == [15] * 72
    counts = dict(zip(data.target_names, np.bincount(data.targets).tolist(), strict=True))
    assert counts["c-CS-m"] == 150
    assert counts["t-CS-s"] == 105
    assert all(len(set(data.targets[data.groups == mouse])) == 1 for mouse in range(72)), "a mouse is of one class"
    assert (data.feature_names[0], data.feature_names[-1]) == ("DYRK1A_N", "CaNA_N")


def test_answers_lie_in_the_candidates(data_dir: Path) -> None:
    import json

    sentences, paragraphs = load("xquad_r", data_dir), load("xquad_r", data_dir, unit="paragraph")
    assert (len(sentences.inputs), len(sentences.target_names), len(paragraphs.target_names)) == (1190, 1180, 240)
    assert sentences.groups is not None
    assert len(np.unique(sentences.groups)) == 48
    answers = {
        question["question"]: question["answers"][0]["text"]
        for article in json.loads((data_dir / "xquad_r" / "en.json").read_text())["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    for data, least in ((sentences, 0.98), (paragraphs, 1.0)):
        assert data.targets is not None
        inside = [
            answers[str(question)] in data.target_names[target] for question, target in zip(data.inputs, data.targets, strict=True)
        ]
        assert np.mean(inside) >= least
    with pytest.raises(ValueError, match="unit must be 'sentence' or 'paragraph'"):
        load("xquad_r", data_dir, unit="article")
