#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The qvm-run transport from end to end: client, agent, stand-in of qrexec-client or qvm-run, daemon,
several qubes. Cases for every transport are in common.py. Usage: qvm_run.py BUILD-DIRECTORY [CASE...]
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
import time

from fixture import HANG, KEY, case, check, equal, eventually, main, survivors
from house import House


def is_alive(pid):
    """Whether a process is alive. A zombie is not."""
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
def a_command_that_protocol_1_cannot_carry_waits_for_an_agent_that_is_being_started(f):
    house = House(f)
    house.add("new", authorized=False)
    got = house.run("new", "cat", stdin=b"data")
    equal((got.returncode, got.stdout), (1, b""))
    check(b"dom0 has started no agent" in got.stderr, got.stderr)
    for _ in range(10):  # a loaded machine may need longer than a client waits
        c = house.popen("new", "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        equal(f.dom0("authorize", "new", stdin=(KEY + "\n").encode()).returncode, 0)
        out, err = c.communicate(b"data", timeout=HANG)
        if c.returncode == 0:
            return equal((out, err), (b"data", b""))
        equal(c.returncode, 1)
        equal(f.dom0("revoke", "new").returncode, 0)
        eventually(lambda: not house.has_agent("new"), "the call's end")
    check(False, "never served")


@case
def forty_clients_over_one_pipe(f):
    house = House(f, "work").wait_for_agent("work")
    clients = [house.popen("work", f"echo {n}; exit {n}", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for n in range(40)]
    for n, c in enumerate(clients):
        out, err = c.communicate(timeout=HANG)
        equal((c.returncode, out, err), (n, f"{n}\n".encode(), b""))
    check(len(house.machine.calls("qrexec-client")) == 1, "more than one call")


def cut_at(f, house, frame):
    """Makes a relay between a client and its agent that closes before this frame of dom0."""
    listener = socket.socket(socket.AF_UNIX)
    path = os.path.join(f.path, f"cut-{frame}")
    listener.bind(path)
    listener.listen()

    def pump():
        near, _ = listener.accept()
        far = socket.socket(socket.AF_UNIX)
        far.connect(house.agent_socket("work"))
        threading.Thread(target=lambda: [far.sendall(x) for x in iter(lambda: near.recv(65536), b"")],
                         daemon=True).start()
        with far.makefile("rb") as said:
            while len(head := said.read(12)) == 12 and head[8] != frame:
                near.sendall(head + said.read(int.from_bytes(head[:4], "big")))
        near.shutdown(socket.SHUT_RDWR)
        far.shutdown(socket.SHUT_RDWR)
    threading.Thread(target=pump, daemon=True).start()
    return path


@case
def a_request_that_was_sent_and_not_answered_may_have_run(f):
    """dom0 says that it has accepted a command only after it has started it."""
    house = House(f, "work").wait_for_agent("work")
    ran = os.path.join(f.path, "ran")
    challenge, accepted = 3, 7
    for frame, words in ((challenge, b"was not sent"), (accepted, b"may have run")):
        got = house.run("work", f"echo >>{ran}; sleep 1000",
                        QVM_REMOTE_QVM_RUN_SOCKET=cut_at(f, house, frame))
        check(got.returncode == 255 and words in got.stderr, got)
    starts = [r["id"] for r in f.audit() if r["kind"] == "START"]
    check(len(starts) == 1 and starts[0].encode() in got.stderr, (starts, got))


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
def a_client_that_breaks_off_takes_no_answer_with_it(f):
    house = House(f, "work").wait_for_agent("work")
    opening = b"\0qvm-remote 2\r\n\xff" + struct.pack(">IIB3x", 0, 0, 2)
    for broken in (b"\xff" * 12, struct.pack(">IIB3x", 0, 5, 2)):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(house.agent_socket("work"))
            s.sendall(opening + broken)
            s.settimeout(HANG)
            with contextlib.suppress(ConnectionResetError):
                while s.recv(4096):
                    pass
        equal(house.run("work", "echo on").stdout, b"on\n")


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
def a_client_and_an_agent_that_were_stopped_go_on(f):
    """They are stopped for longer than any keep-alive waits; a silent stream is not closed."""
    house = House(f, "work", "dev").wait_for_agent("work", "dev")
    c = house.popen("work", "echo up; read x; echo $x", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE)
    equal(c.stdout.readline(), b"up\n")
    relay, agent = house.machine.running("work")[0]
    for pid in (agent, c.pid):
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: "vm=work gives no sign of life" in f.log(), "a line in the log")
    time.sleep(12)  # 37 s in all
    equal(house.run("dev", "echo on").stdout, b"on\n")
    for pid in (agent, c.pid):
        os.kill(pid, signal.SIGCONT)
    out, err = c.communicate(b"on\n", timeout=HANG)
    equal((c.returncode, out, err), (0, b"on\n", b""))
    check(house.machine.running("work")[0] == (relay, agent), "the stream was made anew")


@case
def an_agent_that_hangs_goes_when_its_stream_ends(f):
    house = House(f, "work").wait_for_agent("work")
    mark = f"qvm-run-test-{os.getpid()}-hangs"
    c = house.popen("work", f"export MARK={mark}; echo up; sleep 1000", stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE)
    equal(c.stdout.readline(), b"up\n")
    eventually(lambda: survivors("MARK=" + mark), "a program with the mark")
    relay, agent = house.machine.running("work")[0]
    os.kill(agent, signal.SIGSTOP)
    os.kill(relay, signal.SIGKILL)
    eventually(lambda: not survivors("MARK=" + mark), "the tree's end")
    eventually(lambda: not is_alive(agent), "the end of an agent that hangs")
    out, err = c.communicate(timeout=HANG)
    check(c.returncode == 255 and b"may have run" in err, (c.returncode, err))
    eventually(lambda: house.run("work", "-q", "-t", "30", "true").returncode == 0, "a new agent")


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
