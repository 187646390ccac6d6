#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Any number of commands through one kept client, agent and daemon: none fails, and after a warm-up
no program has more descriptors or memory than before. The audit log grows by what a command writes, in
files of the configured size, and verifies.
Usage: kept.py BUILD-DIRECTORY [COUNT=N] [SECONDS=N] [GROWTH_KIB=N] [CASE...]
It runs COUNT commands, or as many as SECONDS allow. No program may grow by more than GROWTH_KIB, and the
daemon also by the cache of SQLite for the index of IDs.
"""

import collections
import contextlib
import glob
import os
import re
import subprocess
import time

from words import number

COUNT, SECONDS, GROWTH_KIB = number("COUNT", 4000), number("SECONDS", 60), number("GROWTH_KIB", 512)

from fixture import BUILD, HANG, case, check, daemon_processes, equal, eventually, main  # noqa: E402
from house import House  # noqa: E402

STEP = 500
AUDIT_MIB = 2
INDEX_CACHES_KIB = 2 * 1024  # cache_size of id_index.cpp, for the writer and the reader


class Held:
    """The descriptors and memory of each program while no command runs, without the keepers of the daemon."""

    def __init__(self, f, client, agent):
        groups = {"client": [client], "agent": [agent], "daemon": daemon_processes(f)}
        self.descriptors = {name: sum(map(descriptors, pids)) for name, pids in groups.items()}
        self.kib = {(name, pid): status(pid, "VmRSS") for name, pids in groups.items() for pid in pids}

    def no_more_than(self, before):
        # For the daemon it is the size of the descriptor table, which doubles and does not shrink.
        return all(n <= max(before.descriptors[name], 512 if name == "daemon" else 0)
                   for name, n in self.descriptors.items())

    def grown_since(self, before):
        """The largest growth of a process of each program."""
        grown = collections.defaultdict(int)
        for (name, pid), kib in self.kib.items():
            grown[name] = max(grown[name], kib - before.kib.get((name, pid), kib))
        return dict(grown)


def status(pid, what):
    with open(f"/proc/{pid}/status") as lines:
        return int(re.search(what + r":\s+(\d+)", lines.read())[1])


def descriptors(pid):
    """How many descriptors are open. For the daemon, whose descriptors only root may see, the size of its table."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:
        return status(pid, "FDSize")


def now(processes):
    """Returns the present state, after a wait for processes that are about to end."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return Held(*processes)


class Client:
    def __init__(self, house):
        key = os.path.join(house.machine.home("work"), ".qvm-remote", "auth.key")
        self.process = subprocess.Popen(
            [os.path.join(BUILD, "tests", "bench", "bench-embedded"), house.agent_socket("work"), key,
             str(STEP), "in-steps"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.done = 0

    def step(self):
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        equal(self.process.stdout.readline(), b"0\n")
        self.done += STEP


def audit_files(f):
    return glob.glob(os.path.join(f.root, "var/log/qvm-remote/audit.jsonl*"))


@case
def a_kept_client_leaks_nothing(f):
    house = House(f, "work", conf={"QVM_REMOTE_AUDIT_FILE_MIB": str(AUDIT_MIB),
                                   "QVM_REMOTE_AUDIT_QUBE_MIB": "100000",
                                   "QVM_REMOTE_AUDIT_KEEP_MIB": "100000"})
    house.wait_for_agent("work")
    client = Client(house)
    end = time.monotonic() + SECONDS
    try:
        for _ in range(3):  # until everything that one step needs was used once
            client.step()
        processes = f, client.process.pid, house.links("work")["agent"]
        before = now(processes)
        while client.done < COUNT and (time.monotonic() < end or client.done < 2 * STEP):
            client.step()
        eventually(lambda: now(processes).no_more_than(before),
                   f"no more descriptors than {before.descriptors}")
        grown = now(processes).grown_since(before)
        client.process.stdin.close()
        equal(client.process.wait(HANG), 0)
    finally:
        client.process.kill()
    f.stop()
    sizes = [os.path.getsize(path) for path in audit_files(f)]
    starts = sum(r["kind"] == "START" for r in f.audit()) if len(sizes) == 1 else None
    print(f"    {client.done} commands, descriptors {before.descriptors} throughout, "
          f"KiB grown {grown}; audit {sum(sizes)} bytes in {len(sizes)} files", flush=True)
    check(starts in (None, client.done), f"{starts} STARTs")
    check(max(sizes) <= (AUDIT_MIB << 20) + 4096 * 16, f"an audit file of {max(sizes)} bytes")
    check(sum(sizes) < client.done * 2048, "a command writes more than 2 KiB")
    equal(f.dom0("audit", "verify").returncode, 0)
    index = os.path.getsize(os.path.join(f.root, "var/lib/qvm-remote/ids.sqlite")) // 1024
    grown["daemon"] -= min(index, INDEX_CACHES_KIB)
    check(max(grown.values()) <= GROWTH_KIB, f"memory grows: {grown} beyond the index of {index} KiB")


main()
