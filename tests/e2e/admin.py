#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Administration over the qvm-run transport: connect, disconnect, queue, status and single runs.
Usage: admin.py BUILD-DIRECTORY [CASE...]
"""

import os
import signal
import subprocess
import time

from fixture import BUILD, DAEMON, HANG, KEY, case, check, equal, eventually, main
from house import House

ID = "20260101-000000-1-0000000a"


def admin(house, *words, stdin=None):
    """Runs qvm-remote-dom0 as the operator does."""
    path = os.path.join(BUILD, "tests", "standin")
    return house.f.dom0(*words, stdin=stdin, env={
        "PATH": path + ":" + os.environ["PATH"], "QVMREMOTE_STANDIN": house.machine.path})


def conf(house, text=None):
    path = os.path.join(house.f.root, "etc", "qubes", "remote.conf")
    if text is not None:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        with open(path, "w") as f:
            f.write(text)
    with open(path) as f:
        return f.read()


def leave(house, qube, part, name, text="echo\n"):
    path = os.path.join(house.machine.home(qube), ".qvm-remote", "queue", part)
    os.makedirs(path, 0o700, exist_ok=True)
    with open(os.path.join(path, name), "w") as f:
        f.write(text)
    return os.path.join(path, name)


@case
def connect_and_disconnect(f):
    house = House(f, "work")
    house.add("dev", authorized=False)
    conf(house, "# ours\nQVM_REMOTE_VMS=\"work\" # the first\nQVM_REMOTE_VM_USER=user\n")
    house.restart()
    house.wait_for_agent("work")
    got = admin(house, "connect", "dev", stdin=(KEY + "\n").encode())
    equal(got.returncode, 0)
    check(b"IS dom0" in got.stderr and got.stdout.startswith(b"dev SHA256:"), got)
    equal(conf(house), "# ours\nQVM_REMOTE_VMS=\"work dev\" # the first\nQVM_REMOTE_VM_USER=user\n")
    house.wait_for_agent("dev")
    equal(house.run("dev", "echo in").stdout, b"in\n")
    junk = leave(house, "dev", "results", ID + ".out")
    got = admin(house, "disconnect", "dev")
    equal((got.returncode, got.stdout), (0, b"dev: removed 1\n"))
    check("QVM_REMOTE_VMS=work #" in conf(house), conf(house))
    check(not os.path.exists(junk), "the queue is not empty")
    eventually(lambda: not house.has_agent("dev"), "the call's end")
    equal(house.run("work", "echo on").stdout, b"on\n")
    # After the last qube is off the list, other qubes with a key are not served.
    equal(admin(house, "authorize", "dev", stdin=(KEY + "\n").encode()).returncode, 0)
    equal(admin(house, "disconnect", "work").returncode, 0)
    time.sleep(0.3)
    check(not house.has_agent("dev") and not house.has_agent("work"), "somebody is served")
    equal(admin(house, "connect", "dev", stdin=(KEY + "\n").encode()).returncode, 0)
    check("QVM_REMOTE_VMS=dev #" in conf(house), conf(house))
    house.wait_for_agent("dev")
    for words in (["connect"], ["connect", "../x"], ["disconnect"], ["disconnect", "a/b"],
                  ["connect", "dom0"]):
        got = admin(house, *words, stdin=b"\n")
        check(got.returncode == 1 and got.stderr.startswith(b"qvm-remote-dom0: "), (words, got))
    got = admin(house, "disconnect", "unknown")
    check(got.returncode == 1 and b"no key" in got.stderr, got)


@case
def authorize_reads_the_key_in_the_qube(f):
    house = House(f, "work")
    house.add("dev", authorized=False)
    got = admin(house, "authorize", "dev", "--fetch", stdin=b"no\n")
    check(got.returncode == 1 and b"nothing was changed" in got.stderr, got)
    got = admin(house, "authorize", "dev", "--fetch", stdin=b"yes\n")
    check(got.returncode == 0 and b"dev has the key SHA256:" in got.stderr, got)
    house.wait_for_agent("dev")
    house.add("off", authorized=False, state="Halted")
    got = admin(house, "authorize", "off", "--fetch", stdin=b"yes\n")
    check(got.returncode == 1 and b"start the qube" in got.stderr, got)
    equal(house.machine.violations(), "")


@case
def queues_are_looked_at_and_cleaned(f):
    house = House(f, "work", "dev")
    house.add("off", state="Halted")
    house.wait_for_agent("work", "dev")
    leave(house, "work", "results", ID + ".exit", "0")
    leave(house, "work", "results", "\x1b[31mred", "0")
    got = admin(house, "queue")
    check(got.returncode == 0 and b"work: results 2\n" in got.stdout and b"dev: pending 0\n" in got.stdout
          and b"off: not running\n" in got.stdout, got)
    got = admin(house, "queue", "debug", "work")
    check(ID.encode() in got.stdout and b"\x1b" not in got.stdout, got)
    got = admin(house, "queue", "clean", "work")
    equal((got.returncode, got.stdout), (0, b"work: removed 2\n"))
    check(b"work: results 0\n" in admin(house, "queue", "status", "work").stdout, "not empty")
    for words in (["queue", "x"], ["queue", "status", "../x"], ["queue", "status", "off"],
                  ["queue", "status", "nothing"]):
        got = admin(house, *words)
        check(got.returncode == 1 and b"qvm-remote-dom0: " in got.stderr, (words, got))
    equal(house.machine.violations(), "")


@case
def what_a_dead_daemon_left_is_recovered(f):
    house = House(f, "work").wait_for_agent("work")
    got = admin(house, "queue", "recover")
    check(got.returncode == 1 and b"the daemon is running" in got.stderr, got)
    f.stop()
    eventually(lambda: not house.has_agent("work"), "the agent's end")
    left = leave(house, "work", "running", ID)
    got = admin(house, "queue", "recover", "work")
    equal((got.returncode, got.stdout), (0, f"work: {ID}\n".encode()))
    results = os.path.join(house.machine.home("work"), ".qvm-remote", "queue", "results", ID)
    with open(results + ".exit") as e, open(results + ".err") as err, open(results + ".meta") as meta:
        equal(e.read(), "130")
        check("unknown" in err.read() and f"id={ID}\n" in meta.read(), "its words")
    check(not os.path.exists(left), "it is still there")


@case
def the_daemon_reports_what_a_dead_one_left(f):
    house = House(f, "work").wait_for_agent("work")
    f.stop()
    eventually(lambda: not house.has_agent("work"), "the agent's end")
    leave(house, "work", "running", ID)
    house.start()
    results = os.path.join(house.machine.home("work"), ".qvm-remote", "queue", "results", ID)
    eventually(lambda: os.path.exists(results + ".exit"), "a result")
    with open(results + ".exit") as e, open(results + ".err") as err:
        equal(e.read(), "130")
        check("unknown" in err.read(), "its words")


@case
def a_result_that_is_there_is_not_reported_as_unknown(f):
    """The program that wrote the result ended before it removed the entry."""
    house = House(f, "work").wait_for_agent("work")
    house.add("shell", agent=False)
    f.stop()
    eventually(lambda: not house.has_agent("work"), "the agent's end")

    def left_by_a_dead_one(name):
        for qube in ("work", "shell"):
            yield leave(house, qube, "running", name), leave(house, qube, "results", name + ".exit", "0")

    pairs = list(left_by_a_dead_one(ID))
    equal(admin(house, "queue", "recover").returncode, 0)
    pairs += list(left_by_a_dead_one(ID[:-1] + "b"))
    house.start()
    for entry, code in pairs:
        eventually(lambda: not os.path.exists(entry), "the entry's end")
        with open(code) as e:
            equal(e.read(), "0")


@case
def status_names_qubes_that_are_not_connected(f):
    house = House(f, "work")
    house.add("off", state="Halted")
    house.wait_for_agent("work")
    # The agent listens a moment before the daemon has taken its stream.
    eventually(lambda: b"qube work: running=0 waiting=0\n" in admin(house, "status").stdout, "work is connected")
    got = admin(house, "status")
    check(b"qube off: not connected\n" in got.stdout, got)


@case
def a_single_run_serves_each_running_qube_and_ends(f):
    house = House(f, "work", key=KEY)
    house.add("shell", agent=False)
    house.add("off", state="Halted")
    f.stop()
    for name in ("work", "shell"):
        stamp = time.strftime("%Y%m%d-%H%M%S") + "-1-0000000b"
        token = subprocess.run(["openssl", "dgst", "-sha256", "-hmac", KEY], input=stamp.encode(),
                               stdout=subprocess.PIPE, check=True).stdout.split()[-1].decode()
        leave(house, name, "pending", stamp + ".auth", token)
        leave(house, name, "pending", stamp, "echo once\n")
    got = house.single_run()
    equal((got.returncode, got.stderr), (0, b""))
    for name in ("work", "shell"):
        results = os.path.join(house.machine.home(name), ".qvm-remote", "queue", "results")
        found = [n for n in os.listdir(results) if n.endswith(".out")]
        equal(len(found), 1)
        with open(os.path.join(results, found[0])) as out:
            equal(out.read(), "once\n")
    equal(house.machine.violations(), "")


@case
def a_listed_qube_that_cannot_be_served_is_named(f):
    """By status, by the log once after a reload, and by a single run, which serves the others and returns 1."""
    house = House(f, "work", key=KEY)
    house.add("off", state="Halted")
    conf = os.path.join(f.root, "etc/qubes/remote.conf")
    with open(conf, "w") as c:
        c.write("QVM_REMOTE_VMS='work off nokey late -'\n")
    os.chmod(conf, 0o644)
    equal(f.dom0("authorize", "late", stdin=KEY.encode()).returncode, 0)
    until = os.path.join(f.root, "etc/qubes/remote.d/late.until")
    with open(until, "w") as u:
        u.write("1\n")
    os.chmod(until, 0o600)
    before = f.log()
    f.daemon.send_signal(signal.SIGHUP)
    wanted = "qube nokey: listed, but has no key: qvm-remote-dom0 authorize nokey"
    eventually(lambda: "read again" in f.log()[len(before):], "the reload")
    said = f.log()[len(before):]
    equal(said.count(wanted), said.count("read again"))
    house.wait_for_agent("work")
    lines = admin(house, "status").stdout.decode().splitlines()
    equal(lines.count(wanted), 1)
    late = [line for line in lines if line.startswith("qube late: listed, but its key is not used: ")]
    equal(len(late), 1)
    check(not any("qube -" in line or "'-'" in line for line in lines), lines)
    f.stop()
    got = house.single_run()
    equal((got.returncode, got.stderr.decode().splitlines()),
          (1, ["qvm-remote-dom0: " + line for line in (wanted, *late)]))
    with open(conf, "w") as c:
        c.write("QVM_REMOTE_VMS='work off'\n")
    got = house.single_run()
    equal((got.returncode, got.stderr), (0, b""))
    got = house.single_run("--vm", "nokey")
    check(got.returncode == 1 and wanted.encode() in got.stderr, got)


@case
def a_single_run_names_qubes_that_it_could_not_reach(f):
    house = House(f, "work")
    house.add("broken", faults="refuse")
    f.stop()
    got = house.single_run("--wait", "2")
    check(got.returncode == 1 and b"broken" in got.stderr and b"work" not in got.stderr, got)


@case
def a_single_run_without_a_running_qube_has_nothing_to_do(f):
    house = House(f)
    house.add("off", state="Halted")
    f.stop()
    equal(house.single_run().returncode, 0)


main()
