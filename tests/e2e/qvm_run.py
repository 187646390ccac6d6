#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The qvm-run transport from end to end: client, agent, stand-in of qrexec-client or qvm-run, daemon,
several qubes. What it has in common with the others is in common.py. Usage: qvm_run.py BUILD-DIRECTORY [CASE...]
"""

import os
import signal
import subprocess
import time

from fixture import HANG, KEY, case, check, equal, eventually, main
from house import House


def is_alive(pid):
    """A zombie that nobody has waited for is not."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


@case
def a_command_over_each_way_of_calling(f):
    for programs, events in (("qrexec-client", True), ("qvm-run", True), ("qrexec-client", False),
                             ("qvm-run", False)):
        f.renew("x")
        house = House(f, "work", "dev", programs=programs, events=events).wait_for_agent("work", "dev")
        for qube in ("work", "dev"):
            got = house.run(qube, "echo $QVM_REMOTE_PEER; echo err >&2; exit 7")
            equal((got.returncode, got.stdout, got.stderr), (7, f"{qube}\n".encode(), b"err\n"))
        data = os.urandom(3_000_001)
        got = house.run("work", "tee /dev/stderr", stdin=data)
        check(got.stdout == data and got.stderr == data, "streams differ")
        equal(house.machine.violations(), "")
        check(len(house.machine.calls(programs)) == 2, house.machine.calls())
        f.stop()
        f.on_stop()


@case
def a_halted_qube_is_served_when_it_starts_and_never_started(f):
    house = House(f, "work", "late", events=True)
    house.machine.set_state("late", "Halted")
    f.stop()
    house.start()
    house.wait_for_agent("work")
    time.sleep(0.3)
    check(not house.has_agent("late"), "an agent in a halted qube")
    house.machine.set_state("late", "Running")
    house.wait_for_agent("late")
    equal(house.run("late", "echo up").stdout, b"up\n")
    house.machine.set_state("late", "Halted")
    eventually(lambda: not house.has_agent("late"), "the call's end")
    equal(house.run("work", "echo on").stdout, b"on\n")
    house.machine.set_state("late", "Running")
    house.wait_for_agent("late")
    equal(house.run("late", "echo again").stdout, b"again\n")
    equal(house.machine.violations(), "")


@case
def a_qube_without_a_key_is_never_called(f):
    house = House(f, "work").wait_for_agent("work")
    house.add("stranger", authorized=False)
    house.machine.set_state("stranger", "Halted")
    house.machine.set_state("stranger", "Running")
    time.sleep(0.5)
    check(not [c for c in house.machine.calls() if "stranger" in c], house.machine.calls())
    equal(f.dom0("authorize", "stranger", stdin=(KEY + "\n").encode()).returncode, 0)
    house.wait_for_agent("stranger")
    equal(house.run("stranger", "echo in").stdout, b"in\n")
    equal(f.dom0("revoke", "stranger").returncode, 0)
    eventually(lambda: not house.has_agent("stranger"), "the call's end")


@case
def forty_clients_over_one_pipe(f):
    house = House(f, "work").wait_for_agent("work")
    clients = [house.popen("work", f"echo {n}; exit {n}", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for n in range(40)]
    for n, c in enumerate(clients):
        out, err = c.communicate(timeout=HANG)
        equal((c.returncode, out, err), (n, f"{n}\n".encode(), b""))
    check(len(house.machine.calls("qrexec-client")) == 1, "more than one call")


@case
def one_bad_qube_harms_no_other(f):
    house = House(f, "work")
    house.add("refused", faults="refuse")
    house.add("broken", faults="cut 100")
    house.add("deaf", faults="stop-reading 50")
    house.add("gone")
    house.add("slow", faults="start-delay 300")
    os.rename(house.machine.file("qubes", "gone"), house.machine.file("gone"))
    house.wait_for_agent("work", "slow")
    for _ in range(10):
        equal(house.run("work", "echo fine").stdout, b"fine\n")
    equal(house.run("slow", "echo slow").stdout, b"slow\n")
    check(f.daemon.poll() is None, "the daemon died")


@case
def a_profile_that_talks_does_no_harm(f):
    house = House(f, "work", programs="qvm-run", profile="Welcome!\n" * 1000).wait_for_agent("work")
    equal(house.run("work", "echo fine").stdout, b"fine\n")


@case
def a_new_agent_takes_over_from_one_that_hangs(f):
    house = House(f, "work").wait_for_agent("work")
    relay, agent = house.machine.running("work")[0]
    os.kill(agent, signal.SIGSTOP)
    os.kill(relay, signal.SIGKILL)
    eventually(lambda: house.run("work", "-q", "-t", "30", "true").returncode == 0, "a new agent")
    eventually(lambda: not is_alive(agent), "the old one's end")


@case
def protocol_1_beside_protocol_2_through_the_agent(f):
    house = House(f, "work", conf={"QVM_REMOTE_PROTOCOL": "both"}).wait_for_agent("work")
    base = os.path.join(house.machine.home("work"), ".qvm-remote")
    queue = os.path.join(base, "queue")
    name = time.strftime("%Y%m%d-%H%M%S") + "-1-00000001"
    serve_entry(queue, name, b"echo out; echo err >&2; exit 3\n")
    result = os.path.join(queue, "results", name)
    with open(result + ".out", "rb") as out, open(result + ".err", "rb") as err:
        equal((out.read(), err.read()), (b"out\n", b"err\n"))
    with open(result + ".exit") as code:
        equal(code.read(), "3")
    check(not os.listdir(os.path.join(queue, "running")), "something is left in running")
    equal(os.listdir(os.path.join(queue, "pending")), [])
    with open(os.path.join(base, "audit.log")) as log:
        check(f"id={name} exit=3" in log.read(), "no line in audit.log")
    equal(house.run("work", "echo new").stdout, b"new\n")


def serve_entry(queue, name, command, key=KEY):
    """Leaves an entry as the Python client does, and waits for its result."""
    said = subprocess.run(["openssl", "dgst", "-sha256", "-hmac", key], input=name.encode(),
                          stdout=subprocess.PIPE, check=True).stdout
    pending = os.path.join(queue, "pending")
    for suffix, text in (("", command), (".auth", said.split()[-1]), (".cmd", command)):
        with open(os.path.join(pending, name + suffix), "wb") as f:
            f.write(text)
    os.unlink(os.path.join(pending, name + ".cmd"))
    path = os.path.join(queue, "results", name + ".exit")
    eventually(lambda: os.path.exists(path), f"a result of {name}")


main()
