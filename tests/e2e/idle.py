#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces the system calls of the daemon and its helpers while 64 authorised qubes run and send no request.
There must be none except one timer a minute for all qubes, and one read for each answer.

Usage: idle.py BUILD-DIRECTORY [CASE...]; the window is 10 s, or QVMREMOTE_IDLE_SECONDS.
"""

import collections
import os
import re
import time

from fixture import case, check, daemon_processes, equal, eventually, main
from house import House

QUBES = 64
ROUND = 60  # seconds between two keep-alives of idle streams
STARTS = ("clone", "clone3", "fork", "vfork", "execve", "execveat")
TRACED = re.compile(r"(\d+) +(\d+\.\d+) (?:<\.\.\. )?(\w+)")


def quiet_house(f, qubes=QUBES):
    """Starts a house. Returns it after all its qubes are connected and idle, and the path of the trace."""
    trace = os.path.join(f.path, "trace")
    # strace runs as our grandchild. It follows the daemon's helpers, but not the programs that they
    # execute.
    f.under = ["strace", "-D", "-f", "-b", "execve", "-ttt", "-o", trace]
    names = [f"q{n}" for n in range(qubes)]
    house = House(f, *names)
    house.wait_for_agent(*names)
    equal(house.run(names[0], "echo on").stdout, b"on\n")
    return house, trace


def watch(f, trace, seconds):
    """The system calls of the daemon's processes within `seconds`: the name and the whole line of each."""
    time.sleep(12)  # until nothing is left of the sessions and their keep-alive of 10 s
    ours = daemon_processes(f)
    begin = time.time()
    time.sleep(seconds)
    end = time.time()
    calls = []
    with open(trace, errors="replace") as lines:
        for line in lines:
            got = TRACED.match(line)
            if got and begin <= float(got[2]) <= end and int(got[1]) in ours:
                calls.append((got[3], line.strip()))
    return calls


def judge(calls, qubes, seconds):
    """Fails after any other system call. Returns the counts, to be printed."""
    counts = collections.Counter(name for name, _ in calls)
    check(not any(counts[name] for name in STARTS), f"a process was started: {counts}")
    # A read of a timer gives eight bytes: how often it fired.
    fired = sum(1 for name, line in calls if name == "read" and re.search(r", 8\) += 8$", line))
    check(fired <= seconds // ROUND + 1, f"{fired} timers in {seconds} s")
    if fired == 0:
        check(not calls, f"it woke up: {calls[:10]}")
    answers = sum(counts[name] for name in ("read", "readv", "recv", "recvfrom", "recvmsg")) - fired
    check(answers <= fired * qubes, f"{answers} reads for {fired * qubes} answers: {counts}")
    sent = sum(counts[name] for name in ("write", "writev", "sendto", "sendmsg"))
    check(sent <= fired * qubes, f"{sent} writes for {fired * qubes} questions: {counts}")
    return fired, counts


@case
def sixty_four_idle_qubes_wake_nobody(f):
    seconds = int(os.environ.get("QVMREMOTE_IDLE_SECONDS", "10"))
    house, trace = quiet_house(f)
    fired, counts = judge(watch(f, trace, seconds), QUBES, seconds)
    print(f"  {seconds} s: {fired} keep-alives, {dict(counts)}")
    eventually(lambda: house.run("q63", "echo on").stdout == b"on\n", "they are there")


if __name__ == "__main__":
    main()
