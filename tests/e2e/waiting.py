#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands and clients that wait: what ends the wait, what does not, and what the user sees.

Usage: waiting.py BUILD-DIRECTORY [CASE...]
"""

import os
import signal
import subprocess
import threading
import time

from fixture import HANG, case, check, equal, eventually, main, on_terminal


@case
def a_client_that_was_stopped_keeps_its_command(f):
    """Ctrl-Z for longer than dom0 and the client wait for an answer to PING, then fg."""
    f.start()
    p = f.popen("echo up; read x; echo $x", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    os.kill(p.pid, signal.SIGSTOP)
    time.sleep(32)
    check("vm=work gives no sign of life" in f.log(), "dom0's log does not say that the client is silent")
    os.kill(p.pid, signal.SIGCONT)
    out, err = p.communicate(b"on\n", timeout=HANG)
    equal((p.returncode, out, err), (0, b"on\n", b""))


def take_all_slots(f):
    """Starts eight commands of the qube that run until they get a line."""
    all_of_them = [f.popen("-t", "1000", "read x", stdin=subprocess.PIPE) for _ in range(8)]
    eventually(lambda: b": running=8 waiting=0\n" in f.dom0("status").stdout, "eight that run")
    return all_of_them


def give_back(running):
    running.stdin.close()
    running.wait(HANG)


@case
def the_time_out_bounds_the_wait_for_a_slot(f):
    f.start()
    eight = take_all_slots(f)
    begin = time.monotonic()
    for seconds in ("1", "3"):
        got = f.run("-t", seconds, "echo x")
        equal((got.returncode, got.stdout), (124, b""))
        check(b"command timed out: no slot became free within the time-out (" + seconds.encode() +
              b" s; the command did not run)\n" in got.stderr, got.stderr)
    check(4 <= time.monotonic() - begin < 30, "other than what was said")
    check(b": running=8 waiting=0\n" in f.dom0("status").stdout, "what was given up waits still")
    refusals = [r for r in f.audit() if r["kind"] == "REFUSED"]
    equal([r["reason"] for r in refusals], ["slot_timeout"] * 2)
    check(b"TIMEOUT" in f.run("log").stdout, "the qube's history does not name the time-out")
    # The wait does not count for the command: one that waited for longer than a second may run for
    # two.
    waiting = f.popen("-t", "3", "sleep 2; echo x", stdout=subprocess.PIPE)
    time.sleep(2)
    give_back(eight[0])
    equal((waiting.communicate(timeout=HANG)[0], waiting.returncode), (b"x\n", 0))
    for one in eight[1:]:
        give_back(one)


@case
def a_wait_for_a_slot_is_shown_on_a_terminal(f):
    f.start()
    eight = take_all_slots(f)
    seen, _ = on_terminal(f, "-t", "4", "echo x")
    check(b" s] waiting in dom0: no slot is free (8 commands of this qube run)" in seen, seen)
    check(b"command timed out: no slot became free" in seen, seen)
    # After the wait the terminal shows that the command runs.
    later = threading.Timer(4, give_back, eight[:1])
    later.start()
    seen, out = on_terminal(f, "sleep 3; echo x", keep_stdout=True)
    equal(out, b"x\n")
    check(b"no slot is free" in seen and b" s] running in dom0" in seen.partition(b"no slot is free")[2], seen)
    later.join()
    for one in eight[1:]:
        give_back(one)


main()
