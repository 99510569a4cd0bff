"""Contenders measured side by side, each in a process of its own, in interleaved rounds: 1, 2, 3, 1, 2, 3, ...

What else the machine does in a round slows all contenders of that round, so ratios are taken within rounds. All
processes inherit one environment: the same allocator, the same number of threads.
"""

from __future__ import annotations

import io
import multiprocessing
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from benchmarks.rows import Row
from utils.core.errors import UserError

Step = Callable[[], float]
"""Does a piece of work, and returns how many units it did."""


@dataclass(frozen=True)
class Contender:
    """What is measured."""

    name: str
    """Of its row."""
    setup: Callable[..., Step]
    """A function of a module (it is sent to another process): prepares everything that the clock should not see."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `setup`."""


@dataclass(frozen=True)
class Measured:
    """What a contender did."""

    name: str
    rates: list[float]
    """Units per second in each round."""
    idle_mib: float
    """Memory of its process before its setup."""
    peak_mib: float

    @property
    def rate(self) -> float:
        """Median over the rounds."""
        return median(self.rates)

    def ratio(self, reference: Measured) -> float:
        """Median of the ratios within rounds."""
        return median(ours / theirs for ours, theirs in zip(self.rates, reference.rates, strict=True))

    def row(self, unit: str, *, reference: Measured | None = None, **more: Any) -> Row:
        """The row of this contender, `more` being further columns."""
        return Row(
            name=self.name,
            value=self.rate,
            unit=unit,
            ratio=self.ratio(reference) if reference else None,
            peak_mib=self.peak_mib,
            best=max(self.rates),
            idle_mib=self.idle_mib,
            **more,
        )


def rows_of(measured: dict[str, Measured], unit: str, *, quick: bool, alone: Collection[str] = ()) -> list[Row]:
    """The rows of what was measured; the first is the reference of all but those that stand `alone`."""
    first = next(iter(measured.values()))
    return [
        found.row(unit, reference=None if name in alone else first, quick=quick) for name, found in measured.items()
    ]


def gate(same: bool, message: str) -> None:
    """Stop before anything is timed if two contenders do not do the same work.

    Raises:
        UserError: they do not.
    """
    if not same:
        raise UserError(f"nothing was measured, because outputs differ: {message}")


def measure(contenders: Sequence[Contender], *, rounds: int, title: str) -> dict[str, Measured]:
    """Run every contender once to warm up, then `rounds` times in turn; name -> what was measured.

    Args:
        contenders: with names of their own.
        rounds: at least 1.
        title: of the progress bar.

    Raises:
        UserError: a contender failed; the message has its traceback.
    """
    with ExitStack() as stack, tqdm(total=len(contenders) * (rounds + 1), desc=title, leave=False) as bar:

        def report(name: str, ask: _Ask) -> Any:
            bar.set_postfix_str(name)
            result = ask()
            bar.update()
            return result

        asks = {c.name: stack.enter_context(_process(c)) for c in contenders}
        warm = {name: report(name, ask) for name, ask in asks.items()}
        reports = [{name: report(name, ask) for name, ask in asks.items()} for _ in range(rounds)]
    return {
        name: Measured(
            name,
            rates=[measured[name][0] for measured in reports],
            idle_mib=idle_mib,
            peak_mib=reports[-1][name][1],
        )
        for name, idle_mib in warm.items()
    }


_Ask = Callable[[], Any]


@contextmanager
def _process(contender: Contender) -> Iterator[_Ask]:
    """A contender's process. It works when it is asked to, and only then: first it warms up, then it is timed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, contender), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is the end of the pipe

    def ask() -> Any:
        try:
            ours.send("go")
            answer = ours.recv()
        except (EOFError, OSError):
            process.join()
            raise UserError(f"{contender.name}: its process died with exit code {process.exitcode}") from None
        if isinstance(answer, _Failure):
            raise UserError(f"{contender.name} failed:\n{answer.traceback}")
        return answer

    try:
        yield ask
    finally:
        ours.close()  # which ends the process, unless it is in the middle of something
        process.join(timeout=2)
        process.kill()


class _Failure(NamedTuple):
    traceback: str


def _serve(connection: Connection, contender: Contender) -> None:
    """What runs in the contender's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    sys.stdout = sys.stderr = io.StringIO()  # its own bars and words would stand in ours
    try:
        if not _is_asked(connection):
            return
        idle_mib = memory_mib("VmRSS")
        step = contender.setup(**contender.options)
        step()
        connection.send(idle_mib)
        while _is_asked(connection):
            start = time.perf_counter()
            units = step()
            rate = units / (time.perf_counter() - start)
            connection.send((rate, memory_mib("VmHWM")))
    except Exception:
        connection.send(_Failure(traceback.format_exc()))


def _is_asked(connection: Connection) -> bool:
    """Wait for the parent to ask for work; false when it is gone."""
    try:
        connection.recv()
    except EOFError:
        return False
    return True


def memory_mib(name: Literal["VmRSS", "VmHWM"]) -> float:
    """Memory of this process that is resident (VmRSS), or was at most (VmHWM).

    Of Linux: the maximum that `getrusage` reports starts from the parent's memory. Elsewhere there is nothing better.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))
