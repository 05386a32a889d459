"""The published data sets: their files, addresses, licences, and how to read them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from rlopt.data.dataset import Dataset
from rlopt.data.files import SourceFile
from rlopt.data.idx import parse_idx

Contents = Mapping[str, bytes]

_IMAGES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
_GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Published:
    """A data set that lies in files.

    Args:
        files: Its files.
        read: Makes the data set from name -> content of the files, and options.
    """

    files: tuple[SourceFile, ...]
    read: Callable[..., Dataset]


def _image_files(md5: tuple[str, str, str, str], *bases: str) -> tuple[SourceFile, ...]:
    return tuple(SourceFile(name, each, tuple(f"{base}/{name}" for base in bases)) for name, each in zip(_IMAGES, md5, strict=True))


def _read_images(contents: Contents, name: str, target_names: tuple[str, ...], license: str, source: str) -> Dataset:
    inputs, targets, test_inputs, test_targets = (parse_idx(contents[file]) for file in _IMAGES)
    return Dataset(name, inputs, targets, test_inputs, test_targets, target_names=target_names, license=license, source=source)


def _read_mnist(contents: Contents) -> Dataset:
    return _read_images(
        contents,
        "mnist",
        tuple("0123456789"),
        "CC BY-SA 3.0",
        "Y. LeCun, C. Cortes, C. J. C. Burges; LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document "
        "recognition, Proc. IEEE 86(11), 1998",
    )


def _read_fashion_mnist(contents: Contents) -> Dataset:
    return _read_images(
        contents,
        "fashion_mnist",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        "MIT, copyright 2017 Zalando SE",
        "H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747, https://github.com/zalandoresearch/fashion-mnist",
    )


def _read_tiny_shakespeare(contents: Contents) -> Dataset:
    text = contents["input.txt"].decode("ascii")
    characters = sorted(set(text))
    code_of = np.zeros(128, np.uint8)
    code_of[[ord(each) for each in characters]] = np.arange(len(characters))
    codes = code_of[np.frombuffer(contents["input.txt"], np.uint8)]
    train, test = np.split(codes, [int(0.9 * len(codes))])
    # Targets are views shifted by one: the next character.
    return Dataset(
        "tiny_shakespeare",
        train[:-1],
        train[1:],
        test[:-1],
        test[1:],
        target_names=tuple(characters),
        license="public domain",
        source="W. Shakespeare, put together by A. Karpathy, https://github.com/karpathy/char-rnn",
    )


def _madelon_from_mat(path: Path) -> bytes:
    """The table as CSV, from the MATLAB file that is published."""
    from scipy.io import loadmat  # only a download needs it

    table = loadmat(str(path))
    rows = np.column_stack([table["X"], table["Y"]])
    text = io.StringIO()
    np.savetxt(text, rows, fmt="%d", delimiter=",")
    return text.getvalue().encode("ascii")


def _read_madelon(contents: Contents) -> Dataset:
    rows = pd.read_csv(io.BytesIO(contents["madelon.csv.gz"]), header=None, dtype=np.int16).to_numpy()
    inputs, targets = rows[:, :-1], (rows[:, -1] > 0).astype(np.int64)
    num_train = 2000  # the training part of the challenge comes first
    return Dataset(
        "madelon",
        inputs[:num_train],
        targets[:num_train],
        inputs[num_train:],
        targets[num_train:],
        feature_names=tuple(f"column_{number}" for number in range(inputs.shape[1])),
        target_names=("-1", "1"),
        license="CC BY 4.0",
        source="I. Guyon, NIPS 2003 feature selection challenge, UCI Machine Learning Repository, doi:10.24432/C5602H",
    )


def _read_mice_protein(contents: Contents) -> Dataset:
    table = pd.read_csv(io.BytesIO(contents["Data_Cortex_Nuclear.csv"]))
    proteins = table.columns[1:78]
    classes, targets = np.unique(table["class"].to_numpy(str), return_inverse=True)
    # "309_1": mouse 309, measurement 1.
    _, mice = np.unique(table["MouseID"].str.rsplit("_", n=1).str[0].to_numpy(str), return_inverse=True)
    return Dataset(
        "mice_protein",
        table[proteins].to_numpy(np.float64),
        targets.astype(np.int64),
        feature_names=tuple(proteins),
        target_names=tuple(classes.tolist()),
        groups=mice.astype(np.int64),
        license="CC BY 4.0",
        source="C. Higuera, K. J. Gardiner, K. J. Cios, PLoS ONE 10(6): e0129126, 2015, doi:10.24432/C50S3Z",
    )


def _read_xquad_r(contents: Contents, unit: Literal["sentence", "paragraph"] = "sentence") -> Dataset:
    if unit not in ("sentence", "paragraph"):
        raise ValueError(f"unit must be 'sentence' or 'paragraph', got {unit!r}.")
    questions: list[str] = []
    targets: list[int] = []
    articles: list[int] = []
    candidates: list[str] = []
    document: dict[str, Any] = json.loads(contents["en.json"])
    for article, entry in enumerate(document["data"]):
        for paragraph in entry["paragraphs"]:
            # A paragraph is one candidate, or as many as it has sentences; each with where it begins and ends.
            whole = unit == "paragraph"
            spans = [(0, len(paragraph["context"]))] if whole else paragraph["sentence_breaks"]
            for question in paragraph["qas"]:
                answer = question["answers"][0]["answer_start"]
                place = next(i for i, (start, stop) in enumerate(spans) if start <= answer < stop)
                questions.append(question["question"])
                targets.append(len(candidates) + place)
                articles.append(article)
            candidates += [paragraph["context"]] if whole else paragraph["sentences"]
    return Dataset(
        "xquad_r",
        np.array(questions),
        np.array(targets, np.int64),
        target_names=tuple(candidates),
        groups=np.array(articles, np.int64),
        license="CC BY-SA 4.0",
        source="U. Roy et al., LAReQA, EMNLP 2020, arXiv 2004.05484, https://github.com/google-research-datasets/lareqa; "
        "built on XQuAD (arXiv 1910.11856) and SQuAD v1.1",
    )


PUBLISHED: dict[str, Published] = {
    "mnist": Published(
        _image_files(
            (
                "6bbc9ace898e44ae57da46a324031adb",
                "a25bea736e30d166cdddb491f175f624",
                "2646ac647ad5339dbf082846283269ea",
                "27ae3e4e09519cfbb04c329615203637",
            ),
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            "https://ossci-datasets.s3.amazonaws.com/mnist",
        ),
        _read_mnist,
    ),
    "fashion_mnist": Published(
        _image_files(
            (
                "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                "9018921c3c673c538a1fc5bad174d6f9",
                "8181f5470baa50b63fa0f6fddb340f0a",
                "15d484375f8d13e6eb1aabb0c3f46965",
            ),
            f"{_GITHUB}/zalandoresearch/fashion-mnist/master/data/fashion",
        ),
        _read_fashion_mnist,
    ),
    "tiny_shakespeare": Published(
        (
            SourceFile(
                "input.txt",
                "6fb458f1232090904fb40fe944165e91",
                (f"{_GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",),
            ),
        ),
        _read_tiny_shakespeare,
    ),
    "madelon": Published(
        (
            SourceFile(
                "madelon.csv.gz",
                "ce54f51b33b0e701ec18960f07f22a2f",
                (f"{_GITHUB}/jundongl/scikit-feature/48cffad4e88ff4b9d2f1c7baffb314d1b3303792/skfeature/data/madelon.mat",),
                _madelon_from_mat,
            ),
        ),
        _read_madelon,
    ),
    "mice_protein": Published(
        (
            SourceFile(
                "Data_Cortex_Nuclear.csv",
                "46f5ce95d208c0f9be3a0aace34c36ba",
                (f"{_GITHUB}/lasso-net/lassonet/f2bf7d21274b21519dddc52e759a137b1aa868c4/examples/Data_Cortex_Nuclear.csv",),
            ),
        ),
        _read_mice_protein,
    ),
    "xquad_r": Published(
        (
            SourceFile(
                "en.json",
                "b8c2383f52bc96438cf09a69cdccabdd",
                (f"{_GITHUB}/google-research-datasets/lareqa/9bc8c7fb6dd8d01d72a05a93c2cb96882b0d299c/xquad-r/en.json",),
            ),
        ),
        _read_xquad_r,
    ),
}
