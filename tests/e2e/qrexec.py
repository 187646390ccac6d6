#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The qrexec transport from end to end: client, stand-in of qrexec, daemon, several qubes. Cases for every
transport are in common.py. Usage: qrexec.py BUILD-DIRECTORY [CASE...]
"""

import os
import signal
import stat
import subprocess
import time

from fixture import BUILD, CLIENT, HANG, case, check, equal, eventually, main, survivors
from house import BothHouse, KeptHouse, QrexecHouse

SOCKET = "run/qubes-rpc/qvmremote.Exec"
SERVICE = os.path.join(BUILD, "plugins", "qrexec", "qvmremote.Exec")


def processes_of(f):
    """The children of the daemon, which is only its warden."""
    with open(f"/proc/{f.daemon.pid}/task/{f.daemon.pid}/children") as children:
        return children.read().split()


@case
def what_the_platform_says_is_told_and_never_hangs(f):
    house = QrexecHouse(f, "work", "other")
    for fault, code, says in (
            ("refuse", 126, b"the policy of qrexec refuses the call to qvmremote.Exec in dom0 (Request refused)"),
            ("trouble", 255, b"qrexec could not make the call to qvmremote.Exec in dom0 (vchan connection failed)"),
            ("descriptor-cut 20", 255, b"without an answer"),
            ("descriptor-cut 0", 255, b"without an answer"),
            ("descriptor-long 64", 255, b"without an answer"),
            ("descriptor-long 4000", 255, b"without an answer"),
            ("descriptor-service", 255, b"without an answer"),
            ("descriptor-name", 255, b"without an answer"),
            ("cut 0", 255, b"without an answer"),
            ("cut 200", 255, b"incomplete")):
        house.machine.set_faults("work", fault)
        got = house.run("work", "seq 10000")
        check(got.returncode == code and says in got.stderr, (fault, got))
        equal(got.stderr.count(b"\n"), 1)
        equal(house.run("other", "echo fine").stdout, b"fine\n")
    house.machine.set_faults("work", "refuse")
    got = house.run("work", "ping")
    check(got.returncode == 1 and b"the policy of qrexec refuses" in got.stderr, got)
    house.machine.set_faults("work", "hang")
    got = house.run("work", "-t", "2", "true")
    check(got.returncode == 255 and b"dom0 does not answer" in got.stderr, got)
    # Here the daemon waits for the rest of a descriptor without NUL, so the failure comes late.
    house.machine.set_faults("work", "descriptor-no-nul")
    got = house.run("work", "-t", "10", "true")
    check(got.returncode == 255, got)
    equal(house.run("other", "echo fine").stdout, b"fine\n")
    f.stop()
    got = house.run("other", "true")
    check(got.returncode == 255 and b"there is no service qvmremote.Exec in dom0" in got.stderr, got)
    equal(house.machine.violations(), "")


@case
def the_service_is_there_while_the_daemon_is(f):
    house = QrexecHouse(f, "work")
    path = os.path.join(f.root, SOCKET)
    at = os.stat(path)
    check(stat.S_ISSOCK(at.st_mode) and stat.S_IMODE(at.st_mode) == 0o660, oct(at.st_mode))
    f.daemon.kill()
    f.daemon.wait()
    check(os.path.exists(path), "a killed daemon took it away")
    house.start()
    equal(house.run("work", "echo again").stdout, b"again\n")
    f.stop()
    check(not os.path.exists(path), "it is still there")


@case
def nothing_is_started_for_a_call(f):
    house = QrexecHouse(f, "work")
    before = processes_of(f)
    held = [house.popen("work", "read x", stdin=subprocess.PIPE) for _ in range(4)]
    eventually(lambda: b"running: 4\n" in f.dom0("status").stdout, "four run")
    equal(processes_of(f), before)
    for p in held:
        p.stdin.close()
        p.wait(HANG)
    check(len(house.machine.calls("qrexec-client-vm")) == 4, house.machine.calls())


@case
def thirty_two_at_once_and_eight_calls(f):
    house = QrexecHouse(f, "work")
    clients = [house.popen("work", f"sleep 0.2; echo {n}; exit {n}", stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE) for n in range(32)]
    most = 0
    while any(c.poll() is None for c in clients):
        status = f.dom0("status").stdout.decode()
        most = max(most, int(status.split("streams: ")[1].split()[0]))
    for n, c in enumerate(clients):
        out, err = c.communicate(timeout=HANG)
        equal((c.returncode, out, err), (n, f"{n}\n".encode(), b""))
    # A client that ends frees its lock a moment before dom0 sees the end of its call.
    check(1 < most <= 16, f"{most} streams")


@case
def a_client_that_waits_for_a_call_can_be_interrupted(f):
    house = QrexecHouse(f, "work")
    held = [house.popen("work", "read x", stdin=subprocess.PIPE) for _ in range(8)]
    eventually(lambda: b"running: 8\n" in f.dom0("status").stdout, "eight run")
    p = house.popen("work", "true", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    time.sleep(0.3)
    check(p.poll() is None, "it did not wait")
    p.send_signal(signal.SIGINT)
    equal((p.communicate(timeout=HANG)[1].count(b"\n"), p.returncode), (1, 130))
    got = house.run("work", "-t", "1", "true")
    check(got.returncode == 124 and b"command timed out: " in got.stderr and b"8 calls of this user" in got.stderr, got)
    for c in held:
        c.stdin.close()
        c.wait(HANG)


@case
def the_argument_goes_with_the_call(f):
    house = QrexecHouse(f, "work")
    # The qube has full access, and the argument of its call reduces it.
    got = house.run("work", "echo x", QVM_REMOTE_QREXEC_ARGUMENT="monitor")
    check(got.returncode == 126 and b"dom0 refuses: denied by policy" in got.stderr, got)
    equal(house.run("work", "echo x").stdout, b"x\n")
    check("qvmremote.Exec+monitor" in house.machine.calls("qrexec-client-vm")[-2], house.machine.calls())
    got = house.run("work", "true", QVM_REMOTE_QREXEC_TARGET="mgmt")
    check(got.returncode == 126 and b"in mgmt" in got.stderr, got)
    equal(house.run("work", "echo kw", QVM_REMOTE_QREXEC_TARGET="@adminvm").stdout, b"kw\n")


@case
def many_clients_share_a_kept_call(f):
    house = KeptHouse(f, "work").wait_for_agent("work")
    clients = [house.popen("work", f"echo {n}; exit {n}", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE) for n in range(40)]
    for n, c in enumerate(clients):
        out, err = c.communicate(timeout=HANG)
        equal((c.returncode, out, err), (n, f"{n}\n".encode(), b""))
    check(len(house.machine.calls("qrexec-client-vm")) == 1, house.machine.calls())
    # And when the agent ends, clients make calls of their own.
    house.agents["work"].terminate()
    equal(house.agents["work"].wait(HANG), 0)
    check(not house.has_agent("work"), "its socket is still there")
    equal(house.run("work", "echo alone").stdout, b"alone\n")
    check(len(house.machine.calls("qrexec-client-vm")) == 2, house.machine.calls())


@case
def an_agent_whose_call_is_refused_says_so_and_ends(f):
    house = QrexecHouse(f, "work")
    house.machine.set_faults("work", "refuse")
    got = subprocess.run([os.path.join(BUILD, "tools/qvm-remote-agent/qvm-remote-agent"), "--keep"], env=house.env("work"),
                         stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG)
    check(got.returncode == 126 and b"the policy of qrexec refuses" in got.stderr, got)


@case
def both_at_once_and_each_qube_through_its_own(f):
    house = BothHouse(f, "work", "dev")
    house.wait_for_agent("work")
    equal(house.run("work", "echo q").stdout, b"q\n")
    by_agent = subprocess.run([CLIENT, "echo r"], env=house.by_qvm_run("work"), stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=HANG)
    equal(by_agent.stdout, b"r\n")
    equal([r["transport"] for r in f.audit() if r["kind"] == "START"], ["qrexec", "qvm-run"])
    check(b"transport: qvm-run, qrexec\n" in f.dom0("status").stdout, f.dom0("status").stdout)
    f.stop()
    # Each qube may use one transport, and the other is closed to it.
    house.both = "qvm-run dev=qrexec"
    house.start()
    house.wait_for_agent("work")
    got = house.run("work", "true")
    check(got.returncode == 255 and b"without an answer" in got.stderr, got)
    eventually(lambda: "vm=work (not served over qrexec" in f.log(), "a line in the log")
    equal(house.run("dev", "echo d").stdout, b"d\n")
    by_agent = subprocess.run([CLIENT, "echo r"], env=house.by_qvm_run("work"), stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=HANG)
    equal(by_agent.stdout, b"r\n")
    check(len(house.machine.calls("qrexec-client dev")) <= 1, "dev was called again")


@case
def a_program_as_the_service_where_there_are_no_sockets(f):
    house = QrexecHouse(f, "work", conf={"QVM_REMOTE_QREXEC_SOCKET": f.root + "/d.sock"})
    services = os.path.join(f.path, "rpc")
    os.mkdir(services)
    with open(os.path.join(services, "qvmremote.Exec"), "w") as s:
        s.write(f"#!/bin/sh\nexport QVM_REMOTE_QREXEC_SOCKET={f.root}/d.sock\nexec {SERVICE} \"$@\"\n")
    os.chmod(os.path.join(services, "qvmremote.Exec"), 0o755)
    house.machine.write(services + "\n", "services")
    got = house.run("work", "echo $QVM_REMOTE_PEER; exit 7")
    equal((got.returncode, got.stdout), (7, b"work\n"))
    data = os.urandom(3_000_001)
    got = house.run("work", "tee /dev/stderr", stdin=data)
    check(got.stdout == data and got.stderr == data, "streams differ")
    mark = f"service-test-{os.getpid()}"
    p = house.popen("work", f"export MARK={mark}; echo up; sleep 1000", stdout=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    p.kill()
    p.wait(HANG)
    eventually(lambda: not survivors("MARK=" + mark), "the tree's end")
    f.stop()
    got = house.run("work", "true")
    check(got.returncode == 255 and b"there is no service" in got.stderr, got)
    # Started by hand, or with words that qrexec never uses, it does nothing.
    for env in ({}, {"QREXEC_SERVICE_FULL_NAME": "qvmremote.Exec+", "QREXEC_REMOTE_DOMAIN": "../x"}):
        got = subprocess.run([SERVICE], env=env, capture_output=True, timeout=HANG)
        check(got.returncode == 125 and b"qrexec starts this program" in got.stderr, got)


main()
