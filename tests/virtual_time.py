"""An event loop in virtual time: when no task is ready, its clock jumps to the next timer."""

import asyncio
import functools
import inspect
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

_T = TypeVar("_T")
_P = ParamSpec("_P")


class _Instant(selectors.SelectSelector):
    """A selector that never waits. Instead it adds the timeout to the loop's time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("every task waits, and no timer is set: this would never end")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is in virtual seconds since the start. Its coroutines must do no I/O."""

    def __init__(self) -> None:
        self._instant = _Instant()
        super().__init__(self._instant)

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._instant.now


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Like `asyncio.run`, but in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def in_virtual_time(test: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, None]:
    """Make an asynchronous test run in virtual time."""

    @functools.wraps(test)
    def run_test(*args: _P.args, **kwargs: _P.kwargs) -> None:
        run(test(*args, **kwargs))

    # Otherwise pytest-asyncio would find the coroutine function there and run that itself.
    del run_test.__wrapped__
    run_test.__signature__ = inspect.signature(test)  # type: ignore[attr-defined] # pytest reads it
    return run_test


def now() -> float:
    """Virtual seconds since the start."""
    return asyncio.get_running_loop().time()


async def settle() -> None:
    """Let every task run that can. No time passes."""
    for _ in range(10):
        await asyncio.sleep(0)
