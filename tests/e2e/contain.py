#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Containment: what a command gets, what it may use, and that all its processes end. The daemon has no
cgroup of its own here; tests/vm tests it with one.
"""

import os
import re
import subprocess

from fixture import DAEMON, PLUGINS, case, check, equal, eventually, main, survivors

SECURITY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "doc", "SECURITY.md")
STUBBORN = ("trap '' TERM HUP INT QUIT; ( ( setsid bash -c 'trap \"\" TERM HUP INT QUIT; while :; do sleep 1; "
            "done' & ) & ); echo up; while :; do sleep 1; done")


def documented():
    """The section of the document about what a command gets, as one line."""
    with open(SECURITY, encoding="utf-8") as f:
        text = f.read()
    section = re.search(r"^## What a command gets\n(.*?)^## ", text, re.M | re.S)
    return " ".join(section[1].split())


@case
def the_environment_is_what_is_documented(f):
    said = re.search(r"\*\*Environment\*\*: (.*?)\. After these", documented())[1]
    wanted = dict.fromkeys(re.findall(r"`([A-Z_]+)[`=]", said))
    fixed = dict(re.findall(r"`([A-Z_]+)=([^`]*)`", said))
    check(len(wanted) == 8 and "PATH" in fixed, said)
    f.start()
    got = f.run("--exec", "cat", "/proc/self/environ", env=dict(SECRET="leak", TERM="x", LC_ALL="C", BASH_ENV="x"))
    equal(got.returncode, 0)
    entries = dict(e.split("=", 1) for e in got.stdout.decode().rstrip("\0").split("\0"))
    equal(list(entries), list(wanted))
    for name, value in fixed.items():
        equal(entries[name], value)
    equal(entries["QVM_REMOTE_PEER"], "work")


@case
def descriptors_are_what_is_documented(f):
    said = documented()
    check("**Descriptors**: three." in said and "Only root can change that file" in said, said)
    f.start()

    def descriptors(*words, stdin=None):
        got = f.run(*words, stdin=stdin)
        check(got.returncode == 0, got)
        return dict(re.findall(r" (\d+) -> (.*)", got.stdout.decode()))

    show = ["ls", "-l", "/proc/self/fd"]
    found = descriptors("--exec", *show)
    # ls opens one more, for the directory that it lists.
    equal([n for n, to in found.items() if not to.startswith("/proc/")], ["0", "1", "2"])
    equal(found["0"], "/dev/null")
    check(found["1"].startswith("pipe:") and found["2"].startswith("pipe:"), found)
    check(descriptors("--exec", *show, stdin=b"x")["0"].startswith("pipe:"), "stdin is streamed")
    script = os.path.join(f.path, "script")
    with open(script, "w", encoding="utf-8") as s:
        s.write("#!/bin/bash\nls -l /proc/$$/fd\n")
    found = descriptors("--script", script)
    # bash keeps its script open at another number.
    equal([n for n, to in found.items() if "/var/spool/qvm-remote/" not in to], ["0", "1", "2"])


@case
def a_process_that_ignores_every_signal_ends_and_others_go_on(f):
    f.start()
    other = f.popen("for i in {1..100}; do echo $i; sleep 0.03; done", stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE)
    mark = f"contain-mark-stubborn-{os.getpid()}"
    got = f.run("-t", "1", f"export MARK={mark}; {STUBBORN}")
    equal((got.returncode, got.stdout), (124, b"up\n"))
    equal(survivors(mark), [])  # at once, because END comes after the last process has ended
    equal(other.communicate()[0].split(), [b"%d" % i for i in range(1, 101)])
    equal(other.returncode, 0)
    equal(f.run("echo still here").stdout, b"still here\n")


@case
def a_lost_client_leaves_nothing_of_a_stubborn_command(f):
    f.start()
    mark = f"contain-mark-lost-{os.getpid()}"
    p = f.popen(f"export MARK={mark}; {STUBBORN}", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    p.kill()
    p.wait()
    eventually(lambda: not survivors(mark), "the tree ends")


@case
def too_much_output_ends_a_command(f):
    f.start(QVM_REMOTE_MAX_OUTPUT="100K")
    most = 100 * 1024
    got = f.run(f"head -c {most} /dev/zero")
    equal((got.returncode, len(got.stdout)), (0, most))
    mark = f"contain-mark-output-{os.getpid()}"
    for command in (f"head -c {most + 1} /dev/zero", "yes", "yes >&2",
                    f"head -c {most} /dev/zero; echo >&2",
                    f"export MARK={mark}; trap '' PIPE TERM; setsid sleep 1000 & "
                    "while :; do echo too much; done 2>/dev/null"):
        got = f.run(command)
        equal(got.returncode, 126)
        words = got.stderr.splitlines()[-1]
        check(words.startswith(b"qvm-remote: ") and b"more than the 102400 bytes" in words, words)
        ours = len(words) + 1
        equal(len(got.stdout) + len(got.stderr) - ours, most)
    equal(survivors(mark), [])
    ends = [line for line in f.audit() if line["kind"] == "END"]
    equal([e.get("reason") for e in ends], [None] + ["denied"] * 5)


@case
def memory_is_bounded_for_each_process_where_there_is_no_controller(f):
    f.start(QVM_REMOTE_MAX_MEMORY="64M")
    status = f.dom0("status").stdout.decode()
    if "cannot be bounded: memory" not in status:
        print("    skipped: " + status)
        return
    equal(f.run("ulimit -d; ulimit -c").stdout, b"65536\n0\n")
    got = f.run("head -c 200M /dev/zero | tail -n 1 | wc -c")
    check(b"memory exhausted" in got.stderr and got.stdout == b"0\n", got)
    equal(f.run("echo small").stdout, b"small\n")


@case
def without_bounds_a_command_has_the_limits_of_the_daemon(f):
    f.start()
    equal(f.run("ulimit -a").stdout, subprocess.run(["bash", "-c", "ulimit -a"], capture_output=True,
                                                    check=True).stdout)


@case
def ceilings_that_cannot_be_read_are_refused(f):
    for name, value in (("MEMORY", "much"), ("MEMORY", "0"), ("MEMORY", "1T"), ("OUTPUT", "-1"),
                        ("PROCESSES", "1K"), ("CPU", "50%"), ("CPU", "99999999999")):
        got = f.run("--root", f.root, "--transport", "mock", "--plugin-dir", PLUGINS, program=DAEMON,
                    env={f"QVM_REMOTE_MAX_{name}": value})
        check(got.returncode == 1 and f"QVM_REMOTE_MAX_{name}".encode() in got.stderr, got)


if __name__ == "__main__":
    main()
