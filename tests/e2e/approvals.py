#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""An operator's word: asked for, given, refused, withdrawn; panic; keys that run out.
Usage: approvals.py BUILD-DIRECTORY [CASE...]
"""

import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import termios
import time

from entries import new_id, token
from fixture import CLIENT, DAEMON, HANG, KEY, case, check, equal, eventually, main, survivors
from house import House
from policies import begin, rules


def at_a_terminal():
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def operator(f, *words):
    """Where commands have no cgroups, who decides needs a terminal."""
    control, terminal = pty.openpty()
    try:
        return subprocess.run([DAEMON, "--root", f.root, *words], env=f.env(), stdin=terminal,
                              capture_output=True, timeout=HANG, preexec_fn=at_a_terminal)
    finally:
        os.close(control)
        os.close(terminal)


def questions(f):
    said = f.dom0("approvals", "list", "--json")
    equal(said.returncode, 0)
    return [json.loads(line) for line in said.stdout.splitlines()]


def question(f):
    eventually(lambda: questions(f), "a question")
    return questions(f)[0]


def start(f, *words, stdin=subprocess.DEVNULL):
    return subprocess.Popen([CLIENT, *words], env=f.env(), stdin=stdin, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def allow(f, asked, *more):
    got = operator(f, "approvals", "allow", str(asked["serial"]), *more)
    equal((got.returncode, got.stderr), (0, b""))


def ended(client):
    out, err = client.communicate(timeout=HANG)
    return client.returncode, out, err


@case
def what_is_asked_about_waits_and_runs_when_it_is_allowed(f):
    begin(f, "work * ask\n")
    client = start(f, "-t", "77", "echo $QVM_REMOTE_PEER; exit 7")
    asked = question(f)
    equal((asked["qube"], asked["text"], asked["stdin"], asked["shell"], asked["timeout_s"]),
          ("work", "echo $QVM_REMOTE_PEER; exit 7", "closed", True, 77))
    check(client.poll() is None, "it waits")
    check(not [r for r in f.audit() if r["kind"] == "START"], "nothing ran yet")
    shown = f.dom0("approvals").stdout
    check(b"echo $QVM_REMOTE_PEER" in shown and asked["digest"].encode() in shown, shown)
    allow(f, asked)
    equal(ended(client), (7, b"work\n", b""))
    word, start_line = [r for r in f.audit() if r["kind"] in ("APPROVED", "START")]
    equal((word["kind"], word["approval"], word["digest"], word["peer"]),
          ("APPROVED", asked["serial"], asked["digest"], "work"))
    check(f"uid {os.geteuid()}" in word["user"], word)
    equal((start_line["verdict"], start_line["policy"]), ("ask", "30-test.policy:1 work * ask"))
    # It was for once.
    client = start(f, "-t", "77", "echo $QVM_REMOTE_PEER; exit 7")
    again = question(f)
    check(again["serial"] != asked["serial"] and again["digest"] == asked["digest"], again)
    equal(operator(f, "approvals", "deny", str(again["serial"])).returncode, 0)
    code, out, err = ended(client)
    check((code, out) == (126, b"") and b"said no" in err, err)
    equal(questions(f), [])


@case
def what_waits_does_not_run_when_its_rule_is_gone(f):
    """The file is changed by hand and nobody reloads."""
    path = os.path.join(f.root, "etc/qubes/remote-policy.d/30-test.policy")
    for text in ("work * deny\n", "", "work * as\n", "work * ask timeout=5\n"):
        begin(f, "work * ask\n") if f.daemon is None else rules(f, "work * ask\n")
        client = start(f, "echo no")
        asked = question(f)
        with open(path, "w") as policy:
            policy.write(text)
        operator(f, "approvals", "allow", str(asked["serial"]))
        code, out, err = ended(client)
        check((code, out) == (126, b"") and b"policy" in err, (text, code, out, err))


@case
def a_word_goes_to_what_still_waits(f):
    begin(f, "work * ask\n")
    got = operator(f, "approvals", "allow", "1")
    check(got.returncode == 1 and b"nothing waits" in got.stderr, got)
    # The client goes: so does its question.
    client = start(f, "echo no")
    question(f)
    client.kill()
    client.wait()
    eventually(lambda: not questions(f), "the question's end")
    # Its key goes.
    client = start(f, "echo no")
    question(f)
    equal(f.dom0("revoke", "work").returncode, 0)
    code, _, err = ended(client)
    check(code == 126 and b"revoked" in err, err)
    equal(questions(f), [])
    check(not [r for r in f.audit() if r["kind"] == "START"], "nothing ran")


@case
def what_was_shown_is_what_runs(f):
    """I1: another policy means another question, and the digest is over all that would run."""
    begin(f, "work * ask timeout=50\n")
    client = start(f, "echo yes")
    first = question(f)
    rules(f, "work * ask timeout=40\n")
    allow(f, first)
    code, out, err = ended(client)
    check((code, out) == (126, b"") and b"policy has changed" in err, err)
    seen = {first["digest"]}
    for words in (["echo yes"], ["-t", "30", "echo yes"], ["--exec", "echo", "yes"], ["echo yes "],
                  ["--exec", "echo", "yes", ""]):
        client = start(f, *words)
        asked = question(f)
        check(asked["digest"] not in seen, words)
        seen.add(asked["digest"])
        operator(f, "approvals", "deny", str(asked["serial"]))
        equal(ended(client)[0], 126)


@case
def stdin_is_shown_before_it_is_used(f):
    begin(f, "work * ask\n")
    client = start(f, "cat", stdin=subprocess.PIPE)
    client.stdin.write(b"x" * 300_000)
    client.stdin.flush()
    time.sleep(0.2)
    equal(questions(f), [])  # its end is part of it
    client.stdin.write(b"yz")
    client.stdin.close()
    asked = question(f)
    equal((asked["stdin"], asked["stdin_bytes"]), ("collected", 300_002))
    allow(f, asked)
    equal((client.stdout.read(), client.wait(HANG)), (b"x" * 300_000 + b"yz", 0))
    digests = set()
    for data in (b"a", b"b", b""):
        client = start(f, "cat", stdin=subprocess.PIPE)
        client.stdin.write(data)
        client.stdin.close()
        asked = question(f)
        digests.add(asked["digest"])
        operator(f, "approvals", "deny", str(asked["serial"]))
        client.wait(HANG)
    equal(len(digests), 3)
    got = f.run("cat", stdin=b"x" * ((1 << 20) + 1))
    check(got.returncode == 126 and b"1 MiB" in got.stderr, got)
    equal(f.run("-n", "--dry-run", "true").returncode, 126)


@case
def nobody_else_says_yes(f):
    """I12: neither a command of ours, nor who has no terminal where there are no cgroups."""
    begin(f, "dev level:full allow\nwork * ask\n")
    f.dom0("authorize", "dev", stdin=KEY.encode())
    client = start(f, "echo no")
    serial = str(question(f)["serial"])
    got = f.dom0("approvals", "allow", serial)
    check(got.returncode == 1 and b"terminal" in got.stderr, got)
    inside = subprocess.run([CLIENT, f"{DAEMON} --root {f.root} approvals allow {serial}"], timeout=HANG,
                            env=f.env(QVM_REMOTE_MOCK_SOCKET=os.path.join(f.root, "dev.sock")),
                            stdin=subprocess.DEVNULL, capture_output=True)
    check(inside.returncode == 1 and b"a command of a qube's" in inside.stderr, inside)
    check(client.poll() is None and questions(f), "it still waits")
    client.kill()
    client.wait()


@case
def a_grant_is_for_the_very_same(f):
    begin(f, "work exec:echo ** ask ttl=10m\nwork * ask\n")
    client = start(f, "echo", "a")
    asked = question(f)
    equal((asked["may_last"], asked["shell"], asked["text"]), (True, False, "echo\na\n"))
    got = operator(f, "approvals", "allow", str(asked["serial"]), "--for", "11")
    check(got.returncode == 1 and b"10 minutes" in got.stderr, got)
    allow(f, asked, "--for", "10")
    equal(ended(client)[:2], (0, b"a\n"))
    equal(f.run("echo", "a").stdout, b"a\n")
    client = start(f, "echo", "b")
    operator(f, "approvals", "deny", str(question(f)["serial"]))
    equal(ended(client)[0], 126)
    client = start(f, "bash", "-c", "'echo x'")
    asked = question(f)
    got = operator(f, "approvals", "allow", str(asked["serial"]), "--for", "1")
    check(got.returncode == 1 and b"once" in got.stderr, got)
    operator(f, "approvals", "deny", str(asked["serial"]))
    ended(client)
    # A key that changes takes what was granted with it.
    equal(f.dom0("authorize", "work", stdin=b"b" * 64).returncode, 0)
    equal(f.dom0("authorize", "work", stdin=KEY.encode()).returncode, 0)
    client = start(f, "echo", "a")
    question(f)
    client.kill()
    client.wait()


@case
def one_qube_does_not_fill_the_list(f):
    begin(f, "work * ask\n")
    clients = [start(f, f"echo {n}") for n in range(8)]
    eventually(lambda: len(questions(f)) == 8, "eight questions")
    got = f.run("echo more")
    check(got.returncode == 126 and b"busy" in got.stderr, got)
    for c in clients:
        c.kill()
        c.wait()
    eventually(lambda: not questions(f), "their end")


@case
def watch_asks_on_a_terminal(f):
    begin(f, "work * ask\n")
    control, terminal = pty.openpty()
    watcher = subprocess.Popen([DAEMON, "--root", f.root, "approvals", "watch"], env=f.env(), stdin=terminal,
                               stdout=terminal, stderr=terminal, preexec_fn=at_a_terminal)
    os.close(terminal)
    seen = b""

    def see(wanted):
        nonlocal seen
        while wanted not in seen:
            seen += os.read(control, 4096)
        seen = seen[seen.index(wanted) + len(wanted):]
    # What runs in a shell takes the qube's name; yes is a no.
    for typed, code in ((b"yes\n", 126), (b"work\n", 0)):
        client = start(f, "echo \x1b[31mhi; true")
        see(b"\\x1b[31mhi; true")
        see(b"type work;")
        os.write(control, typed)
        equal(ended(client)[0], code)
    watcher.terminate()
    watcher.wait()
    os.close(control)


def ask_control(path, line):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        s.sendall(line.encode() + b"\n")
        return s.makefile().read()


def allow_what_was_swapped(control, running):
    """An operator who says yes to every entry, once somebody has changed its file."""
    while True:
        for asked in map(json.loads, ask_control(control, "approvals").splitlines()):
            try:
                with open(os.path.join(running, asked["id"])) as e:
                    if e.read() == "echo swapped\n":
                        ask_control(control, f"allow {asked['serial']} -")
            except FileNotFoundError:
                pass


@case
def an_entry_that_is_swapped_while_it_waits_runs_as_it_was_shown(f):
    house = House(f, "work", conf={"QVM_REMOTE_PROTOCOL": "both"}).wait_for_agent("work")
    f.stop()
    os.unlink(os.path.join(f.root, "etc/qubes/remote-policy.d/50-work.policy"))
    rules(f, "work * ask\n")
    house.start()
    house.wait_for_agent("work")
    queue = os.path.join(house.machine.home("work"), ".qvm-remote", "queue")
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            allow_what_was_swapped(os.path.join(f.root, "run/qvm-remote/control.sock"),
                                   os.path.join(queue, "running"))
        finally:
            os._exit(1)
    rounds, at_once = int(os.environ.get("QVMREMOTE_SWAPS", "50")), 5
    for begin_at in range(0, rounds, at_once):
        names = [new_id(n) for n in range(begin_at, begin_at + at_once)]
        for name in names:
            for suffix, text in ((".auth", token(name)), ("", f"echo shown {name};\n")):
                hidden = os.path.join(queue, "pending", "." + name + suffix)
                with open(hidden, "w") as e:
                    e.write(text)
                os.rename(hidden, os.path.join(queue, "pending", name + suffix))
        for name in names:
            # The token goes when the agent has read the entry; what is swapped before is what is shown.
            eventually(lambda: os.path.exists(os.path.join(queue, "running", name)) and
                       not os.path.exists(os.path.join(queue, "pending", name + ".auth")), "it is fetched")
            for place in ("pending", "running"):
                with open(os.path.join(queue, place, name), "w") as e:
                    e.write("echo swapped\n")
        for name in names:
            result = os.path.join(queue, "results", name)
            eventually(lambda: os.path.exists(result + ".exit"), "a result")
            with open(result + ".out") as out:
                equal(out.read(), f"shown {name}\n")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(terminal)
    house.machine.stop_qubesd()


@case
def panic_ends_everything_and_outlives_the_daemon(f):
    begin(f, "work exec:sleep * allow\nwork exec:echo ** ask\nwork level:full allow\n")
    mark = f"panic-{os.getpid()}"
    running = start(f, f"export MARK={mark}; trap '' TERM; echo up; sleep 1000 & wait; sleep 1000")
    equal(running.stdout.readline(), b"up\n")
    waiting = start(f, "echo", "later")
    question(f)
    begun = time.monotonic()
    equal(f.dom0("panic").returncode, 0)
    for client in (running, waiting):
        code, _, err = ended(client)
        check(code == 126 and b"panic" in err, err)
    check(time.monotonic() - begun < HANG, "soon")
    eventually(lambda: not survivors("MARK=" + mark), "the tree's end")
    for _ in range(2):
        got = f.run("true")
        check(got.returncode == 126 and b"panic" in got.stderr, got)
        check(b"panic: nothing runs" in f.dom0("status").stdout, "status tells")
        f.stop()
        f.spawn("mock", QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work dev")
    equal(f.dom0("resume").returncode, 0)
    equal(f.run("true").returncode, 0)
    got = f.dom0("resume")
    check(got.returncode == 1 and b"nothing to resume" in got.stderr, got)
    acts = [r["reason"] for r in f.audit() if r["kind"] == "ADMIN"]
    equal([act for act in acts if act in ("panic", "resume")], ["panic", "resume"])


@case
def panic_kills_a_daemon_that_hangs(f):
    begin(f, "work level:full allow\n")
    mark = f"panic-hang-{os.getpid()}"
    running = start(f, f"export MARK={mark}; echo up; sleep 1000")
    equal(running.stdout.readline(), b"up\n")
    f.daemon.send_signal(signal.SIGSTOP)
    got = f.dom0("panic")
    check(got.returncode == 0 and b"was killed" in got.stderr, got)
    eventually(lambda: not survivors("MARK=" + mark), "the tree's end")
    equal(ended(running)[0], 255)
    f.daemon.wait()
    f.daemon = None


@case
def a_key_runs_out_for_live_sessions_too(f):
    begin(f, "work level:full allow\n")
    for bad in ("soon", "0m", "2020-01-01", "5", ""):
        got = f.dom0("authorize", "work", "--until", bad, stdin=KEY.encode())
        check(got.returncode == 1 or not bad, (bad, got))
    equal(f.dom0("authorize", "work", "--until", "8h", stdin=KEY.encode()).returncode, 0)
    running = start(f, "echo up; sleep 1000")
    equal(running.stdout.readline(), b"up\n")
    until = os.path.join(f.root, "etc/qubes/remote.d/work.until")
    with open(until) as u:
        check(abs(int(u.read()) - time.time() - 8 * 3600) < 60, "eight hours")
    with open(until, "w") as u:
        u.write(f"{int(time.time()) + 2}\n")
    f.daemon.send_signal(signal.SIGHUP)
    code, _, err = ended(running)
    check(code == 126 and b"revoked" in err, err)
    equal(f.run("true").returncode, 126)
    equal(f.dom0("authorize", "work", stdin=KEY.encode()).returncode, 0)
    check(not os.path.exists(until), "no end any more")
    equal(f.run("true").returncode, 0)


@case
def rotate_leaves_no_gap(f):
    house = House(f, "work").wait_for_agent("work")
    key_file = os.path.join(house.machine.home("work"), ".qvm-remote", "auth.key")
    running = house.popen("work", "echo up; read x; echo $x", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    equal(running.stdout.readline(), b"up\n")
    env = dict(house.env("work"), PATH=house.machine.programs + ":" + os.environ["PATH"],
               QVMREMOTE_STANDIN=house.machine.path)
    got = subprocess.run([DAEMON, "--root", f.root, "rotate", "work"], env=env, capture_output=True,
                         timeout=HANG)
    equal((got.returncode, got.stderr), (0, b""))
    with open(key_file) as k:
        fresh = k.read().strip()
    check(fresh != KEY and len(fresh) == 64, fresh)
    equal(os.stat(key_file).st_mode & 0o777, 0o600)
    equal(house.run("work", "echo new").stdout, b"new\n")
    with open(key_file, "w") as k:
        k.write(KEY)
    equal(house.run("work", "echo old").stdout, b"old\n")
    running.stdin.write(b"still\n")
    running.stdin.close()
    equal((running.stdout.read(), running.wait(HANG)), (b"still\n", 0))
    previous = os.path.join(f.root, "etc/qubes/remote.d/work.previous")
    with open(previous) as p:
        old, until = p.read().split()
    check(old == KEY and abs(int(until) - time.time() - 24 * 3600) < 60, until)
    with open(previous, "w") as p:
        p.write(f"{old}\n{int(time.time()) - 1}\n")
    equal(house.run("work", "echo old").returncode, 126)
    house.machine.stop_qubesd()


main()
