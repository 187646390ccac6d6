# SPDX-License-Identifier: GPL-2.0-or-later
"""Gives the daemons of a test a group of cgroup v2 for jobs, as qvm-remote-jobs.service does."""

import contextlib
import os
import sys
import time

GROUP = None  # the group of this test, as a path; None: this machine gives us none
NAME = None   # the same as in /proc/PID/cgroup
made = 0


def put(path, word):
    with open(path, "w", encoding="ascii") as f:
        f.write(word)


def own(group):
    """Makes a group that an ordinary user may use."""
    os.mkdir(group)
    for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "cgroup.kill"):
        with contextlib.suppress(OSError):
            os.chown(os.path.join(group, name), 65534, 65534)


def remove(group):
    for name in os.listdir(group):
        below = os.path.join(group, name)
        if os.path.isdir(below):
            remove(below)
    os.rmdir(group)


def make():
    """Makes the group of this test, if the machine lets it."""
    global GROUP, NAME
    for parent in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        name = f"/qvm-remote-jobs-{os.getpid()}"
        if os.geteuid() != 0 or not os.path.exists(parent + "/cgroup.procs"):
            continue
        with contextlib.suppress(OSError):
            own(parent + name)
            own(parent + name + "/main")
            GROUP, NAME = parent + name, name
            break


def end():
    """Ends what runs in the group, and removes it."""
    put(GROUP + "/cgroup.kill", "1")
    for _ in range(500):
        try:
            return remove(GROUP)
        except OSError:
            time.sleep(0.01)


def enter():
    """Goes on in a new process, in a group of its own. The old process removes the group afterwards."""
    make()
    if GROUP is None:
        return
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        put(GROUP + "/main/cgroup.procs", "0")
        return
    _, status = os.waitpid(child, 0)
    end()
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


def another():
    """The name of a new group for jobs."""
    global made
    made += 1
    own(f"{GROUP}/jobs-{made}")
    if os.geteuid() == 0:  # systemd's mark, for a daemon of root
        os.setxattr(f"{GROUP}/jobs-{made}", "trusted.delegate", b"1")
    return f"{NAME}/jobs-{made}"
