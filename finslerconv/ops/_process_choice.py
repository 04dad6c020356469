"""Choices that hold for the whole process, for all threads: the last one made that is in force."""

from threading import Lock
from types import TracebackType
from typing import Any, ClassVar

_lock = Lock()


class ProcessChoice:
    """The base of what is called to choose from now on, or used as a context manager.

    A subclass ends its constructor by :meth:`_choose`; ``_in_force`` is its own.
    """

    _in_force: ClassVar[list[Any]]

    def __init_subclass__(cls) -> None:
        cls._in_force = []

    def _choose(self) -> None:
        with _lock:
            self._in_force.append(self)
            self._changed()

    def _changed(self) -> None:
        """Act on another choice being in force."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Its own choice and no other: blocks of other threads may have begun in between.
        with _lock:
            self._in_force.remove(self)
            self._changed()
