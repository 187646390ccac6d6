#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Queues as Python clients wrote them (COMPAT-V1.md), with tokens of openssl, served file by file by the
agent and by the shell program. Usage: recorded.py BUILD-DIRECTORY [CASE...]
"""

import ctypes
import os
import re
import struct
import subprocess
import time

from fixture import KEY, case, check, equal, eventually, main
from house import House

MOVED_TO, CREATE = 0x80, 0x100


class Watch:
    """The events of inotify for a directory."""

    def __init__(self, path):
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        check(libc.inotify_add_watch(self.fd, path.encode(), MOVED_TO | CREATE) >= 0, "inotify")

    def take(self):
        """The mask and name of each event since the last call."""
        out, data = [], b""
        try:
            while True:
                data += os.read(self.fd, 65536)
        except BlockingIOError:
            pass
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            out.append((mask, data[16:16 + length].rstrip(b"\0").decode()))
            data = data[16 + length:]
        os.close(self.fd)
        return out


def record(base, entries, modes=(0o755, 0o644)):
    """Writes the files in the order and with the modes of a Python client: command, token, copy."""
    for part in ("pending", "running", "results"):
        os.makedirs(os.path.join(base, "queue", part), modes[0], exist_ok=True)
    for name, command, more in entries:
        said = subprocess.run(["openssl", "dgst", "-sha256", "-hmac", KEY], input=name.encode(),
                              stdout=subprocess.PIPE, check=True).stdout.split()[-1]
        files = [("", command), (".auth", more.get("before", b"") + said + more.get("behind", b""))]
        if more.get("copy", True):
            files.append((".cmd", command))
        for suffix, data in files:
            with open(os.path.join(base, "queue", "pending", name + suffix), "wb") as f:
                f.write(data)
            os.chmod(os.path.join(base, "queue", "pending", name + suffix), modes[1])


def entries_now():
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return [
        (f"{stamp}-4711-0a1b2c3d", b"echo out; echo err >&2; exit 3\n", {}),
        (f"{stamp}-4712-ffffffff", b"kill -9 $$\n", {"behind": b"\n"}),
        (f"{stamp}-4713-00000000", b"x='a\nb'\nprintf %s \"$x\"\n", {"before": b" \t", "behind": b" \n"}),
        (f"ping-{time.time_ns()}-4714", b"true\n", {"copy": False}),
        ("e2e-single-001", b"echo without a newline at its end", {"copy": False}),
    ]


WANTED = [(b"3", b"out\n", b"err\n"), (b"-9", b"", b""), (b"0", b"a\nb", b""), (b"0", b"", b""),
          (b"0", b"without a newline at its end\n", b"")]


def both(f, entries, place=".qvm-remote"):
    """Makes a qube with our agent and one without; their queues exist before dom0 connects."""
    house = House(f, conf={"QVM_REMOTE_PROTOCOL": "both"})
    f.stop()
    house.add("work")
    house.add("old", agent=False)
    out = []
    for qube in ("work", "old"):
        base = os.path.join(house.machine.home(qube), ".qvm-remote")
        if place != ".qvm-remote":
            os.rename(base, os.path.join(house.machine.home(qube), place))
        record(os.path.join(house.machine.home(qube), place), entries)
        out.append(base)
    return house, out


def read(*names):
    with open(os.path.join(*names), "rb") as f:
        return f.read()


def wait_for(base, entries):
    for name, _, _ in entries:
        eventually(lambda: os.path.exists(os.path.join(base, "queue", "results", name + ".exit")),
                   f"a result of {name}")
        # Wait for the last step of each entry.
        eventually(lambda: f"id={name} " in audit(base), f"the line of {name}")


def audit(base):
    path = os.path.join(base, "audit.log")
    return read(path).decode() if os.path.exists(path) else ""


@case
def a_recorded_queue_is_served_file_for_file(f):
    entries = entries_now()
    house, bases = both(f, entries)
    watches = [Watch(os.path.join(base, "queue", "results")) for base in bases]
    house.start()
    for base, watch in zip(bases, watches):
        wait_for(base, entries)
        queue = os.path.join(base, "queue")
        results = os.path.join(queue, "results")
        events = watch.take()
        for (name, command, more), (code, out, err) in zip(entries, WANTED):
            equal(tuple(read(results, name + s) for s in (".exit", ".out", ".err")), (code, out, err))
            check(re.fullmatch(rf"id={name}\nstarted=\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\nduration_ms=\d+\n"
                               rf"exit_code={code.decode()}\n", read(results, name + ".meta").decode()),
                  read(results, name + ".meta"))
            # Each file appears complete. The first is .meta, and the last is the one that the
            # client waits for.
            moved = [n[len(name):] for mask, n in events if mask & MOVED_TO and n.startswith(name + ".")]
            equal(moved, [".meta", ".out", ".err", ".exit"])
            check(not [n for mask, n in events if mask & CREATE and n.startswith(name)], "not by rename")
            shown = command.decode().replace("\n", " ").strip()
            lines = [x for x in audit(base).splitlines() if f" id={name} " in x]
            check(len(lines) == 1 and re.fullmatch(
                rf"\[\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\] id={name} exit={code.decode()} duration=\d+ms "
                rf"cmd={re.escape(shown)} ?", lines[0]), lines)
            for suffix in (".exit", ".out", ".err", ".meta"):
                equal(os.stat(os.path.join(results, name + suffix)).st_mode & 0o777, 0o600)
        equal(len(os.listdir(results)), 4 * len(entries))
        equal(os.listdir(os.path.join(queue, "running")), [])
        # The clients remove their copies themselves.
        equal(sorted(os.listdir(os.path.join(queue, "pending"))),
              sorted(n + ".cmd" for n, _, more in entries if more.get("copy", True)))
        equal(os.stat(os.path.join(base, "audit.log")).st_mode & 0o777, 0o600)
    equal(house.machine.violations(), "")


@case
def a_queue_older_still_is_found_below_its_old_name(f):
    entries = entries_now()[:1]
    house, bases = both(f, entries, ".qubes-remote")
    house.start()
    for base in bases:
        wait_for(base, entries)
        equal(read(base, "queue", "results", entries[0][0] + ".exit"), b"3")
        check(not os.path.exists(os.path.join(os.path.dirname(base), ".qubes-remote")), "it is still there")


@case
def directories_that_are_not_there_are_made_for_their_user_alone(f):
    house = House(f, conf={"QVM_REMOTE_PROTOCOL": "both"})
    f.stop()
    house.add("work")
    house.add("old", agent=False)
    house.start()
    for qube in ("work", "old"):
        queue = os.path.join(house.machine.home(qube), ".qvm-remote", "queue")
        for part in ("pending", "running", "results"):
            eventually(lambda: os.path.isdir(os.path.join(queue, part)), f"{part} of {qube}")
            equal(os.stat(os.path.join(queue, part)).st_mode & 0o777, 0o700)


main()
