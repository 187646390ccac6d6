# SPDX-License-Identifier: GPL-2.0-or-later
"""Several qubes at once, and links that are killed. Cases of common.py."""

import os
import signal
import subprocess

from fixture import HANG, KEY, case, check, equal, eventually, survivors
from house import house_of


@case
def each_qube_has_its_own_identity(f):
    house = house_of(f, "work", "dev")
    for qube in ("work", "dev", "work"):
        got = house.run(qube, "echo $QVM_REMOTE_PEER; echo err >&2; exit 7")
        equal((got.returncode, got.stdout, got.stderr), (7, f"{qube}\n".encode(), b"err\n"))
    name = f.transport.removesuffix("-kept")
    equal([(r["peer"], r["transport"]) for r in f.audit() if r["kind"] == "START"],
          [("work", name), ("dev", name), ("work", name)])
    check(f"transport: {name}\n".encode() in house.run("dev", "status").stdout, "status")
    equal(house.machine.violations(), "")


@case
def a_qube_without_a_key_gets_nothing(f):
    house = house_of(f, "work")
    house.add("stranger", authorized=False)
    got = house.run("stranger", "-t", "5", "touch " + f.path + "/made")
    check(got.returncode in (124, 126, 255), got)
    check(not os.path.exists(f.path + "/made"), "it ran")
    equal(f.dom0("authorize", "stranger", stdin=(KEY + "\n").encode()).returncode, 0)
    house.wait_for_agent("stranger")
    equal(house.run("stranger", "echo in").stdout, b"in\n")
    equal(f.dom0("revoke", "stranger").returncode, 0)
    # Wait until the qube is disconnected, since its client would wait half a minute for an agent.
    eventually(lambda: not house.has_agent("stranger") if f.transport == "qvm-run" else
               house.run("stranger", "true").returncode != 0, "it is out")
    equal(house.run("work", "echo on").stdout, b"on\n")


@case
def a_client_that_does_not_read_delays_no_other(f):
    house = house_of(f, "work")
    stuck = house.popen("work", "cat /dev/zero", stdout=subprocess.PIPE)
    stuck.stdout.read(1)
    for _ in range(20):
        equal(house.run("work", "echo quick").stdout, b"quick\n")
    stuck.send_signal(signal.SIGINT)
    stuck.stdout.close()
    stuck.wait(HANG)


@case
def a_killed_client_ends_its_command_and_no_other(f):
    house = house_of(f, "work")
    mark = f"common-test-{os.getpid()}"
    other = house.popen("work", "read x; echo still $x", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    victim = house.popen("work", f"export MARK={mark}; sleep 1000")
    eventually(lambda: survivors("MARK=" + mark), "it runs")
    victim.kill()
    victim.wait()
    eventually(lambda: not survivors("MARK=" + mark), "the tree's end")
    other.stdin.write(b"here\n")
    other.stdin.close()
    equal(other.stdout.read(), b"still here\n")
    equal(other.wait(HANG), 0)


@case
def a_killed_link_is_never_a_silent_loss(f):
    house = house_of(f, "work")
    mark = f"common-test-{os.getpid()}-2"
    for victim in house.victims:
        c = house.popen("work", f"export MARK={mark}; echo up; sleep 1000", stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE)
        equal(c.stdout.readline(), b"up\n")
        os.kill(house.links("work")[victim], signal.SIGKILL)
        out, err = c.communicate(timeout=HANG)
        check(c.returncode == 255 and b"may have run" in err, (victim, c.returncode, err))
        eventually(lambda: not survivors("MARK=" + mark), "the tree's end")
        if victim == "daemon":
            f.daemon.wait()
            house.start()
        house.wait_for_agent("work")
        eventually(lambda: house.run("work", "true").returncode == 0, f"work goes on after {victim}")
    equal(house.machine.violations(), "")
