"""Data sets: generated, from a local folder, or from the public download."""

from rlopt.data.catalog import digits, load, names
from rlopt.data.curves import curves_like
from rlopt.data.dataset import Dataset
from rlopt.data.idx import parse_idx, read_idx
from rlopt.data.series import series_like

__all__ = ["Dataset", "curves_like", "digits", "load", "names", "parse_idx", "read_idx", "series_like"]
