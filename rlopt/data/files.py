"""Finding the files of a data set: a folder of the user, the cache, or the public download; always checked."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import platformdirs
from tqdm import tqdm

DATA_DIR_VARIABLE = "RLOPT_DATA_DIR"
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class SourceFile:
    """A file of a data set.

    Args:
        name: Name in the folder of the data set; a name that ends in `.gz` is compressed.
        md5: Checksum of the *decompressed* content: copies that were compressed in another way are the same data.
        urls: Where it is published, tried in order.
        convert: Makes the (decompressed) content from the file that the addresses deliver; None: they deliver it.
    """

    name: str
    md5: str
    urls: tuple[str, ...]
    convert: Callable[[Path], bytes] | None = None


def find_files(name: str, files: Sequence[SourceFile], root: Path | str | None, download: bool) -> Path:
    """Find the folder that holds all files of a data set; download them if there is none.

    Looks in `root`, in the folder that the environment variable RLOPT_DATA_DIR names, and in the user's cache, each with one
    sub-folder for each data set. Downloads go to `root`, or to the cache if there is no `root`.

    Args:
        name: Name of the data set and of its sub-folder.
        files: What must be there.
        root: Folder to look in first; None: none.
        download: Whether to download what is not found.

    Raises:
        FileNotFoundError: If the files are nowhere and cannot be downloaded, or must not be.
    """
    cache = Path(platformdirs.user_cache_dir("rlopt", appauthor=False)) / "data"
    roots = [Path(root)] if root is not None else []
    if os.environ.get(DATA_DIR_VARIABLE):
        roots.append(Path(os.environ[DATA_DIR_VARIABLE]))
    roots.append(cache)
    for folder in (each.expanduser() / name for each in roots):
        if all((folder / file.name).is_file() for file in files):
            return folder
    problem = "download is off"
    if download:
        target = Path(root if root is not None else cache).expanduser() / name
        try:
            target.mkdir(parents=True, exist_ok=True)
            for file in files:
                if not (target / file.name).is_file():
                    _download(file, target)
            return target
        except OSError as error:
            problem = f"the download failed ({error})"
    raise FileNotFoundError(
        f"data set {name!r} is in none of {', '.join(str(each) for each in roots)}, and {problem}; put "
        f"{', '.join(file.name for file in files)} into a folder {name!r} and give the folder above it as root or as "
        f"{DATA_DIR_VARIABLE}."
    )


def read_checked(folder: Path, file: SourceFile) -> bytes:
    """Read the decompressed content of a file and compare it with the published checksum.

    Raises:
        ValueError: If the file is truncated or holds something else; the message names the file.
    """
    path = folder / file.name
    content = read_maybe_compressed(path)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != file.md5:
        raise ValueError(
            f"{path} must hold the published data (md5 {file.md5} after decompression), got other content (md5 {found}, "
            f"{len(content):,} bytes); delete it and load again."
        )
    return content


def read_maybe_compressed(path: Path) -> bytes:
    """Read a file, decompressed if its name ends in `.gz`.

    Raises:
        ValueError: If it cannot be decompressed.
    """
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} must be a complete gzip file, got a damaged one ({error}); delete it and load again.") from None


def _download(file: SourceFile, folder: Path) -> None:
    """Download a file to `folder`; it appears there under its name only when it is complete and right."""
    problems = []
    for url in file.urls:
        # A folder of its own on the same disk: the name decides how the file is read, and the rename is atomic.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
            path = Path(scratch) / file.name
            try:
                _fetch(url, path)
                if file.convert is not None:
                    content = file.convert(path)
                    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
                read_checked(Path(scratch), file)
            except (OSError, HTTPException) as error:
                problems.append(f"{url}: {error}")
            except ValueError:
                problems.append(f"{url}: what came is not the published {file.name}")
            else:
                os.replace(path, folder / file.name)
                return
    raise OSError("; ".join(problems))


def _fetch(url: str, path: Path) -> None:
    """Copy what an address delivers to a file, with a progress bar on a terminal."""
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response, path.open("wb") as file:
        length = response.headers.get("Content-Length")
        with tqdm.wrapattr(response, "read", total=int(length) if length else None, desc=path.name, disable=None) as counted:
            shutil.copyfileobj(counted, file)
