#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever waits: what ends a command that waits, what does not, and what its user is told.

Usage: waiting.py BUILD-DIRECTORY [CASE...]
"""

import os
import signal
import subprocess
import time

from fixture import HANG, case, check, equal, main


@case
def a_client_that_was_stopped_keeps_its_command(f):
    """Ctrl-Z for longer than dom0 and the client wait for a sign of life, then fg."""
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


main()
