"""Time of a command's first line and its longest silence, in a pipe and in a terminal.

``python -m benchmarks.first_minutes -- vader-ray train shapes_hps --workers 2`` prints each line with the
seconds since the start, then: first line, longest silences, wall seconds, CPU seconds of the command without
the processes of Ray, and the number of escape characters.
``--columns 80`` gives the command a terminal of this width; its lines change and are not printed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import resource
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from itertools import pairwise


def main() -> None:
    """Run a command and print what it printed when."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", type=int, help="width of a terminal; without it, the output is a pipe")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    started, read_at, num_escapes = time.monotonic(), [0.0], 0
    reader, process = start(given.command, given.columns)
    for data in chunks(reader):
        read_at.append(time.monotonic() - started)
        num_escapes += data.count(b"\x1b")
        if given.columns is None:
            for line in data.decode(errors="replace").splitlines():
                print(f"{read_at[-1]:7.2f}  {line}", flush=True)
    status = process.wait()
    read_at.append(time.monotonic() - started)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    silences = sorted(
        ((later - earlier, earlier) for earlier, later in pairwise(read_at)),
        reverse=True,
    )
    listed = ", ".join(f"{length:.1f} s from {begin:.1f}" for length, begin in silences[:3])
    print(
        f"first line after {read_at[1]:.2f} s; longest silences {listed}; {read_at[-1]:.1f} s in all; "
        f"{used.ru_utime + used.ru_stime:.1f} CPU seconds; {num_escapes} escape characters; status {status}; "
        f"load {os.getloadavg()[0]:.1f}"
    )


def start(command: list[str], columns: int | None) -> tuple[int, subprocess.Popen[bytes]]:
    """Start a command; return the descriptor of its output, and its process."""
    reader, writer = os.pipe() if columns is None else pty.openpty()
    if columns is not None:
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
        env=os.environ | ({} if columns is None else {"TERM": "xterm-256color"}),
    )
    os.close(writer)
    return reader, process


def chunks(reader: int) -> Iterator[bytes]:
    """Yield what can be read from a pipe or a terminal, until its other side is closed."""
    while True:
        try:
            data = os.read(reader, 65536)
        except OSError:  # a terminal without a process
            return
        if not data:
            return
        yield data


if __name__ == "__main__":
    sys.exit(main())
