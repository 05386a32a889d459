"""Search order, downloads from local addresses, and broken files."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlopt.data.files import SourceFile, find_files, read_checked

CONTENT = b"to be or not to be\n" * 50


def source(*urls: str, name: str = "text.gz") -> SourceFile:
    return SourceFile(name, hashlib.md5(CONTENT).hexdigest(), urls)


def put(root: Path, content: bytes = CONTENT, level: int = 9) -> Path:
    folder = root / "plays"
    folder.mkdir(parents=True)
    (folder / "text.gz").write_bytes(gzip.compress(content, level))
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of an HTTP server for the folder `published`."""
    published = tmp_path / "published"
    published.mkdir()
    # Compressed in another way than the local copies.
    (published / "text.gz").write_bytes(gzip.compress(CONTENT, 1))
    (published / "wrong.gz").write_bytes(gzip.compress(CONTENT[1:]))
    (published / "short.gz").write_bytes(gzip.compress(CONTENT)[:-9])

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(published))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_argument_wins_over_the_environment_and_that_over_the_cache(
    no_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = put(no_data)
    assert find_files("plays", [source()], None, download=False) == cached
    named = put(tmp_path / "named")
    monkeypatch.setenv("RLOPT_DATA_DIR", str(tmp_path / "named"))
    assert find_files("plays", [source()], None, download=False) == named
    given = put(tmp_path / "given")
    assert find_files("plays", [source()], tmp_path / "given", download=False) == given
    assert find_files("plays", [source()], tmp_path / "empty", download=False) == named


def test_folder_with_only_some_of_the_files_is_passed_over(no_data: Path, tmp_path: Path) -> None:
    put(tmp_path)
    cached = put(no_data)
    (cached / "more").write_bytes(b"")
    assert find_files("plays", [source(), source(name="more")], tmp_path, download=False) == cached


def test_download_goes_to_the_cache_and_is_found_there(no_data: Path, server: str) -> None:
    file = source(f"{server}/text.gz")
    folder = find_files("plays", [file], None, download=True)
    assert folder == no_data / "plays"
    assert read_checked(folder, file) == CONTENT
    assert [path.name for path in folder.iterdir()] == ["text.gz"]
    assert find_files("plays", [source()], None, download=False) == folder


def test_download_goes_to_the_root_that_is_given(no_data: Path, tmp_path: Path, server: str) -> None:
    assert find_files("plays", [source(f"{server}/text.gz")], tmp_path / "mine", download=True) == tmp_path / "mine" / "plays"
    assert not no_data.exists()


@pytest.mark.parametrize("bad", ["missing.gz", "wrong.gz", "short.gz"])
def test_next_address_is_tried_when_one_fails(no_data: Path, server: str, bad: str) -> None:
    file = source(f"{server}/{bad}", f"{server}/text.gz")
    assert read_checked(find_files("plays", [file], None, download=True), file) == CONTENT


def test_wrong_download_leaves_no_file_and_says_what_came(no_data: Path, server: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"wrong.gz: what came is not the published text.gz"):
        find_files("plays", [source(f"{server}/wrong.gz")], None, download=True)
    assert list((no_data / "plays").iterdir()) == []


def test_file_address_and_conversion(no_data: Path, tmp_path: Path) -> None:
    (tmp_path / "upper").write_bytes(CONTENT.upper())
    file = SourceFile("text.gz", source().md5, (tmp_path.joinpath("upper").as_uri(),), lambda path: path.read_bytes().lower())
    assert read_checked(find_files("plays", [file], None, download=True), file) == CONTENT


def test_missing_data_are_reported_with_all_places_and_what_to_do(
    no_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLOPT_DATA_DIR", str(tmp_path / "named"))
    with pytest.raises(FileNotFoundError) as caught:
        find_files("plays", [source("file:///nowhere")], tmp_path / "given", download=False)
    message = str(caught.value)
    assert message.startswith(
        f"data set 'plays' is in none of {tmp_path / 'given'}, {tmp_path / 'named'}, {no_data}, and download is off"
    )
    assert message.endswith("put text.gz into a folder 'plays' and give the folder above it as root or as RLOPT_DATA_DIR.")
    with pytest.raises(FileNotFoundError, match=r"the download failed .*nowhere"):
        find_files("plays", [source("file:///nowhere")], tmp_path / "given", download=True)


def test_foreign_file_is_reported(tmp_path: Path) -> None:
    folder = put(tmp_path, CONTENT[:-1])
    with pytest.raises(ValueError, match=r"text.gz must hold the published data .*got other content .*949 bytes"):
        read_checked(folder, source())


@pytest.mark.parametrize("content", [gzip.compress(CONTENT)[:-20], b"<html>not found</html>", b""], ids=["cut", "html", "empty"])
def test_truncated_or_other_file_is_reported(tmp_path: Path, content: bytes) -> None:
    folder = put(tmp_path)
    (folder / "text.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"text.gz must (be a complete gzip file|hold the published data)"):
        read_checked(folder, source())
