"""Files that are safe to open: arrays and plain data without code, complete or not there, with a checksum each.

`rlopt.files.state_file` writes one file, `rlopt.files.checkpoint` folders of files; `load`, also `rlopt.load`, reads both.
"""

from rlopt.files.loading import load

__all__ = ["load"]
