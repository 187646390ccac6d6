#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces the system calls of the daemon and its helpers while 64 authorised qubes run and send no request.
They may do only the keep-alive: once a minute, a timer wakes the daemon, which writes one question to
each qube and reads one answer from each. They may start no process.

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
# A line of strace: process or thread ID, time, name of the call. An interrupted call has two lines.
TRACED = re.compile(r"(\d+) +(\d+\.\d+) (?:<\.\.\. )?(\w+)")


def quiet_house(f, qubes=QUBES):
    """Starts a daemon under strace, connects the qubes, and runs one command. Returns the house and the path of
    the trace."""
    trace = os.path.join(f.path, "trace")
    # With -D, the process that we start becomes the daemon, and strace runs beside it. strace follows the
    # daemon's helpers; with -b, it does not follow the programs that they execute.
    f.under = ["strace", "-D", "-f", "-b", "execve", "-ttt", "-o", trace]
    names = [f"q{n}" for n in range(qubes)]
    house = House(f, *names)
    house.wait_for_agent(*names)
    equal(house.run(names[0], "echo on").stdout, b"on\n")
    return house, trace


def watch(f, trace, seconds):
    """Waits until the sessions are over, and then for `seconds`. Returns the system calls that the daemon's
    processes made in these seconds: the name and the whole line of each."""
    time.sleep(12)  # a stream with a session has a keep-alive after 10 s; that must be over too
    ours = {int(thread) for p in daemon_processes(f) for thread in os.listdir(f"/proc/{p}/task")}
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
    """Fails if a process was started, if the timer fired more than once a minute, if anything happened although
    it did not fire, or if there are more calls than the keep-alive takes. Returns how often the timer fired,
    and how often each system call was made."""
    counts = collections.Counter(name for name, _ in calls)
    check(not any(counts[name] for name in STARTS), f"a process was started: {counts}")
    # A read of a timer gives eight bytes: how often it fired.
    fired = sum(1 for name, line in calls if name == "read" and re.search(r", 8\) += 8$", line))
    check(fired <= seconds // ROUND + 1, f"the timer fired {fired} times in {seconds} s")
    if fired == 0:
        check(not calls, f"the daemon woke up although no timer fired: {calls[:10]}")
    answers = sum(counts[name] for name in ("read", "readv", "recv", "recvfrom", "recvmsg")) - fired
    check(answers <= fired * qubes, f"{answers} reads for {fired * qubes} answers: {counts}")
    sent = sum(counts[name] for name in ("write", "writev", "sendto", "sendmsg"))
    check(sent <= fired * qubes, f"{sent} writes for {fired * qubes} questions: {counts}")
    check(len(calls) <= fired * (20 + 8 * qubes), f"more calls than {fired} keep-alives take: {counts}")
    return fired, counts


@case
def sixty_four_idle_qubes_wake_nobody(f):
    seconds = int(os.environ.get("QVMREMOTE_IDLE_SECONDS", "10"))
    house, trace = quiet_house(f)
    fired, counts = judge(watch(f, trace, seconds), QUBES, seconds)
    print(f"  {seconds} s: {fired} keep-alives, {dict(counts)}")
    eventually(lambda: house.run("q63", "echo on").stdout == b"on\n", "an answer to q63 after the idle time")


if __name__ == "__main__":
    main()
