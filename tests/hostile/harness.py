"""A server under attack, a prober beside it, and the figures: see `tests.hostile`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, ClassVar

from tests.faults.flood_load import MIB, Costs, many_files, tell
from tests.support.commands import measured
from tests.support.process import CACHE, REPO, Mayfly, Process, poll, remove_tree

LONG = os.environ.get("MAYFLY_SOAK") == "1"
"""Whether this is `make soak`."""

PROBES = 20
"""Probes that must be answered while an attack continues."""

PATIENCE = 60.0
"""Seconds after which an attack under which too few probes were answered has held up the server."""

GROWTH = 128
"""MiB above calm that an attack may cost, as docs/reliability.md promises."""


@dataclass(frozen=True)
class Probe:
    """One probe.

    Attributes:
        begun, ended: seconds, monotonic.
        status: 0 where there was no answer.
    """

    begun: float
    ended: float
    status: int

    @property
    def seconds(self) -> float:
        """Until it was answered."""
        return self.ended - self.begun


class Prober:
    """Runs `tests.hostile.prober` and reads what it says."""

    def __init__(self, url: str) -> None:
        scheme, _, host = url.partition("://")
        argv = [sys.executable, "-m", "tests.hostile.prober", host]
        argv += ["tls"] if scheme == "https" else []
        self.probes: list[Probe] = []
        self._process = subprocess.Popen(argv, cwd=REPO, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            if line.endswith("\n"):  # not the one at which the prober was ended
                begun, ended, status = line.split()
                self.probes.append(Probe(float(begun), float(ended), int(status)))

    def wait_for_first(self) -> None:
        """Until it is at work: the first answers come before the attack, and show it is calm."""
        poll(
            lambda: sum(one.status == 200 for one in self.probes) >= 3,
            lambda: f"the prober got no answers: {self.probes}",
        )

    def stop(self) -> None:
        """End it; a probe that is not answered yet stays unknown."""
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._reader.join(30)
        if self._process.stdout is not None:
            self._process.stdout.close()


@dataclass(frozen=True)
class Result:
    """A row of the table.

    Attributes:
        name: of the attack.
        before: what it did before it was bounded.
        probes: answered while it continued.
        longest_ms: the longest of them.
        growth_mib: peak memory above calm.
        note: a figure of the attack's own.
    """

    name: str
    before: str
    probes: int | None
    longest_ms: float | None
    growth_mib: float
    note: str = ""


class Under:
    """A server under attack.

    Attributes:
        server: as its own process.
        costs: what that takes.
    """

    def __init__(self, server: Mayfly, prober: Prober, costs: Costs, probes: int, patience: float):
        self.server = server
        self.costs = costs
        self._prober = prober
        self._probes = probes
        self._patience = patience
        self.begun = time.monotonic()
        self.notes: list[str] = []

    @property
    def host(self) -> str:
        """The server's, with port."""
        return self.server.host

    def note(self, text: str) -> None:
        """A figure of the attack's own, for the table."""
        self.notes.append(text)

    def answered(self) -> list[Probe]:
        """The probes that were asked and answered since the attack began."""
        since = [one for one in self._prober.probes if one.begun >= self.begun]
        return [one for one in since if one.status == 200]

    def going(self) -> bool:
        """Whether the attack is to continue: too few probes were answered yet."""
        if len(self.answered()) >= self._probes:
            return False
        seconds = time.monotonic() - self.begun
        assert seconds < self._patience, (
            f"only {len(self.answered())} probes were answered in {seconds:.0f} s of the attack, "
            f"wanted {self._probes}: {self.server.describe()}"
        )
        return True


@contextmanager
def lines(
    host: str,
    count: int,
    *,
    receive_buffer: int | None = None,
    source: Callable[[int], str] | None = None,
) -> Iterator[list[socket.socket]]:
    """Open a number of connections, and close them after the block.

    Args:
        receive_buffer: bytes that the kernel keeps of each for its reader; None for its default.
        source: gives the address of the connection with a number; None for any.
    """
    many_files()
    name, _, port = host.rpartition(":")
    with ExitStack() as stack:
        made = []
        for number in range(count):
            line = stack.enter_context(socket.socket())
            line.settimeout(60)
            if receive_buffer is not None:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source is not None:
                line.bind((source(number), 0))
            line.connect((name, int(port)))
            made.append(line)
        yield made


class Hostile:
    """Starts servers and attacks for one test; a test's fixture."""

    long = LONG
    _calm: ClassVar[int | None] = None
    """Peak memory of a command that does nothing, bytes; measured once."""

    def __init__(self, place: Path, test: str) -> None:
        self._place = place
        self._test = test
        self._server: Mayfly | None = None
        self._count = 0
        place.mkdir(parents=True, exist_ok=True)

    def serve(self, *options: str, root: Path | None = None) -> Mayfly:
        """The server to attack, with options; the last one is stopped."""
        self._stop()
        self._count += 1
        home = self._place / str(self._count)
        self._server = Mayfly(root or home / "root", home / "state", *options)
        return self._server

    @contextmanager
    def attack(
        self,
        name: str,
        *,
        before: str,
        probes: int = PROBES,
        growth: float = GROWTH,
        patience: float = PATIENCE,
        may_end: bool = False,
    ) -> Iterator[Under]:
        """Attack in the body of this context; see `tests.hostile`."""
        server = self._server or self.serve("--drain-timeout", "1s")
        if LONG and not may_end:
            probes *= 5
        prober = Prober(server.url)
        try:
            prober.wait_for_first()
            _forget_peak(server)
            under = Under(server, prober, Costs(server), probes, patience)
            yield under
            ended = time.monotonic()
            peak = under.costs.growth / MIB if server.running else 0.0
        finally:
            prober.stop()
        asked = [one for one in prober.probes if one.begun >= under.begun]
        in_time = [one for one in asked if one.ended <= ended]
        answered = [one for one in in_time if one.status == 200]
        longest = max((one.seconds for one in asked if one.status == 200), default=0.0)
        note = "; ".join(under.notes)
        self._record(Result(name, before, len(answered), longest * 1000, peak, note))
        assert may_end or server.running, server.describe()
        if not may_end:
            assert all(one.status == 200 for one in in_time), (in_time, server.describe())
        assert len(answered) >= probes, (
            f"{len(answered)} probes were answered before the attack ended, wanted {probes}"
        )
        assert peak <= growth, f"{peak:.1f} MiB above calm, at most {growth} are promised"
        assert "Traceback" not in server.output(), server.describe()

    @contextmanager
    def attack_by_lines(
        self,
        name: str,
        count: int,
        *,
        before: str,
        growth: float = GROWTH,
        may_end: bool = False,
        source: Callable[[int], str] | None = None,
        receive_buffer: int | None = None,
    ) -> Iterator[tuple[Under, list[socket.socket]]]:
        """Attack by a number of connections in the body of this context; see `attack`, `lines`."""
        with (
            self.attack(name, before=before, growth=growth, may_end=may_end) as under,
            lines(under.host, count, receive_buffer=receive_buffer, source=source) as made,
        ):
            yield under, made

    def command(
        self,
        name: str,
        *argv: object,
        before: str,
        growth: float = GROWTH,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run `mayfly ARGV`; its peak is at most some MiB above that of `--version`."""
        if Hostile._calm is None:
            Hostile._calm = measured("--version", timeout=timeout)[1]
        begun = time.monotonic()
        done, peak = measured(*argv, timeout=timeout)
        seconds = time.monotonic() - begun
        above = (peak - Hostile._calm) / MIB
        note = f"exit {done.returncode} after {seconds:.1f} s"
        self._record(Result(name, before, None, None, above, note))
        assert above <= growth, f"{above:.1f} MiB above calm, at most {growth} are promised"
        assert "Traceback" not in done.stderr, done.stderr[-4000:]
        return done

    def close(self) -> None:
        """Stop what runs and remove what it left."""
        self._stop()
        remove_tree(self._place)

    def _stop(self) -> None:
        if self._server is not None and self._server.running:
            # Not `Mayfly.stop`: what an attack left unfinished is cut off, which is exit code 3.
            code = Process.stop(self._server)
            assert code in (0, 3), f"exit code {code}: {self._server.describe()}"
        self._server = None

    def _record(self, result: Result) -> None:
        tell(
            f"{result.name}: {result.probes} probes, longest {result.longest_ms or 0:.0f} ms, "
            f"{result.growth_mib:.1f} MiB above calm {result.note}"
        )
        if not LONG:
            return
        path = results()
        found = json.loads(path.read_text()) if path.exists() else {}
        found[f"{self._test}: {result.name}"] = asdict(result)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def results() -> Path:
    """Where the long form keeps its figures."""
    return Path(os.environ.get("MAYFLY_HOSTILE_RESULTS", CACHE / "hostile.json"))


def _forget_peak(server: Mayfly) -> None:
    """Have the kernel measure the peak (VmHWM) from now on (proc(5), clear_refs)."""
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")
