#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon grows by less than 8 MiB when a qube sends 300 MB, as an entry of its queue or as bytes of a
hostile agent. Usage: memory.py BUILD-DIRECTORY [CASE...]
"""

import contextlib
import os
import re
import struct
import subprocess
import time

from entries import token
from fixture import KEY, case, check, equal, eventually, main
from house import House

SIZE = 300_000_000
LIMIT_KIB = 8 * 1024

# The hostile agent writes one of these first, and then zeros or frames until dom0 does not read any
# more.
PREAMBLE = b"\0qvm-remote 2\r\n\xff"
QUEUE_PREAMBLE = b"\0qvm-remote 1\r\n\xff"
BODY = f"entry x - {SIZE}\nbody x {SIZE}\n".encode()


def frame(kind, payload, length=None, session=0):
    return struct.pack(">IIB3x", len(payload) if length is None else length, session, kind) + payload


BOGUS = {
    "noise": b"",
    "letters": b"x" * 1000,
    "a_frame_of_300_mb": PREAMBLE + frame(23, b"", SIZE),
    "a_frame_of_the_largest_length": PREAMBLE + frame(4, b"", 0xffffffff, 1),
    "an_entry_in_a_frame": PREAMBLE + frame(23, QUEUE_PREAMBLE + BODY),
    "a_body_that_nobody_asked_for": QUEUE_PREAMBLE + BODY,
    "a_line_without_an_end": QUEUE_PREAMBLE,
}
# Complete, allowed frames, 300 MB of them.
ENDLESS = {
    "openings": (PREAMBLE, frame(2, b"")),
    "entries": (QUEUE_PREAMBLE, b"entry x%d " + b"0" * 64 + b" 300000000\n"),
}


class Peak:
    """How much the daemon grows from now on, in KiB."""

    def __init__(self, f):
        self.path = f"/proc/{f.daemon.pid}"
        # Reset the peak to the present size. If that is not allowed, use the old peak.
        with contextlib.suppress(OSError), open(self.path + "/clear_refs", "w") as reset:
            reset.write("5")
        self.before = self.read("VmRSS")

    def read(self, what):
        with open(self.path + "/status") as status:
            return int(re.search(what + r":\s+(\d+)", status.read())[1])

    def check(self, what):
        grown = self.read("VmHWM") - self.before
        print(f"  {what}: {grown} KiB", flush=True)
        check(grown < LIMIT_KIB, f"{what}: {grown} KiB more")


def house_of(f, *qubes, **more):
    # A sanitizer keeps freed memory, which must not count here.
    usual = os.environ.get("ASAN_OPTIONS", "")
    os.environ["ASAN_OPTIONS"] = usual + ":quarantine_size_mb=0:thread_local_quarantine_size_kb=0"
    house = House(f, *qubes, conf={"QVM_REMOTE_PROTOCOL": "both"}, **more)
    os.environ["ASAN_OPTIONS"] = usual
    return house


@case
def an_entry_of_300_mb_raises_the_daemon_by_less_than_8_mib(f):
    house = house_of(f, "work")
    house.add("old", agent=False)
    house.wait_for_agent("work")
    equal(house.run("work", "head -c 3000000 /dev/zero").returncode, 0)
    queues = [os.path.join(house.machine.home(q), ".qvm-remote", "queue") for q in ("work", "old")]
    for queue in queues:
        eventually(lambda: os.path.isdir(os.path.join(queue, "results")), "the queue")
    peak = Peak(f)
    for queue in queues:
        names = [time.strftime("%Y%m%d-%H%M%S") + f"-1-{n:08x}" for n in range(3)]  # right, wrong, none
        for name, auth in zip(names, (token(names[0]).encode(), b"0" * 64, None)):
            path = os.path.join(queue, "pending", name)
            with open(path, "w") as entry:
                entry.truncate(SIZE)
            if auth:
                with open(path + ".auth", "wb") as a:
                    a.write(auth)
        result = os.path.join(queue, "results", names[0])
        eventually(lambda: os.path.exists(result + ".exit"), "a result")
        with open(result + ".exit") as code, open(result + ".err") as err:
            equal(code.read(), "126")
            check("exceeds" in err.read(), "another reason")
        for name in names[1:]:
            eventually(lambda: not os.path.exists(os.path.join(queue, "pending", name)), "its removal")
    peak.check("entries")
    equal(house.run("work", "echo on").stdout, b"on\n")


def hostile(house, name, first, again=b""):
    """Adds a qube with an agent that writes `first` and then `again` without end, and reads nothing."""
    place = house.machine.file(name + "-bin")
    os.mkdir(place)
    path = os.path.join(place, "qvm-remote-agent")
    with open(path, "w") as out:
        out.write(f"""#!/usr/bin/python3
import os
again = {again!r}
def write(data):
    while data:
        data = data[os.write(1, data):]
write({first!r})
os.close(os.open("begun", os.O_CREAT))
left, n = {SIZE}, 0
try:
    while left > 0:
        if b"%d" in again:
            piece = b"".join(again % i for i in range(n, n + 500))
            n += 500
        else:
            piece = (again or bytes(1)) * (65536 // len(again or bytes(1)))
        write(piece)
        left -= len(piece)
finally:
    os.close(os.open("over", os.O_CREAT))
""")
    os.chmod(path, 0o755)
    house.add(name, agent=False, state="Halted")
    house.machine.write(place + "\n", "qubes", name, "path")
    house.machine.set_state(name, "Running")


@case
def a_bogus_frame_or_stream_of_300_mb_raises_the_daemon_by_less_than_8_mib(f):
    house = house_of(f, "work")
    house.wait_for_agent("work")
    equal(house.run("work", "head -c 3000000 /dev/zero").returncode, 0)
    peak = Peak(f)
    for n, (name, first) in enumerate(BOGUS.items()):
        qube = f"evil{n}"
        hostile(house, qube, first, b"x" if name == "letters" else b"")
        # dom0 drops its bytes when they come, or when it closes the stream.
        eventually(lambda: os.path.exists(os.path.join(house.machine.home(qube), "over")), name)
        peak.check(name)
        house.machine.set_state(qube, "Halted")
    equal(house.run("work", "echo on").stdout, b"on\n")


@case
def endless_frames_of_an_agent_that_reads_nothing_raise_the_daemon_by_less_than_8_mib(f):
    house = house_of(f, "work")
    house.wait_for_agent("work")
    equal(house.run("work", "head -c 3000000 /dev/zero").returncode, 0)
    peak = Peak(f)
    for n, (name, (first, again)) in enumerate(ENDLESS.items()):
        qube = f"endless{n}"
        hostile(house, qube, first, again)
        eventually(lambda: os.path.exists(os.path.join(house.machine.home(qube), "begun")), name)
        time.sleep(2)
        for _ in range(5):
            equal(house.run("work", "echo on").stdout, b"on\n")
        peak.check(name)
        house.machine.set_state(qube, "Halted")


main()
