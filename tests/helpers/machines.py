"""Machines made of namespaces: two with a network, processes and names of their own, and a client beside
them.

They share this machine's disk, processors and Python environment. All ends with one process, after which the
kernel clears up.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import which

import psutil

from tests.helpers.paths import REPOSITORY
from tests.helpers.waiting import wait_until

NAMESPACES = ("unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
CLIENT = "10.77.0.254"
SCRIPT = r"""
set -e
become() {  # $1's folder is root's home, and /tmp is its own but for what tests write and run
  hostname $1
  mkdir -p $HERE/$1/home $HERE/$1/tmp
  sed "s|^root:.*|root:x:0:0:root:$HERE/$1/home:/bin/bash|" /etc/passwd > $HERE/$1/passwd
  mount --bind $HERE/$1/passwd /etc/passwd
  mount --bind $HERE/hosts /etc/hosts
  for shared in $SHARED; do
    mkdir -p $HERE/$1$shared
    mount --bind $shared $HERE/$1$shared
  done
  mount --rbind $HERE/$1/tmp /tmp
}
export -f become
mount -t tmpfs none /run
mkdir /run/sshd
ip link set lo up
ip link add name switch type bridge
ip address add 10.77.0.254/24 dev switch
ip link set switch up
for n in 1 2; do
  $NAMESPACES bash -c "set -e
    become machine$n
    ip link set lo up
    until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
    ip address add 10.77.0.$n/24 dev eth0
    ip link set eth0 up
    ip route add default via 10.77.0.254
    $SERVICE &
    wait" &  # the machine's first process: it takes in what others leave behind
  starter=$!
  until machine=$(pgrep --parent $starter) &&
    ip link add name cable$n type veth peer name eth0 netns $machine; do sleep 0.05; done
  ip link set cable$n master switch up
done
become client
touch $HERE/ready
cat  # until the test has ended, however it ends
"""
HOSTS = "127.0.0.1 localhost\n10.77.0.1 machine1\n10.77.0.2 machine2\n10.77.0.254 client\n"
PATH = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Machines:
    """``machine1`` and ``machine2`` at `ADDRESSES`, and ``client``."""

    folder: Path
    """Each machine's home is ``NAME/home`` in it."""
    process: psutil.Process

    def run(self, command: str, environment: dict[str, str]) -> str:
        """Run a command in the repository as the client; its output."""
        there = f"cd {REPOSITORY}; {command}"
        inside = [
            "nsenter",
            "--target",
            str(self.process.pid),
            "--net",
            "--pid",
            "--mount",
            "--uts",
            "bash",
            "-c",
            there,
        ]
        env = {"HOME": str(self.folder / "client" / "home"), "PATH": PATH} | environment
        done = subprocess.run(
            inside, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}"
        return done.stdout

    def running(self, *service: str) -> list[str]:
        """What runs on the two machines beside their service's processes."""
        servers = [part for part in self.process.children() if part.name() == "unshare"]
        assert len(servers) == 2
        first = [child for server in servers for child in server.children()]
        found = []
        for part in (part for shell in first for part in shell.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # it has just ended
                if part.name() not in service and part.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(part.cmdline()))
        return found


def lacking(programs: Sequence[str], packages: str) -> str:
    """Why there cannot be such machines here; empty when there can."""
    if os.geteuid() != 0:
        return "only root makes machines of namespaces"
    needed = ("ip", "nsenter", "pgrep", "curl", *programs)
    if missing := [name for name in needed if which(name, path=PATH) is None]:
        return f"{', '.join(missing)} not installed (apt-get install iproute2 procps curl {packages})"
    tried = subprocess.run(
        [*NAMESPACES, "ip", "link", "add", "name", "switch", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"the kernel forbids namespaces: {tried.stderr.strip()}" if tried.returncode else ""


@contextmanager
def machines(folder: Path, service: str, shared: Sequence[Path]) -> Iterator[Machines]:
    """Start them; each runs ``service``, a shell command in which ``$n`` is its number.

    Args:
        shared: folders that they see even when they lie in ``/tmp``.
    """
    for name in ("machine1", "machine2", "client"):
        (folder / name / "home").mkdir(parents=True, exist_ok=True)
    (folder / "hosts").write_text(HOSTS)
    used = (*shared, Path(sys.prefix), REPOSITORY)
    words = {
        "PATH": PATH,
        "HERE": str(folder),
        "SHARED": " ".join(str(part) for part in used if part.is_relative_to("/tmp")),
        "NAMESPACES": " ".join(NAMESPACES),
    }
    script = SCRIPT.replace("$SERVICE", service)
    with (folder / "machines.log").open("w") as log:
        command = [*NAMESPACES, "bash", "-c", script]
        process = subprocess.Popen(
            command, env=words, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True
        )
    try:
        log_text = (folder / "machines.log").read_text
        wait_until((folder / "ready").exists, seconds=60, process=process, explain=log_text)
        yield Machines(folder, psutil.Process(process.pid).children()[0])
    finally:
        process.communicate(
            timeout=30
        )  # the kernel ends every process of the namespaces, and takes networks and mounts down
