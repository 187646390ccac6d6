#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The shell program that serves a qube without our agent, with both programs that make calls, in each shell
and with each set of tools that it must work with. Usage: queue_sh.py BUILD-DIRECTORY [CASE...]
"""

import os
import shutil
import signal
import subprocess
import time

from entries import token
from fixture import BUILD, KEY, case, check, equal, eventually, main, survivors
from house import House

LIMIT = 1 << 20
CUT = b"\n[truncated at 10485760 bytes]\n"


class Qube:
    """The steps of a Python client in a qube, and what it sees."""

    def __init__(self, house, name):
        self.house, self.name = house, name
        self.base = os.path.join(house.machine.home(name), ".qvm-remote")
        self.count = 0

    def path(self, *names):
        return os.path.join(self.base, "queue", *names)

    def ready(self):
        eventually(lambda: os.path.isdir(self.path("results")), "the queue")
        return self

    def leave(self, body, name=None, key=KEY):
        if not name:
            self.count += 1
            name = time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}-{self.count:08x}"
        parts = [("", body), (".cmd", body)]
        if key:
            parts.insert(1, (".auth", (token(name, key) + "\n").encode()))
        for suffix, data in parts:
            with open(self.path("pending", name + suffix), "wb") as f:
                f.write(data)
        return name

    def result(self, name):
        eventually(lambda: os.path.exists(self.path("results", name + ".exit")), f"a result of {name}")
        parts = []
        for suffix in (".exit", ".out", ".err", ".meta"):
            with open(self.path("results", name + suffix), "rb") as f:
                parts.append(f.read())
        return parts

    def run(self, body, **more):
        got = self.result(self.leave(body, **more))
        return int(got[0]), got[1], got[2]

    def audit(self):
        path = os.path.join(self.base, "audit.log")
        if not os.path.exists(path):
            return ""
        with open(path) as f:
            return f.read()


def house_of(f, agent=False, **more):
    """Makes a qube for each program that can be `sh`, which runs dom0's shell program; with `agent`, one more."""
    tools = os.path.join(f.path, "busybox")
    os.mkdir(tools)
    subprocess.run(["busybox", "--install", "-s", tools], check=True)
    house = House(f, **more)
    for shell in ("bash", "dash", os.path.join(tools, "sh")):
        name = "busybox" if "/" in shell else shell
        house.add(name, agent=False, shell=shell)
        path = tools
        if name != "busybox":
            path = os.path.join(f.path, "sh-is-" + name)
            os.mkdir(path)
            os.symlink(shutil.which(shell), os.path.join(path, "sh"))
        house.machine.write(path + "\n", "qubes", name, "path")
    if agent:
        house.add("agent")
    f.stop()
    house.calls_before = len(house.machine.calls())
    house.start()
    return house, [Qube(house, name).ready() for name in ("bash", "dash", "busybox") + ("agent",) * agent]


@case
def commands_run_and_results_come_back(f):
    for programs in ("qvm-run", "qrexec-client"):
        f.renew(programs)
        house, qubes = house_of(f, programs=programs)
        for q in qubes:
            name = q.leave(b"echo $QVM_REMOTE_PEER; echo err >&2; exit 7\n")
            code, out, err, meta = q.result(name)
            equal((code, out, err), (b"7", q.name.encode() + b"\n", b"err\n"))
            check(meta.startswith(f"id={name}\n".encode()) and meta.endswith(b"exit_code=7\n"), meta)
            eventually(lambda: f"id={name} exit=7" in q.audit(), "the line in audit.log")
            # The client removes its copy of the command itself.
            equal((os.listdir(q.path("pending")), os.listdir(q.path("running"))), ([name + ".cmd"], []))
            equal(sorted(os.listdir(q.path("results"))),
                  sorted(name + s for s in (".exit", ".out", ".err", ".meta")))
            equal(q.run(b"kill -9 $$\n")[0], -9)
            equal(q.run(b"true\n"), (0, b"", b""))
        equal(len(house.machine.calls()) - house.calls_before, 3)
        equal(house.machine.violations(), "")
        f.stop()
        f.on_stop()


@case
def our_client_is_served(f):
    house, qubes = house_of(f)
    for q in qubes:
        got = house.run(q.name, "echo out; echo err >&2; exit 3")
        equal((got.returncode, got.stdout, got.stderr), (3, b"out\n", b"err\n"))
        equal(house.run(q.name, "ping").returncode, 0)
        eventually(lambda: [os.listdir(q.path(p)) for p in ("pending", "running", "results")] == [[], [], []],
                   "the end of the entries")


@case
def bytes_arrive_as_they_are(f):
    house, qubes = house_of(f)
    data = os.urandom(1_000_003) + b"\n\n"
    path = os.path.join(f.path, "data")
    with open(path, "wb") as out:
        out.write(data)
    for q in qubes:
        equal(q.run(b"cat %s; cat %s >&2\n" % ((path.encode(),) * 2)), (0, data, data))
        body = b": " + b"x" * (LIMIT - 10) + b"\necho y\n"
        equal(q.run(body[:LIMIT])[0:2], (0, b"y\n"))
        code, out, err = q.run(b"head -c 11000000 /dev/zero; echo >&2 end\n")
        equal((code, len(out), out[-len(CUT):], err), (0, 10485760 + len(CUT), CUT, b"end\n"))


@case
def what_is_refused(f):
    house, qubes = house_of(f)
    for q in qubes:
        wrong = q.leave(b"echo no\n", key="b" * 64)
        missing = q.leave(b"echo no\n", key=None)
        short = q.leave(b"echo no\n", key=None)
        with open(q.path("pending", short + ".auth"), "w") as a:
            a.write("4" + "a" * 5)
        large = q.leave(b"x" * (LIMIT + 1))
        code, out, err = q.run(b"\n" * 3 + b"echo yes")
        equal((code, out), (0, b"yes\n"))
        check(q.result(large)[0] == b"126", "too large")
        eventually(lambda: not os.path.exists(q.path("pending", wrong)), "thrown away")
        # The shell program waits for a token that is written after its command.
        check(os.path.exists(q.path("pending", missing)), "no patience")
        late = q.leave(b"echo late\n", key=None)
        time.sleep(0.6)
        with open(q.path("pending", late + ".auth"), "w") as a:
            a.write("  " + token(late) + " \n")
        equal(q.result(late)[1], b"late\n")
        eventually(lambda: not os.path.exists(q.path("pending", missing)) and
                   not os.path.exists(q.path("pending", short)), "thrown away")
        for name in (wrong, missing, short):
            check(not os.path.exists(q.path("results", name + ".exit")), "a result")
        for junk in (".hidden", "a b", "x.cmd", "-x", "y" * 129):
            with open(q.path("pending", junk), "w") as j:
                j.write("echo junk\n")
        os.mkdir(q.path("pending", "directory"))
        os.symlink("/etc/passwd", q.path("pending", "link"))
        os.mkfifo(q.path("pending", "fifo"))
        equal(q.run(b"echo on\n")[1], b"on\n")


@case
def a_used_id_does_not_run_again(f):
    house, qubes = house_of(f)
    for q in qubes:
        name = q.leave(b"echo once\n")
        equal(q.result(name)[1], b"once\n")
        for suffix in (".exit", ".out", ".err", ".meta"):
            os.unlink(q.path("results", name + suffix))
        q.leave(b"echo twice\n", name=name)
        got = q.result(name)
        check(got[0] == b"126" and b"used" in got[2], got)


@case
def an_entry_that_goes_away_ends_its_command(f):
    house, qubes = house_of(f)
    for q in qubes:
        mark = f"QUEUE_SH={q.name}{os.getpid()}"
        name = q.leave(f"export {mark}; sleep 1000\n".encode())
        eventually(lambda: survivors(mark), "it runs")
        os.unlink(q.path("running", name))
        eventually(lambda: not survivors(mark), "its end")


@case
def a_revoked_qube_is_told_so(f):
    house, qubes = house_of(f)
    for q in qubes:
        name = q.leave(b"echo up; sleep 1000\n")
        eventually(lambda: b"running: 1\n" in f.dom0("status").stdout, "it runs")
        relay = house.machine.running(q.name)[0][0]
        equal(f.dom0("revoke", q.name).returncode, 0)
        code, out, err, _ = q.result(name)
        equal((code, out), (b"126", b"up\n"))
        check(b"revoked" in err, err)
        eventually(lambda: not os.path.exists(f"/proc/{relay}"), "the end of the call")


@case
def what_a_dead_dom0_leaves_is_reported(f):
    house, qubes = house_of(f)
    names = []
    for q in qubes:
        mark = f"QUEUE_SH={q.name}{os.getpid()}"
        names.append(q.leave(f"export {mark}; echo begun; sleep 1000\n".encode()))
        eventually(lambda: survivors(mark), "it runs")
    f.daemon.send_signal(signal.SIGKILL)
    f.daemon.wait()
    house.start()
    for q, name in zip(qubes, names):
        code, _, err, _ = q.result(name)
        check(code == b"130" and b"unknown" in err, (code, err))
        equal(os.listdir(q.path("running")), [])
        equal(q.run(b"echo on\n")[1], b"on\n")


@case
def a_result_that_a_crash_kept_hidden_is_published(f):
    house, qubes = house_of(f)
    house.add("agent")
    f.stop()
    qubes.append(Qube(house, "agent"))
    whole, open_ = "20260101-000000-1-0000000a", "20260101-000000-1-0000000b"
    for q in qubes:
        os.makedirs(q.path("results"), exist_ok=True)
        os.makedirs(q.path("running"), exist_ok=True)
        for name in (whole, open_):
            for suffix, text in ((".out", "out\n"), (".err", ""), (".meta", f"id={name}\n")):
                with open(q.path("results", name + suffix), "w") as out:
                    out.write(text)
            with open(q.path("results", "." + name + ".exit"), "w") as out:
                out.write("7")
        # While the entry is still there, the digits may not be complete.
        with open(q.path("running", open_), "w") as out:
            out.write("true\n")
    house.start()
    for q in qubes:
        equal(q.result(whole)[0:2], [b"7", b"out\n"])
        code, _, err, _ = q.result(open_)
        check(code == b"130" and b"unknown" in err, (code, err))
        equal(os.listdir(q.path("running")), [])


@case
def a_result_that_cannot_be_written_is_no_success(f):
    house, qubes = house_of(f)
    for q in qubes:
        name = time.strftime("%Y%m%d-%H%M%S") + "-1-000000ff"
        os.makedirs(q.path("results", "." + name + ".out", "in the way"))
        q.leave(b"echo out\n", name=name)
        eventually(lambda: os.path.exists(q.path("results", name + ".exit")), "a result")
        with open(q.path("results", name + ".exit")) as e:
            equal(e.read(), "255")
        equal(q.run(b"echo on\n")[1], b"on\n")


@case
def many_at_once(f):
    house, qubes = house_of(f)
    names = [(q, n, q.leave(b"echo %d\n" % n)) for n in range(40) for q in qubes]
    for q, n, name in names:
        equal(q.result(name)[:2], [b"0", b"%d\n" % n])


@case
def tokens_come_as_they_were_typed(f):
    house, qubes = house_of(f, agent=True)
    for q in qubes:
        for before, after in (("", "\r\n"), ("  ", " \n"), ("\t", ""), ("", "\r")):
            q.count += 1
            name = time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}-{q.count:08x}"
            with open(q.path("pending", name + ".auth"), "w", newline="") as t:
                t.write(before + token(name, KEY) + after)
            equal((q.name, before, after, q.run(b"echo x\n", name=name, key=None)), (q.name, before, after, (0, b"x\n", b"")))


@case
def a_command_may_have_the_largest_size_and_no_last_newline(f):
    house, qubes = house_of(f, agent=True)
    for q in qubes:
        body = b"echo y;#" + b"x" * (LIMIT - 8)
        equal((len(body), q.run(body)[:2]), (LIMIT, (0, b"y\n")))


@case
def what_cannot_be_read_holds_up_nothing(f):
    house, qubes = house_of(f, agent=True)
    for q in qubes:
        name = "unreadable-1"
        with open(q.path("pending", name + ".auth"), "w") as t:
            t.write(token(name, KEY))
        with open(q.path("pending", ".new"), "wb") as body:
            body.write(b"echo never\n")
        os.chmod(q.path("pending", ".new"), 0)
        os.rename(q.path("pending", ".new"), q.path("pending", name))
        equal(q.run(b"echo on\n")[1], b"on\n")
    f.stop()
    # A single run serves all entries that wait, ignores those that it cannot read, and ends.
    got = house.single_run()
    equal((got.returncode, got.stderr), (0, b""))
    for q in qubes:
        check(os.path.exists(q.path("pending", "unreadable-1")), f"{q.name}: it is gone")


@case
def what_is_withdrawn_leaves_nothing_behind(f):
    house, qubes = house_of(f, agent=True)
    for q in qubes:
        mark = f"withdrawn-{q.name}-{os.getpid()}"
        name = q.leave(f"export MARK={mark}; echo up; sleep 1000\n".encode())
        os.unlink(q.path("pending", name + ".cmd"))
        eventually(lambda: "." + name + ".out" in os.listdir(q.path("results")), "output")
        os.unlink(q.path("running", name))
        eventually(lambda: not survivors("MARK=" + mark), "the end of its command")
        eventually(lambda: not os.listdir(q.path("results")), f"{q.name}: nothing in results")
        equal(q.run(b"echo on\n")[1], b"on\n")


@case
def a_queue_that_was_removed_is_made_again(f):
    house, qubes = house_of(f, agent=True)
    for q in qubes:
        for lost in (("pending",), ("results",), ("running",), (), None) if q.name == "agent" else (("running",), None):
            if lost is None:
                os.rename(q.base, q.base + ".old")
            else:
                shutil.rmtree(q.path(*lost), ignore_errors=True)  # the shell program may make a directory again at once
            eventually(lambda: all(os.path.isdir(q.path(d)) for d in ("pending", "running", "results")),
                       f"{q.name}: the queue without {lost}")
            equal((q.name, lost, q.run(b"echo on\n")[1]), (q.name, lost, b"on\n"))
        if q.name == "agent":
            eventually(lambda: os.path.exists(os.path.join(q.base, "agent.sock")), "its socket")
            os.unlink(os.path.join(q.base, "agent.sock"))
            eventually(lambda: os.path.exists(os.path.join(q.base, "agent.sock")), "its socket again")
            with open(os.path.join(q.base, "auth.key"), "w") as key:
                key.write(KEY + "\n")
            os.chmod(os.path.join(q.base, "auth.key"), 0o600)
            equal(house.run("agent", "echo two").stdout, b"two\n")


@case
def an_agent_that_can_watch_nothing_looks_now_and_then(f):
    house = House(f)
    tools = os.path.join(f.path, "agent-without-inotify")
    os.mkdir(tools)
    with open(os.path.join(tools, "qvm-remote-agent"), "w") as program:
        program.write("#!/bin/sh\nASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 exec strace -fqqo/dev/null "
                      "-e trace=inotify_init1 -e inject=inotify_init1:error=EMFILE "
                      f"{BUILD}/tools/qvm-remote-agent/qvm-remote-agent \"$@\" 2>{f.path}/said\n")
    os.chmod(program.name, 0o755)
    house.add("work", agent=tools)
    q = Qube(house, "work").ready()
    for words in (b"one\n", b"two\n"):
        equal(q.run(b"echo " + words)[1], words)
    equal(house.run("work", "echo three").stdout, b"three\n")
    os.unlink(os.path.join(q.base, "agent.sock"))
    eventually(lambda: os.path.exists(os.path.join(q.base, "agent.sock")), "its socket again")
    with open(os.path.join(f.path, "said")) as said:
        text = said.read()
    check("looked at once a second" in text and text.count("\n") == 1, text)


@case
def it_ends_with_its_call(f):
    house, qubes = house_of(f)
    f.stop()
    for q in qubes:
        home = "HOME=" + house.machine.home(q.name)
        eventually(lambda: not survivors(home), f"the end of {q.name}'s program")


main()
