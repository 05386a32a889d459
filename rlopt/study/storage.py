"""Where Optuna keeps the trials of a search: a journal in the folder, or a database; shared by any number of commands."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rlopt.study.locks import lock_study
from rlopt.study.machine import hide_password

if TYPE_CHECKING:
    import optuna

_TURN_SECONDS = 120.0  # nobody needs the storage for long


def check_installed() -> None:
    """Import Optuna.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ImportError("optuna must be installed for a search, but is not: pip install 'rlopt[search]'.") from error


class Storage:
    """The storage of a search; commands that share the folder take turns.

    Args:
        url: URL for Optuna, None for a journal in the folder.
        folder: Folder of the journal and of the lock.
    """

    def __init__(self, url: str | None, folder: Path) -> None:
        self._url, self._folder = url, folder
        self._database: optuna.storages.BaseStorage | None = None

    def __str__(self) -> str:
        return str(self._folder) if self._url is None else hide_password(self._url)

    @property
    def is_journal(self) -> bool:
        """Whether it is the journal in the folder, and no database."""
        return self._url is None

    @contextlib.contextmanager
    def opened(self) -> Iterator[optuna.storages.BaseStorage]:
        """Give the storage to this process alone, for a moment; the system lets go of it however the process ends.

        Raises:
            ValueError: If the URL is wrong, or the database cannot be reached or refuses, or another command does not let go.
        """
        with lock_study(self._folder, wait_seconds=_TURN_SECONDS), quiet():
            if self._url is None:
                yield _journal(self._folder / "journal.log")
            else:
                with self._one_sentence():
                    self._database = self._database or _connect(self._url)
                    yield self._database

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        """Turn what goes wrong in a database into a sentence."""
        import sqlalchemy.exc
        from optuna.exceptions import OptunaError

        try:
            yield
        except (sqlalchemy.exc.SQLAlchemyError, OptunaError) as error:
            # Optuna wraps errors of SQLAlchemy, and this one those of the driver, which say it best.
            cause = error.__cause__ if isinstance(error.__cause__, sqlalchemy.exc.SQLAlchemyError) else error
            raise ValueError(f"storage must be a database that answers, got {self}: {_sentence(cause)}") from error


def _connect(url: str) -> optuna.storages.BaseStorage:
    import sqlalchemy.exc
    from optuna.storages import RDBStorage

    shown = hide_password(url)
    try:
        return RDBStorage(url)
    except ImportError as error:
        cause = _sentence(error.__cause__ or error)
        raise ValueError(f"storage must be a database whose driver is installed, got {shown}: {cause}") from error
    except sqlalchemy.exc.ArgumentError as error:
        raise ValueError(f"storage must be the URL of a database, such as sqlite:///search.db, got {shown}") from error
    except RuntimeError as error:
        raise ValueError(f"storage must hold tables of this version of Optuna, got {shown}: {_sentence(error)}") from error


def _sentence(error: BaseException) -> str:
    text = str(getattr(error, "orig", None) or error).strip()
    return hide_password(text.splitlines()[0]) if text else type(error).__name__


def _journal(path: Path) -> optuna.storages.BaseStorage:
    """Open a journal that this process holds; repair what a process that was killed may have left."""
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    if path.exists():
        Path(f"{path}.lock").unlink(missing_ok=True)
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)  # the last line may be half written
    return JournalStorage(JournalFileBackend(str(path)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what Optuna says about each study and trial; warnings stay."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
