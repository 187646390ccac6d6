# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults, and what is recorded in spite of them. Cases of cli.py."""

import contextlib
import os
import re
import resource
import signal
import stat
import subprocess
import time

from fixture import DAEMON, HANG, PLUGINS, case, check, equal, eventually


@case
def faults_of_the_transport_are_never_a_success(f):
    f.start()
    data = "seq 20000; echo end"
    whole = f.run(data).stdout
    for fault in ("in:cut:200", "in:cut:5000", "in:corrupt:300", "in:corrupt:9000", "out:cut:20",
                  "out:corrupt:100", "out:duplicate:100", "in:duplicate:2000"):
        got = f.run(data, env=dict(QVM_REMOTE_MOCK_FAULT=fault))
        check(got.returncode in (126, 255) and b"qvm-remote: " in got.stderr, f"{fault}: {got.returncode} {got.stderr}")
        check(whole.startswith(got.stdout), f"{fault}: wrong bytes came through")
    got = f.run(data, env=dict(QVM_REMOTE_MOCK_FAULT="in:delay:20,out:delay:20"))
    check(got.returncode == 0 and got.stdout == whole, "a delay is no fault")
    eventually(lambda: b"running: 0\n" in f.dom0("status").stdout, "all sessions end")


@case
def nothing_runs_that_cannot_be_recorded(f):
    f.start()
    equal(f.run("true").returncode, 0)
    made = os.path.join(f.path, "made")
    f.stop()
    audit = f.root + "/var/log/qvm-remote/audit.jsonl"
    os.rename(audit, audit + ".kept")
    os.symlink("/dev/full", audit)
    got = f.dom0("--transport", "mock", "--plugin-dir", PLUGINS,
                 env=dict(QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work"))
    check(got.returncode == 1 and b"audit" in got.stderr, got)
    os.unlink(audit)
    os.rename(audit + ".kept", audit)
    # A limit on the size of files acts like a full disk: writes fail with EFBIG.
    size = os.path.getsize(audit)
    f.start()
    subprocess.run(["prlimit", f"--pid={f.daemon.pid}", f"--fsize={size + 10}:unlimited"], check=True)
    got = f.run(f"touch {made}")
    equal(got.returncode, 126)
    check(b"record" in got.stderr, got.stderr)
    check(not os.path.exists(made), "it ran unrecorded")
    check(b"trouble: " in f.dom0("status").stdout, "status does not say so")
    subprocess.run(["prlimit", f"--pid={f.daemon.pid}", "--fsize=unlimited:unlimited"], check=True)
    got = f.run(f"touch {made}")  # it recovers by itself
    equal(got.returncode, 0)
    check(os.path.exists(made), "not run after recovery")


@case
def the_log_for_people_is_bounded(f):
    f.start()
    equal(f.run("true").returncode, 0)
    f.stop()
    log = f.root + "/var/log/qubes/qvm-remote.log"
    with open(log, "r+b") as full:
        full.truncate(32 * 1024 * 1024 - 10)
        full.seek(0, os.SEEK_END)
        full.write(b"\nthe last\n")
    f.start()
    equal(f.run("echo after").returncode, 0)
    check(os.path.getsize(log + ".1") >= 32 * 1024 * 1024 and os.path.getsize(log) < 10_000, "the log did not begin again")
    equal(stat.S_IMODE(os.stat(log).st_mode), 0o600)
    shown = f.dom0("log", "100").stdout.splitlines()
    check(b"the last" in shown and shown[-1].find(b" DONE ") > 0, shown)
    equal(f.dom0("log", "1").stdout.splitlines(), shown[-1:])
    # A program that rotates it reloads the daemon.
    os.rename(log, log + ".old")
    f.daemon.send_signal(signal.SIGHUP)
    eventually(lambda: os.path.exists(log) and "read again" in f.log(), "reload")
    # If the log cannot be opened, the old file says so, and the daemon goes on.
    os.rename(log, log + ".older")
    os.mkfifo(log)
    f.daemon.send_signal(signal.SIGHUP)
    with open(log + ".older") as older:
        eventually(lambda: "cannot open the log" in older.read(), "what is wrong to be said")
    equal(f.run("echo alive").stdout, b"alive\n")


@case
def a_lack_of_descriptors_does_not_deafen_the_control_socket(f):
    f.start()
    subprocess.run(["prlimit", f"--pid={f.daemon.pid}", "--nofile=5:"], check=True)  # it has more open than that
    asks = [subprocess.Popen([DAEMON, "--root", f.root, "status"], env=f.env(), stdout=subprocess.PIPE)
            for _ in range(2)]
    time.sleep(0.5)
    subprocess.run(["prlimit", f"--pid={f.daemon.pid}", "--nofile=1024:"], check=True)
    for ask in asks:
        check(b"qube work" in ask.communicate(timeout=HANG)[0], "no answer")
        equal(ask.returncode, 0)


@case
def the_daemon_has_more_descriptors_than_its_commands(f):
    had = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, had[1]))
        f.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, had)
    with open(f"/proc/{f.daemon.pid}/limits") as limits:
        [soft] = re.findall(r"^Max open files +(\d+)", limits.read(), re.M)
    equal(int(soft), 65536 if had[1] == resource.RLIM_INFINITY else min(had[1], 65536))
    equal(f.run("ulimit -Sn").stdout, b"256\n")


@case
def a_damaged_index_is_made_anew(f):
    f.start()
    equal(f.run("true").returncode, 0)
    f.stop()
    index = f.root + "/var/lib/qvm-remote/ids.sqlite"
    with open(index, "wb") as i:
        i.write(b"not a database at all" * 100)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(index + suffix)
    f.start()
    equal(f.run("echo alive").stdout, b"alive\n")
    check(f"it is kept as {index}.damaged" in f.log(), f.log())


@case
def nothing_runs_unrecorded(f):
    f.start()
    audit = f.root + "/var/log/qvm-remote/audit.jsonl"
    os.rename(audit, audit + ".aside")
    check(b"audit.jsonl was removed or renamed" in f.dom0("status").stdout, "status is content")
    refused = f.run("touch " + f.path + "/ran")
    equal(refused.returncode, 126)
    check(b"was removed or renamed" in refused.stderr, refused.stderr)
    check(not os.path.exists(f.path + "/ran"), "it ran")
    os.rename(audit + ".aside", audit)
    equal(f.run("echo alive").stdout, b"alive\n")
    check(b"trouble" not in f.dom0("status").stdout, "trouble stays")
