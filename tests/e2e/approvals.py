#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Approvals that are asked for, given, refused and withdrawn; panic; keys that expire.
Usage: approvals.py BUILD-DIRECTORY [CASE...]
"""

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import time

from entries import new_id, token
from fixture import (CLIENT, DAEMON, HANG, KEY, at_a_terminal, case, check, equal, eventually, main, operator,
                     survivors)
from house import House
from policies import begin, rules


def questions(f):
    said = f.dom0("approvals", "list", "--json")
    equal(said.returncode, 0)
    return [json.loads(line) for line in said.stdout.splitlines()]


def question(f):
    eventually(lambda: questions(f), "a question")
    return questions(f)[0]


def whole(f, asked):
    """All of one question, with its long texts."""
    got = f.dom0("approvals", "show", str(asked["serial"]), "--json")
    equal((got.returncode, got.stderr), (0, b""))
    return json.loads(got.stdout)


def start(f, *words, stdin=subprocess.DEVNULL):
    return subprocess.Popen([CLIENT, *words], env=f.env(), stdin=stdin, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def allow(f, asked, *more):
    got = operator(f, "approvals", "allow", str(asked["serial"]), asked["digest"], *more)
    equal((got.returncode, got.stderr), (0, b""))


def ended(client):
    out, err = client.communicate(timeout=HANG)
    return client.returncode, out, err


@case
def a_request_that_needs_approval_waits_and_runs_when_it_is_allowed(f):
    begin(f, "work * ask\n")
    client = start(f, "-t", "77", "echo $QVM_REMOTE_PEER; exit 7")
    asked = question(f)
    equal((asked["qube"], asked["script"], asked["stdin"], asked["shell"], asked["timeout_s"]),
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
    # The approval was for one run.
    client = start(f, "-t", "77", "echo $QVM_REMOTE_PEER; exit 7")
    again = question(f)
    check(again["serial"] != asked["serial"] and again["digest"] == asked["digest"], again)
    equal(operator(f, "approvals", "deny", str(again["serial"])).returncode, 0)
    code, out, err = ended(client)
    check((code, out) == (126, b"") and b"said no" in err, err)
    equal(questions(f), [])


@case
def what_waits_does_not_run_when_its_rule_is_gone(f):
    """The operator changes the file by hand, without a reload."""
    path = os.path.join(f.root, "etc/qubes/remote-policy.d/30-test.policy")
    for text in ("work * deny\n", "", "work * as\n", "work * ask timeout=5\n"):
        begin(f, "work * ask\n") if f.daemon is None else rules(f, "work * ask\n")
        client = start(f, "echo no")
        asked = question(f)
        with open(path, "w") as policy:
            policy.write(text)
        operator(f, "approvals", "allow", str(asked["serial"]), asked["digest"])
        code, out, err = ended(client)
        check((code, out) == (126, b"") and b"policy" in err, (text, code, out, err))


@case
def an_answer_counts_only_while_the_request_waits(f):
    begin(f, "work * ask\n")
    got = operator(f, "approvals", "allow", "1", "0" * 64)
    check(got.returncode == 1 and b"nothing waits" in got.stderr, got)
    # The client ends, and so does its question.
    client = start(f, "echo no")
    question(f)
    client.kill()
    client.wait()
    eventually(lambda: not questions(f), "the question's end")
    # The client's key is revoked, and so its question ends.
    client = start(f, "echo no")
    question(f)
    equal(f.dom0("revoke", "work").returncode, 0)
    code, _, err = ended(client)
    check(code == 126 and b"revoked" in err, err)
    equal(questions(f), [])
    check(not [r for r in f.audit() if r["kind"] == "START"], "nothing ran")


@case
def only_what_was_shown_runs(f):
    """I1: a changed policy makes a new question, and the digest covers everything that would run."""
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
    equal(questions(f), [])  # the end of the input is part of the question
    client.stdin.write(b"yz")
    client.stdin.close()
    asked = question(f)
    equal((asked["stdin"], asked["stdin_bytes"]), ("collected", 300_002))
    equal(whole(f, asked)["stdin_text"], "x" * 300_000 + "yz")
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
def only_an_operator_can_say_yes(f):
    """I12: a command that dom0 runs for a qube must not approve; without cgroups, a process without a terminal must not."""
    begin(f, "dev level:full allow\nwork * ask\n")
    f.dom0("authorize", "dev", stdin=KEY.encode())
    client = start(f, "echo no")
    asked = question(f)
    serial = f"{asked['serial']} {asked['digest']}"
    got = f.dom0("approvals", "allow", *serial.split())
    check(got.returncode == 1 and b"terminal" in got.stderr, got)
    inside = subprocess.run([CLIENT, f"{DAEMON} --root {f.root} approvals allow {serial}"], timeout=HANG,
                            env=f.env(QVM_REMOTE_MOCK_SOCKET=os.path.join(f.root, "dev.sock")),
                            stdin=subprocess.DEVNULL, capture_output=True)
    check(inside.returncode == 1 and b"a qube's command" in inside.stderr, inside)
    check(client.poll() is None and questions(f), "it still waits")
    client.kill()
    client.wait()


@case
def a_grant_is_only_for_the_same_request(f):
    begin(f, "work exec:echo ** ask ttl=10m\nwork * ask\n")
    client = start(f, "echo", "a")
    asked = question(f)
    equal((asked["may_last"], asked["shell"], asked["argv"]), (True, False, ["echo", "a"]))
    got = operator(f, "approvals", "allow", str(asked["serial"]), asked["digest"], "--for", "11")
    check(got.returncode == 1 and b"10 minutes" in got.stderr, got)
    allow(f, asked, "--for", "10")
    equal(ended(client)[:2], (0, b"a\n"))
    equal(f.run("echo", "a").stdout, b"a\n")
    client = start(f, "echo", "b")
    operator(f, "approvals", "deny", str(question(f)["serial"]))
    equal(ended(client)[0], 126)
    client = start(f, "bash", "-c", "'echo x'")
    asked = question(f)
    got = operator(f, "approvals", "allow", str(asked["serial"]), asked["digest"], "--for", "1")
    check(got.returncode == 1 and b"once" in got.stderr, got)
    operator(f, "approvals", "deny", str(asked["serial"]))
    ended(client)
    # A new key removes what was granted for the old one.
    equal(f.dom0("authorize", "work", stdin=b"b" * 64).returncode, 0)
    equal(f.dom0("authorize", "work", stdin=KEY.encode()).returncode, 0)
    client = start(f, "echo", "a")
    question(f)
    client.kill()
    client.wait()


@case
def one_qube_cannot_fill_the_list(f):
    begin(f, "work * ask\n")
    clients = [start(f, f"echo {n}") for n in range(8)]
    eventually(lambda: len(questions(f)) == 8, "eight questions")
    got = f.run("echo more")
    check(got.returncode == 126 and b"busy" in got.stderr, got)
    for c in clients:
        c.kill()
        c.wait()
    eventually(lambda: not questions(f), "their end")


class Terminal:
    """An operator's program on its own terminal; reads what it shows, and types."""

    def __init__(self, f, *words, rows=24, columns=80):
        self.control, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.program = subprocess.Popen([DAEMON, "--root", f.root, *words], env=f.env(), stdin=terminal,
                                        stdout=terminal, stderr=terminal, preexec_fn=at_a_terminal)
        os.close(terminal)
        self.shown = b""

    def see(self, wanted):
        """Waits for this text. Returns what was shown, up to the end of the text."""
        while wanted not in self.shown:
            check(select.select([self.control], [], [], HANG)[0], f"never shown: {wanted}: {self.shown}")
            try:
                more = os.read(self.control, 65536)
            except OSError as e:
                raise AssertionError(f"ended without {wanted}: {self.shown}") from e
            self.shown += more
        before, self.shown = self.shown.split(wanted, 1)
        return before.decode().replace("\r\n", "\n")

    def type(self, text):
        os.write(self.control, text.encode() + b"\n")

    def end(self):
        self.program.terminate()
        self.program.wait(HANG)
        os.close(self.control)


ASKED = b"To let it run, type '"


@case
def watch_asks_on_a_terminal(f):
    begin(f, "work * ask\n")
    watcher = Terminal(f, "approvals", "watch")
    # For a shell command the answer is the qube's name; yes counts as no.
    for form, code in (("yes", 126), ("work", 126), ("{serial}", 126), ("yes {serial}", 126),
                       ("work {serial}1", 126), ("work {serial}", 0)):
        client = start(f, "echo \x1b[31mhi; true")
        asked = question(f)
        watcher.see(b"\\x1b[31mhi; true")
        watcher.see(ASKED + b"work %d'" % asked["serial"])
        watcher.see(b"denies it: ")
        watcher.type(form.format(**asked))
        equal((form, ended(client)[0]), (form, code))
    watcher.end()


@case
def what_was_typed_before_a_question_is_no_answer(f):
    begin(f, "work exec:echo ** ask\n")
    watcher = Terminal(f, "approvals", "watch")
    first = start(f, "echo", "1")
    serial = question(f)["serial"]
    watcher.see(ASKED)
    watcher.see(b"denies it: ")
    # An answer to this question, and answers typed ahead for the next ones.
    for typed in (f"yes {serial}", "yes", f"yes {serial + 1}", f"yes {serial + 2}"):
        watcher.type(typed)
    equal(ended(first)[:2], (0, b"1\n"))
    for number in (1, 2):
        client = start(f, "echo", "later")
        shown = watcher.see(ASKED)
        check(str(serial + number) in shown, shown)
        watcher.see(b"denies it: ")
        check(client.poll() is None, "an answer that was typed ahead counts")
        watcher.type("no")
        equal(ended(client)[0], 126)
    # What is typed within the first second of a question does not count either.
    client = start(f, "echo", "x")
    asked = question(f)
    watcher.see(asked["digest"][:20].encode())
    watcher.type(f"yes {asked['serial']}")
    watcher.see(b"denies it: ")
    check(client.poll() is None and questions(f), "it still waits")
    watcher.type(f"yes {asked['serial']}")
    equal(ended(client)[:2], (0, b"x\n"))
    watcher.end()


@case
def a_yes_is_possible_only_after_everything_was_shown(f):
    begin(f, "work * ask\n")
    script = "\n".join(f"echo {n}" for n in range(100)) + "\nprintf end"
    client = start(f, script)
    asked = question(f)
    answer = Terminal(f, "approvals", "allow", str(asked["serial"]), rows=20, columns=60)
    shown = ""
    for _ in range(100):
        shown += answer.see(b": ") + ": "
        if "it still waits: " in shown and ASKED.decode() in shown:
            break
        if shown.endswith("a no: "):
            check(ASKED.decode() not in shown, "no question before the end")
            answer.type("")
    for n in range(100):
        check(f"script {n + 1} ".ljust(14) + f"| echo {n}\n" in shown, n)
    check("script 101    | printf end\n" in shown and asked["digest"][:20] in shown, shown[-500:])
    check(all(len(row) <= 60 for row in shown.split("\n") if " | " in row or " . " in row), "the width")
    answer.type(f"work {asked['serial']}")
    code, out, _ = ended(client)
    check(code == 0 and out.endswith(b"99\nend"), out)
    answer.end()
    # An answer counts only after the text was read to its end.
    client = start(f, script)
    asked = question(f)
    answer = Terminal(f, "approvals", "allow", str(asked["serial"]), asked["digest"])
    answer.see(b"is a no: ")
    answer.type(f"work {asked['serial']}")
    equal(answer.program.wait(HANG), 1)
    check(client.poll() is None and questions(f), "it still waits")
    answer.end()
    watcher = Terminal(f, "approvals", "watch")
    watcher.see(b"is a no: ")
    watcher.type(f"work {asked['serial']}")
    equal(ended(client)[0], 126)
    watcher.end()


@case
def no_word_or_line_looks_like_two(f):
    begin(f, "work * ask\n")
    forged = "#!/bin/sh\necho harmless\nexit 0\n"
    path = os.path.join(f.path, "script")
    with open(path, "w") as s:
        s.write("#!/bin/sh\necho body\n")
    shown = {}
    rows = [(("--script", path, forged), {"arguments": [forged], "script": "#!/bin/sh\necho body\n"}),
            (("--exec", "sh", "-c", "a", "b"), {"argv": ["sh", "-c", "a", "b"]}),
            (("--exec", "sh", "-c", "a\nb"), {"argv": ["sh", "-c", "a\nb"]}),
            (("--exec", "sh", "-c", 'a" "b'), {"argv": ["sh", "-c", 'a" "b']}),
            (("--exec", "sh", "-c", "a\\nb"), {"argv": ["sh", "-c", "a\\nb"]}),
            (("--exec", "sh", "-c", "\u202eevil\u2066"), {"argv": ["sh", "-c", "\u202eevil\u2066"]}),
            (("--exec", "sh", b"\xff\x9b[2J"), {"argv": ["sh", b"\xff\x9b[2J"]}),
            (("--exec", "sh", ""), {"argv": ["sh", ""]}),
            (("true; a ",), {"script": "true; a "}), (("true; a\n",), {"script": "true; a\n"}),
            (("true; a \n",), {"script": "true; a \n"}), (("true; a",), {"script": "true; a"})]
    for words, fields in rows:
        client = start(f, *words)
        asked = whole(f, question(f))
        for field, wanted in fields.items():
            got = asked[field]
            equal([bytes_of(w) for w in got] if isinstance(got, list) else bytes_of(got),
                  [w if isinstance(w, bytes) else w.encode() for w in wanted] if isinstance(got, list)
                  else wanted.encode())
        screen = f.dom0("approvals", "show", str(asked["serial"])).stdout
        check(all(0x20 <= c < 0x7f or c == 10 for c in screen), screen)
        # Remove the parts that change: the serial, the seconds, the digest.
        screen = b"\n".join(row for row in screen.split(b"\n") if not row.startswith((b"serial", b"sha256", b" ")))
        check(screen not in shown, (words, shown.get(screen)))
        shown[screen] = words
        operator(f, "approvals", "deny", str(asked["serial"]))
        ended(client)


def bytes_of(shown):
    """The bytes of an escaped text of the JSON."""
    return re.sub(rb"\\(x..|.)", lambda m: {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"\\": b"\\"}.get(
        m[1]) or bytes.fromhex(m[1][1:].decode()), shown.encode())


@case
def long_texts_are_cut_in_a_list_and_whole_in_one_question(f):
    begin(f, "work * ask env=LANG\n")
    script = "echo " + "x" * 5000 + "; true\n" * 3000
    data = b"\x00\xff\n" * 100_000
    client = start(f, script, stdin=subprocess.PIPE)
    client.stdin.write(data)
    client.stdin.close()
    client.stdin = None
    asked = question(f)
    equal((asked["complete"], asked["script_bytes"], asked["stdin_bytes"]), (False, len(script), len(data)))
    listed = f.dom0("approvals", "list").stdout
    check(f"{len(script) - 2048} more bytes are not shown here".encode() in listed, listed[-600:])
    check(f"approvals show {asked['serial']}".encode() in listed, listed[-600:])
    all_of_it = whole(f, asked)
    equal((all_of_it["complete"], bytes_of(all_of_it["script"]) == script.encode(),
           bytes_of(all_of_it["stdin_text"]) == data), (True, True, True))
    for field in ("kind", "user", "limits", "environment", "tty", "timeout_s"):
        check(field in all_of_it, field)
    client.kill()
    client.wait()


@case
def without_a_terminal_allow_takes_the_digest(f):
    begin(f, "work exec:echo ** ask\n")
    client = start(f, "echo", "a")
    asked = question(f)
    serial = str(asked["serial"])
    for words, remedy in (((serial,), b"approvals show " + serial.encode()),
                          ((serial, "--for", "5"), b"approvals show " + serial.encode()),
                          ((serial, "abc"), b"64 digits"), ((serial, ""), b"64 digits"),
                          ((serial, "0" * 64), b"approvals show " + serial.encode())):
        got = operator(f, "approvals", "allow", *words)
        check(got.returncode == 1 and remedy in got.stderr, (words, got))
    check(client.poll() is None and questions(f), "it still waits")
    allow(f, asked)
    equal(ended(client)[:2], (0, b"a\n"))


def connections(f, line, count=80):
    """Makes connections to the control socket that have sent only this part of a request."""
    out = []
    for _ in range(count):
        s = socket.socket(socket.AF_UNIX)
        s.connect(os.path.join(f.root, "run/qvm-remote/control.sock"))
        s.sendall(line)
        out.append(s)
    return out


@case
def panic_deny_and_status_work_while_others_fill_the_control_socket(f):
    begin(f, "work * ask\n")
    client = start(f, "echo no")
    asked = question(f)
    version = ask_control(os.path.join(f.root, "run/qvm-remote/control.sock"), "wait -").split("\n")[0]
    held = [connections(f, part) for part in (f"wait {version}\n".encode(), b"pani", b"", b"approvals\n")]
    check(b"version:" in f.dom0("status").stdout, "status answers")
    refused = f.dom0("approvals", "list")
    check(refused.returncode == 0 or b"too many others" in refused.stderr, refused)
    held.append(connections(f, b"x"))
    got = operator(f, "approvals", "deny", str(asked["serial"]))
    equal((got.returncode, got.stderr), (0, b""))
    equal(ended(client)[0], 126)
    held.append(connections(f, b""))
    held.append(connections(f, b"wait x"))
    daemon = f.daemon.pid
    got = f.dom0("panic")
    equal((got.returncode, got.stderr), (0, b""))
    check(f.daemon.poll() is None and f.daemon.pid == daemon, "the daemon obeyed, and was not killed")
    check(b"panic: nothing runs" in f.dom0("status").stdout, "status tells")
    for s in sum(held, []):
        s.close()


def ask_control(path, line):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        s.sendall(line.encode() + b"\n")
        return s.makefile().read()


def allow_what_was_swapped(control, running):
    """Plays an operator who approves every entry after its file was changed."""
    while True:
        for asked in map(json.loads, ask_control(control, "approvals").splitlines()):
            try:
                with open(os.path.join(running, asked["id"])) as e:
                    if e.read() == "echo swapped\n":
                        ask_control(control, f"allow {asked['serial']} - {asked['digest']}")
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
            # The agent removes the token after it has read the entry; a change before that is shown.
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
def an_expired_key_ends_live_sessions_too(f):
    begin(f, "work level:full allow\n")
    for bad in ("soon", "0m", "2020-01-01", "5", "", "2127-02-31", "2127-02-29", "2127-02-03T24:00", "2127-2-3", "-1h",
                "+1h", "1h ", "0x1h", "2127-02-03T10:60", "2127-02-03Z", "2147483647d"):
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
    check(code == 126 and b"the key has expired" in err, err)
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
