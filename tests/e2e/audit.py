#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The audit log as its programs see it: checked, shown, exported, rotated, and after kill -9 of the daemon.
Usage: audit.py BUILD-DIRECTORY [ROUNDS=N] [SECONDS=N] [CASE...]
It kills the daemon ROUNDS times, or as often as SECONDS allow.
"""

import contextlib
import glob
import json
import os
import random
import signal
import socket
import subprocess
import time

from words import number

ROUNDS, SECONDS = number("ROUNDS", 50), number("SECONDS", 50)

from fixture import CLIENT, HANG, KEY, case, check, equal, eventually, main  # noqa: E402


def audit_path(f):
    return os.path.join(f.root, "var/log/qvm-remote/audit.jsonl")


def stand_in(f, text):
    """A journalctl for this test, first in the PATH."""
    place = os.path.join(f.path, "bin")
    os.makedirs(place, exist_ok=True)
    with open(os.path.join(place, "journalctl"), "w") as j:
        j.write("#!/bin/sh\necho \"$@\" >" + place + "/asked\n" + text)
    os.chmod(os.path.join(place, "journalctl"), 0o755)
    return {"PATH": place + ":" + os.environ["PATH"]}


class Journal:
    """The system journal's socket below a root."""

    def __init__(self, f):
        path = os.path.join(f.root, "run/systemd/journal/socket")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.setblocking(False)

    def heads(self):
        out = []
        with contextlib.suppress(BlockingIOError):
            while True:
                fields = dict(x.split("=", 1) for x in self.socket.recv(4096).decode().splitlines())
                equal(fields["SYSLOG_IDENTIFIER"], "qvm-remote-audit")
                out.append(fields["MESSAGE"])
        return out


@case
def verify_finds_each_fault(f):
    journal = Journal(f)
    f.start()
    for word in "abc":
        equal(f.run("echo " + word).returncode, 0)
    env = stand_in(f, "exit 1\n")
    got = f.dom0("audit", "verify", env=env)  # while the daemon runs
    check(got.returncode == 0 and b"good: " in got.stdout and b"not compared" in got.stdout, got)
    f.stop()
    heads = journal.heads()
    check(heads and heads[-1].startswith("audit head 7 "), heads)  # one ADMIN, and three STARTs with their ENDs
    env = stand_in(f, "cat <<'X'\n" + "\n".join(heads) + "\nX\n")
    got = f.dom0("audit", "verify", env=env)
    check(got.returncode == 0 and b"serial 1 to 7" in got.stdout and b"the last with serial 7" in got.stdout, got)
    with open(os.path.join(f.path, "bin/asked")) as asked:
        words = asked.read()
        check("SYSLOG_IDENTIFIER=qvm-remote-audit" in words and "--root=" + f.root in words
              and f"_UID={os.geteuid()}" in words, words)

    with open(audit_path(f), "rb") as log:
        whole = log.read()
    lines = whole.splitlines(keepends=True)

    def verdict(changed, heads_text="\n".join(heads) + "\n"):
        with open(audit_path(f), "wb") as log:
            log.write(b"".join(changed))
        return f.dom0("audit", "verify", "--heads", "-", stdin=heads_text.encode())

    rows = [
        (lines[:2] + [lines[2].replace(b'"work"', b'"dev"', 1)] + lines[3:], b":3 (serial 3) does not follow"),
        (lines[:2] + lines[3:], b":3 (serial 3) does not have the next serial"),
        (lines[:3] + [lines[4], lines[3]] + lines[5:], b":4 (serial 4)"),
        (lines[1:], b":1 (serial 1)"),
        (lines[:6], b"lines were cut off after it, up to serial 7"),
        ([], b"up to serial 7"),
        (lines[:4] + [b"\n"] + lines[4:], b":5 (serial 5) is not a line that dom0 wrote"),
        (lines[:4] + [b"x" * 200_000], b":5 (serial 5) is not a line that dom0 wrote"),
    ]
    for changed, words in rows:
        got = verdict(changed)
        check(got.returncode == 1 and words in got.stderr and b"keep all files" in got.stderr, (words, got))
        equal(got.stdout, b"")
    got = verdict(lines + [b'{"n":8,"t":'])
    check(got.returncode == 0 and b"as after a crash" in got.stderr, got)
    got = verdict(lines, "nothing\n")
    check(got.returncode == 1 and b"no line of - ends in a head" in got.stderr, got)
    equal(verdict(lines).returncode, 0)


@case
def show_and_export_read_what_was_written(f):
    f.start()
    equal(f.run("printf '\\033[31m%s' red; exit 3").returncode, 3)
    f.run("--exec", "printf", "%s", "\x1b]0;title\x07", "two words", "")
    sleeping = f.popen("sleep 1000", stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    eventually(lambda: any("sleep 1000" in r.get("argv", []) for r in f.audit()), "its START")
    start = f.audit()[-1]["n"]
    got = f.dom0("audit", "show", "2")
    equal(got.returncode, 0)
    text = got.stdout.decode()
    check("\x1b" not in text, text)
    check("kind           START" in text and "kind           END" in text and "exit           3" in text, text)
    equal(f.dom0("audit", "show", "3").stdout, got.stdout)  # the serial of its END shows the START too
    text = f.dom0("audit", "show", "4").stdout.decode()
    check("argv           printf %s \\x1b]0;title\\x07 'two words' ''" in text, text)
    check(b"no END yet: it is running" in f.dom0("audit", "show", str(start)).stdout, "still running")
    f.daemon.kill()
    f.daemon.wait(HANG)
    f.daemon = None
    sleeping.wait(HANG)
    check(b"outcome unknown" in f.dom0("audit", "show", str(start)).stdout, "nobody knows")
    f.spawn("mock", QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work")
    text = f.dom0("audit", "show", str(start)).stdout
    check(b"cause          unknown" in text and b"outcome unknown: the daemon ended" in text, text)

    everything = f.dom0("audit", "export").stdout
    with open(audit_path(f), "rb") as log:
        equal(everything, log.read())
    some = f.dom0("audit", "export", "--since", "3", "--format", "text").stdout.decode().splitlines()
    equal(len(some), len(everything.splitlines()) - 2)
    check(" 3 END peer=work" in some[0] and "\x1b" not in "".join(some), some[0])
    for words in (["audit"], ["audit", "x"], ["audit", "show"], ["audit", "show", "0"], ["audit", "show", "x"],
                  ["audit", "show", "999"], ["audit", "export", "--since", "-1"], ["audit", "verify", "x"],
                  ["audit", "export", "--format", "xml"], ["audit", "export", "--heads", "-"],
                  ["audit", "verify", "--heads", "/nowhere"]):
        got = f.dom0(*words)
        check(got.returncode == 1 and b"qvm-remote-dom0: " in got.stderr, (words, got))


@case
def a_new_file_is_begun_on_demand(f):
    f.start()
    for n in range(3):
        equal(f.run(f"echo {n}").returncode, 0)
        equal(f.dom0("audit", "rotate").returncode, 0)
        eventually(lambda: len(glob.glob(audit_path(f) + ".*")) == n + 1, "a new file")
    equal(f.run("echo on").stdout, b"on\n")
    got = f.dom0("audit", "verify", env=stand_in(f, ""))
    check(got.returncode == 0 and b"in 4 files" in got.stdout, got)
    equal(f.dom0("audit", "export").stdout.count(b'"kind":"START"'), 4)
    f.stop()
    check(f.dom0("audit", "rotate").returncode == 1, "nobody is there to do it")
    oldest = sorted(glob.glob(audit_path(f) + ".*"))[0]
    os.rename(oldest, oldest + ".gone")
    got = f.dom0("audit", "verify", env=stand_in(f, ""))
    check(got.returncode == 1 and b"were removed since" in got.stderr, got)


@case
def what_the_administrator_does_is_recorded(f):
    equal(f.dom0("authorize", "dev", stdin=KEY.encode()).returncode, 0)  # without a daemon
    f.start()
    equal(f.dom0("authorize", "work", stdin=KEY.encode()).returncode, 0)
    equal(f.run("true").returncode, 0)
    equal(f.dom0("revoke", "work").returncode, 0)
    equal(f.dom0("revoke", "work").returncode, 1)
    f.stop()
    equal(f.dom0("revoke", "dev").returncode, 0)
    acts = [(r["peer"], r["reason"].split()[0], "user" in r) for r in f.audit() if r["kind"] == "ADMIN"]
    equal(acts, [("dev", "authorize", True), ("work", "authorize", True), ("work", "authorize", True),
                 ("work", "revoke", True), ("dev", "revoke", True)])
    equal(f.dom0("audit", "verify", env=stand_in(f, "")).returncode, 0)
    # What cannot be recorded is not done, except that a key is removed.
    equal(f.dom0("authorize", "dev", stdin=KEY.encode()).returncode, 0)
    os.rename(audit_path(f), audit_path(f) + ".kept")
    os.symlink("/dev/full", audit_path(f))
    got = f.dom0("authorize", "work", stdin=KEY.encode())
    check(got.returncode == 1 and b"nothing was changed" in got.stderr, got)
    check(not os.path.exists(f.root + "/etc/qubes/remote.d/work.key"), "authorized")
    got = f.dom0("revoke", "dev")
    check(got.returncode == 1 and b"not recorded" in got.stderr, got)
    check(not os.path.exists(f.root + "/etc/qubes/remote.d/dev.key"), "not revoked")


@case
def a_full_disk_is_reported_to_the_client(f):
    f.start()
    equal(f.run("true").returncode, 0)
    size = os.path.getsize(audit_path(f))
    subprocess.run(["prlimit", f"--pid={f.daemon.pid}", f"--fsize={size + 10}:unlimited"], check=True)
    got = f.run("true")
    check(got.returncode == 126 and b"cannot write the audit log" in got.stderr, got)
    check(b"trouble: cannot write the audit log" in f.dom0("status").stdout, "status")
    # Now the log for people cannot be written either, and the kernel sends SIGXFSZ.
    subprocess.run(["prlimit", f"--pid={f.daemon.pid}", "--fsize=10:unlimited"], check=True)
    equal(f.run("true").returncode, 126)
    subprocess.run(["prlimit", f"--pid={f.daemon.pid}", "--fsize=unlimited:unlimited"], check=True)
    equal(f.run("true").returncode, 0)
    check(b"trouble" not in f.dom0("status").stdout, "it has recovered")
    equal(f.dom0("audit", "verify", env=stand_in(f, "")).returncode, 0)


@case
def a_stop_leaves_no_start_without_its_end(f):
    """This includes requests whose START was being written when their client ended."""
    f.start()
    rng = random.Random(20260219)
    for _ in range(15):
        size = os.path.getsize(audit_path(f))
        clients = [subprocess.Popen([CLIENT, "true"], env=f.env(), stdin=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(8)]
        eventually(lambda: os.path.getsize(audit_path(f)) > size, "a START")
        time.sleep(rng.random() * 0.01)
        for c in clients:
            c.kill()
        f.stop()
        for c in clients:
            c.wait(HANG)
        open_starts = {r["n"] for r in f.audit() if r["kind"] == "START"} - {
            r["of"] for r in f.audit() if r["kind"] == "END"}
        equal(open_starts, set())
        f.spawn("mock", QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work")


@case
def kill_at_any_moment_leaves_a_record_of_all_that_ran(f):
    """Clients run one after another as fast as they can, and the daemon is killed at random points."""
    journal = Journal(f)
    f.start()
    env = stand_in(f, "exit 1\n")
    ran = os.path.join(f.path, "ran")
    rng = random.Random(20260218)
    clients = []
    loop = f"while :; do {CLIENT} 'echo $QVM_REMOTE_ID >>{ran}'; done"
    for _ in range(2):
        clients.append(subprocess.Popen(["bash", "-c", loop], env=f.env(), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        start_new_session=True))
    heads = []
    deadline = time.monotonic() + SECONDS  # a slow machine does fewer rounds
    done = 0
    try:
        while done < ROUNDS and time.monotonic() < deadline:
            if done % 2:  # while a START is being written, or at any time
                size = os.path.getsize(audit_path(f))
                eventually(lambda: os.path.getsize(audit_path(f)) > size, "a START")
            time.sleep(rng.random() * 0.02)
            f.daemon.kill()
            f.daemon.wait(HANG)
            heads += journal.heads()
            if done % 10 == 0:
                check_records(f, env, heads)
            f.spawn("mock", QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work")
            done += 1
    finally:
        for c in clients:
            os.killpg(c.pid, signal.SIGKILL)
            c.wait(HANG)
    f.stop()
    heads += journal.heads()
    started = check_records(f, env, heads)
    ends = {r["of"] for r in f.audit() if r["kind"] == "END"}
    check(set(started.values()) <= ends, "a START that no END answers for")
    print(f"    killed {done} times; {len(started)} STARTs, {len(heads)} heads")


def check_records(f, env, heads):
    got = f.dom0("audit", "verify", "--heads", "-", stdin=("\n".join(heads) + "\n").encode()) if heads \
        else f.dom0("audit", "verify", env=env)
    equal(got.returncode, 0)
    started = {}
    for line in f.dom0("audit", "export").stdout.splitlines():
        r = json.loads(line)
        if r["kind"] == "START":
            check(r["id"] not in started, f"{r['id']} was started twice (I2)")
            started[r["id"]] = r["n"]
    with contextlib.suppress(FileNotFoundError), open(os.path.join(f.path, "ran")) as r:
        ids = r.read().split()
        check(set(ids) <= set(started), "it ran, and no START says so (I8)")
        equal(len(ids), len(set(ids)))
    return started


if __name__ == "__main__":
    main()
