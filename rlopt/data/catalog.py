"""`load`: any data set by its name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rlopt.data.curves import curves_like
from rlopt.data.dataset import Dataset
from rlopt.data.files import find_files, read_checked
from rlopt.data.published import PUBLISHED
from rlopt.data.series import series_like


def digits() -> Dataset:
    """The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn.

    The first 1,500 are for training, the last 297 for testing.

    Returns:
        `inputs` (1500, 8, 8) float32 in [0, 1], `targets` int64 in 0..9, and the test part.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("the data set 'digits' comes with scikit-learn; install it with: pip install 'rlopt[data]'") from None
    bunch = load_digits()
    images, targets = (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64)
    return Dataset(
        "digits",
        images[:1500],
        targets[:1500],
        images[1500:],
        targets[1500:],
        target_names=tuple("0123456789"),
        license="CC BY 4.0",
        source="E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, "
        "doi:10.24432/C50P49, in the copy of scikit-learn",
    )


# Data sets that need no file.
BUNDLED: dict[str, Callable[..., Dataset]] = {"digits": digits, "curves": curves_like, "series": series_like}


def names() -> tuple[str, ...]:
    """Names that `load` knows, those that need no file first.

    Example:
        >>> names()
        ('digits', 'curves', 'series', 'mnist', 'fashion_mnist', 'tiny_shakespeare', 'madelon', 'mice_protein', 'xquad_r')
    """
    return (*BUNDLED, *PUBLISHED)


def load(name: str, root: Path | str | None = None, download: bool = True, **options: Any) -> Dataset:
    """Load a data set.

    Files are looked for in `root`, in the folder that the environment variable RLOPT_DATA_DIR names, and in the user's cache,
    in a sub-folder `name` each; then they are downloaded (to `root`, or to the cache). The decompressed content of every file
    is compared with the published checksum at each load.

    Args:
        name: One of `names()`. "digits", "curves" and "series" need no file.
        root: Folder of data sets to look in first.
        download: Whether files that are not found are downloaded.
        **options: Options of that data set: those of `curves_like` for "curves" and of `series_like` for "series";
            `unit="sentence"|"paragraph"` for "xquad_r", what is retrieved.

    Returns:
        The data set. "tiny_shakespeare" has character codes as `inputs` and the next character at each place as `targets`.
        "mice_protein" has nan where the table is empty. "xquad_r" has questions as `inputs`; `targets` says which of the
        candidates in `target_names` answers.

    Raises:
        ValueError: For an unknown name or option, and for files that are damaged or hold other data.
        FileNotFoundError: If the files are nowhere, with the folders that were searched.
        ImportError: For "digits" without scikit-learn.

    Example:
        >>> load("curves", num=3)
        Dataset('curves', inputs (3, 14, 14) float32)
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise ValueError(f"name must be one of {', '.join(names())}, got {name!r}{hint}")
    make = BUNDLED[name] if name in BUNDLED else PUBLISHED[name].read
    accepted = [option for option in inspect.signature(make).parameters if option != "contents"]
    for option in options:
        if option not in accepted:
            raise ValueError(f"data set {name!r} has {', '.join(accepted) or 'no options'}, got option {option!r}.")
    if name in BUNDLED:
        return make(**options)
    published = PUBLISHED[name]
    folder = find_files(name, published.files, root, download)
    return make({file.name: read_checked(folder, file) for file in published.files}, **options)
