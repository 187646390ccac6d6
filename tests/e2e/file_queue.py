#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Protocol 1 in dom0: the shipped daemon over the mock transport, and a carrier that this script plays
step by step (doc/PROTOCOL.md, "Queue"). Tokens come from the openssl command.

Usage: file_queue.py BUILD-DIRECTORY [CASE...]
"""

import os
import re
import socket
import subprocess
import time

from entries import new_id, token
from fixture import HANG, KEY, case, check, equal, eventually, main, survivors

PREAMBLE = b"\0qvm-remote 1\r\n\xff"
LIMIT = 1 << 20


class Carrier:
    """The program that watches the queue in the qube."""

    def __init__(self, f, qube="work", preamble=PREAMBLE):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(HANG)
        self.socket.connect(os.path.join(f.root, qube + ".sock"))
        self.file = self.socket.makefile("rb")
        self.socket.sendall(preamble)
        self.out = {}

    def say(self, *lines, raw=b""):
        self.socket.sendall("".join(line + "\n" for line in lines).encode() + raw)

    def entry(self, name, body=b"", key=KEY, length=None):
        self.say(f"entry {name} {token(name, key) if key else '-'} "
                 f"{len(body) if length is None else length}")

    def body(self, name, body):
        self.say(f"body {name} {len(body)}", raw=body)

    def hear(self):
        """Returns the words of the next line. Collects output and answers pings before it."""
        while True:
            words = self.file.readline().decode().split()
            if words and words[0] == "ping":
                self.say(f"pong {words[1]}")
                continue
            if not words or words[0] not in ("out", "err"):
                return words
            piece = self.file.read(int(words[2]))
            self.out[words[:2][0], words[1]] = self.out.get((words[0], words[1]), b"") + piece

    def result(self, name):
        """Returns exit code, stdout and stderr of an entry. Keeps meta and the audit line in self."""
        words = self.hear()
        equal(words[:2], ["result", name])
        self.meta = self.file.read(int(words[3])).decode()
        self.line = self.file.read(int(words[4])).decode()
        self.say(f"done {name}")
        return int(words[2]), self.out.pop(("out", name), b""), self.out.pop(("err", name), b"")

    def run(self, name, body, key=KEY):
        self.entry(name, body, key)
        equal(self.hear(), ["fetch", name])
        self.body(name, body)
        return self.result(name)

    def close(self):
        self.file.close()
        self.socket.close()


@case
def a_command_and_its_files(f):
    f.start()
    c = Carrier(f, preamble=b"Welcome to Debian!\n" + PREAMBLE)
    name = new_id()
    got = c.run(name, b"echo out; echo err >&2; echo $QVM_REMOTE_PEER; cat; exit 7\n")
    equal(got, (7, b"out\nwork\n", b"err\n"))
    check(re.fullmatch(rf"id={name}\nstarted=\d\d\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\nduration_ms=\d+\n"
                       r"exit_code=7\n", c.meta), c.meta)
    check(re.fullmatch(rf"\[\d\d\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\] id={name} exit=7 duration=\d+ms "
                       r"cmd=echo out; echo err >&2; echo \$QVM_REMOTE_PEER; cat; exit 7 ?\n",
                       c.line), c.line)
    start = [r for r in f.audit() if r["kind"] == "START"][-1]
    equal((start["proto"], start["body"], start["id"]), (1, "unsigned", name))
    log = f.log()
    for words in (f"AUTH-OK vm=work id={name}", f"EXEC vm=work id={name}", "  stdout: out",
                  f"DONE-FAIL vm=work id={name} exit=7", "nobody signed"):
        check(words in log, f"the log lacks {words!r}")


@case
def exit_codes_are_those_of_python(f):
    f.start()
    c = Carrier(f)
    equal(c.run(new_id(1), b"kill -9 $$")[0], -9)
    equal(c.run(new_id(2), b"no-such-program")[0], 127)
    equal(c.run(new_id(3), b"true\n")[0], 0)


@case
def a_body_of_exactly_the_limit(f):
    f.start()
    c = Carrier(f)
    body = b"echo fine; exit\n" + b"#" * (LIMIT - 16)
    equal(c.run(new_id(), body), (0, b"fine\n", b""))


@case
def entries_that_are_refused_after_they_authenticated(f):
    f.start()
    c = Carrier(f)
    for n, (body, reason) in enumerate([(b"", b"command is empty"), (b"echo \x1b[2J", b"control characters"),
                                        (b"echo a\0b", b"control characters")]):
        got = c.run(new_id(n), body)
        check(got[0] == 126 and got[1] == b"" and reason in got[2], got)
    name = new_id(9)
    c.entry(name, length=300 << 20)
    got = c.result(name)  # refused because of its length, and never fetched
    check(got[0] == 126 and b"exceeds" in got[2], got)
    old = "20200101-000000-1-00000000"
    c.entry(old, b"true")
    got = c.result(old)
    check(got[0] == 126 and b"26 hours" in got[2], got)
    log = f.log()
    for words in ("empty-command", "binary-content", f"oversized ({300 << 20} bytes)"):
        check(re.search(rf"REJECT vm=work id=\S+ \S* ?{re.escape(words)}", log), f"no {words}")


@case
def a_token_that_does_not_verify_is_dropped_in_silence(f):
    f.start()
    c = Carrier(f)
    for n, key in enumerate(["f" * 64, None]):
        name = new_id(n)
        c.entry(name, b"touch /tmp/never", key)
        equal(c.hear(), ["drop", name])
    check("AUTH-FAIL vm=work id=" in f.log(), "no AUTH-FAIL")
    stranger = Carrier(f, "dev")  # a qube without a key in dom0
    name = new_id(5)
    stranger.entry(name, b"true")
    equal(stranger.hear(), ["drop", name])
    check(f"AUTH-DENY vm=dev id={name} (no key for this VM)" in f.log(), "no AUTH-DENY")
    equal(c.run(new_id(6), b"echo on")[1], b"on\n")


@case
def a_used_id_with_another_body_does_not_run(f):
    f.start()
    c = Carrier(f)
    for name in (new_id(), "e2e-single-001"):
        equal(c.run(name, b"echo first")[1], b"first\n")
        c.entry(name, b"echo second")
        got = c.result(name)
        check(got[0] == 126 and b"has been used" in got[2] and got[1] == b"", got)
    f.stop()
    f.start(key=None)
    c = Carrier(f)
    c.entry("e2e-single-001", b"echo third")
    equal(c.result("e2e-single-001")[0], 126)


@case
def output_is_cut_at_ten_mebibytes_with_a_mark(f):
    f.start()
    c = Carrier(f)
    code, out, err = c.run(new_id(), b"head -c 20000000 /dev/zero; echo all >&2")
    mark = b"\n[truncated at 10485760 bytes]\n"
    equal((code, len(out), err), (0, 10485760 + len(mark), b"all\n"))
    check(out.endswith(b"\0" + mark), "no mark")
    check("TRUNC stdout (20000000 bytes)" in f.log(), "no TRUNC")


@case
def an_entry_that_vanishes_cancels_its_command(f):
    f.start()
    c = Carrier(f)
    name = new_id()
    mark = f"queue-test-{os.getpid()}"
    body = f"export MARK={mark}; echo up; sleep 1000 & sleep 1000".encode()
    c.entry(name, body)
    equal(c.hear(), ["fetch", name])
    c.body(name, body)
    equal(c.file.readline().split()[0], b"out")
    equal(c.file.read(3), b"up\n")
    eventually(lambda: survivors("MARK=" + mark), "it runs")
    c.say(f"gone {name}")
    eventually(lambda: not survivors("MARK=" + mark), "the tree's end")
    equal(c.hear(), ["drop", name])  # the carrier drops the output that has come
    equal(c.run(new_id(2), b"echo next")[1], b"next\n")


@case
def a_stream_that_breaks_ends_what_runs_and_the_rest_is_unknown(f):
    f.start()
    c = Carrier(f)
    name = new_id()
    mark = f"queue-test-{os.getpid()}-2"
    body = f"export MARK={mark}; sleep 1000".encode()
    c.entry(name, body)
    equal(c.hear(), ["fetch", name])
    c.body(name, body)
    eventually(lambda: survivors("MARK=" + mark), "it runs")
    c.close()
    eventually(lambda: not survivors("MARK=" + mark), "the tree's end")
    c = Carrier(f)
    c.say(f"stale {name}")
    got = c.result(name)
    check(got[0] == 130 and b"unknown" in got[2], got)
    c.entry(name, body)
    equal(c.result(name)[0], 126)


@case
def what_a_carrier_says_of_entries_that_are_not_ours_is_not_logged(f):
    """A qube without a key cannot fill the log for people."""
    f.start()
    stranger = Carrier(f, "dev")
    names = [new_id(n) for n in range(300)]
    for verb in ("failed", "stale", "gone", "done"):
        stranger.say(*(f"{verb} {name}" for name in names))
    for name in names:
        equal(stranger.result(name)[0], 130)
    for name in names:  # a message about them does not make them ours
        stranger.say(f"failed {name}")
    stranger.entry(names[1], b"true", key=None)
    equal(stranger.hear(), ["drop", names[1]])
    check("write-failed" not in f.log() and "left in running" not in f.log(), f.log()[-2000:])
    c = Carrier(f)
    ran = new_id(7)
    equal(c.run(ran, b"echo ours")[0], 0)
    c.say(f"stale {ran}")
    equal(c.hear()[:2], ["result", ran])
    c.say(f"failed {ran}")
    eventually(lambda: f"id={ran} was left in running" in f.log(), "a line about ours")
    eventually(lambda: f"id={ran} write-failed" in f.log(), "a line about ours")


@case
def one_qube_that_fails_leaves_the_others_their_lines(f):
    f.start()
    bad, good = Carrier(f, "dev"), Carrier(f)
    names = [new_id(n) for n in range(1500)]
    for name in names:
        bad.entry(name, b"true", key=None)
    good.entry(names[0], b"true", key=KEY[::-1])
    equal(good.hear(), ["drop", names[0]])
    for name in names:
        equal(bad.hear(), ["drop", name])
    lines = f.log().splitlines()
    equal(sum(f"vm=work id={names[0]} (token" in line for line in lines), 1)
    failed = [line for line in lines if "vm=dev" in line]
    check(100 <= len(failed) < 400, len(failed))
    eventually(lambda: any(r["kind"] == "REFUSED" and r["peer"] == "work" for r in f.audit()), "the record")
    eventually(lambda: any("vm=dev: " in line and "left out" in line for line in f.log().splitlines()),
               "the count")


@case
def an_entry_that_is_fetched_and_comes_late_leaves_its_slot(f):
    """dom0 gives the slot to others after a minute, as for a body of protocol 2; the entry runs when it comes."""
    f.start()
    c = Carrier(f)
    name = new_id()
    c.entry(name, b"echo late")
    equal(c.hear(), ["fetch", name])
    check(b": running=1 " in f.dom0("status").stdout, "no slot is taken")
    eventually(lambda: b": running=0 waiting=0\n" in f.dom0("status").stdout, "no slot is taken any more")
    c.body(name, b"echo late")
    equal(c.result(name)[:2], (0, b"late\n"))


@case
def eight_run_and_the_rest_waits_its_turn(f):
    f.start()
    c = Carrier(f)
    names = [new_id(n) for n in range(40)]
    for name in names:
        c.entry(name, b"echo " + name.encode())
    left = set(names)
    fetched = 0
    while left:
        words = c.hear()
        if words[0] == "fetch":
            fetched += 1
            check(fetched - (len(names) - len(left)) <= 8, "more than eight at once")
            c.body(words[1], b"echo " + words[1].encode())
        else:
            equal(words[0], "result")
            c.file.read(int(words[3]) + int(words[4]))
            equal((words[2], c.out[("out", words[1])]), ("0", words[1].encode() + b"\n"))
            left.remove(words[1])


@case
def three_hundred_that_wait_are_asked_to_come_later(f):
    f.start()
    c = Carrier(f)
    for n in range(300):
        c.entry(new_id(n), b"true")
    later = 0
    for _ in range(300 - 256 - 8 + 8):
        words = c.hear()
        later += words[0] == "later"
    equal(later, 300 - 256 - 8)
    # A postponed ID is not a used one.
    check("has been used" not in f.log(), "taken for used")


@case
def a_key_that_has_proven_protocol_2_is_not_pushed_back(f):
    f.start()
    c = Carrier(f)
    equal(c.run(new_id(1), b"echo old")[1], b"old\n")
    equal(f.run("echo new").stdout, b"new\n")
    back = new_id(2)
    c.entry(back, b"echo back")
    got = c.result(back)
    check(got[0] == 126 and b"protocol 1 is refused" in got[2], got)
    f.stop()
    f.start(key=None)  # the daemon recorded it
    c = Carrier(f)
    back = new_id(3)
    c.entry(back, b"echo back")
    equal(c.result(back)[0], 126)
    # Another key may use protocol 1 again.
    other = "a" * 64
    f.stop()
    f.start(key=other)
    c = Carrier(f)
    equal(c.run(new_id(4), b"echo fresh", other)[1], b"fresh\n")


@case
def the_protocol_can_be_fixed_by_configuration(f):
    conf = os.path.join(f.root, "etc/qubes/remote.conf")

    def configure(text):
        f.stop()
        os.makedirs(os.path.dirname(conf), 0o700, exist_ok=True)
        with open(os.open(conf, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(text)

    configure('QVM_REMOTE_PROTOCOL="auto work=both"\n')
    f.start()
    equal(f.run("true").returncode, 0)
    equal(Carrier(f).run(new_id(1), b"true")[0], 0)
    configure("QVM_REMOTE_PROTOCOL=2\n")
    f.start()
    c = Carrier(f)
    refused = new_id(2)
    c.entry(refused, b"true")
    equal(c.result(refused)[0], 126)
    configure("QVM_REMOTE_PROTOCOL=1\n")
    f.start()
    got = f.run("true")
    equal(got.returncode, 126)
    equal(Carrier(f).run(new_id(3), b"true")[0], 0)
    configure("QVM_REMOTE_PROTOCOL=3\n")
    got = f.dom0("--transport", "mock")
    check(got.returncode == 1 and b"is not valid: use auto, both, 1, 2" in got.stderr, got)


@case
def nonsense_ends_the_stream_alone(f):
    f.start()
    good = Carrier(f)
    for line in ("entry ../x - 1", "body x 1", "entry x - -1", "hello", "x" * 600):
        bad = Carrier(f)
        bad.say(line)
        equal(bad.file.read(), b"")
        bad.close()
    equal(good.run(new_id(), b"echo well")[1], b"well\n")


@case
def a_revoked_key_ends_what_it_started(f):
    f.start()
    c = Carrier(f)
    name = new_id()
    c.entry(name, b"sleep 1000")
    equal(c.hear(), ["fetch", name])
    c.body(name, b"sleep 1000")
    eventually(lambda: f"EXEC vm=work id={name}" in f.log(), "it runs")
    equal(f.dom0("revoke", "work").returncode, 0)
    got = c.result(name)
    check(got[0] == 126 and b"revoked" in got[2], got)


@case
def a_dry_run_runs_nothing(f):
    f.start("--dry-run")
    made = os.path.join(f.path, "made")
    equal(Carrier(f).run(new_id(), f"touch {made}".encode()),
          (0, f"[dry-run] touch {made}\n".encode(), b""))
    check(not os.path.exists(made), "it ran")


@case
def three_hundred_megabytes_of_bogus_entries_cost_no_memory(f):
    # A sanitizer keeps freed memory, which must not count here.
    usual = os.environ.get("ASAN_OPTIONS", "")
    os.environ["ASAN_OPTIONS"] = usual + ":quarantine_size_mb=0:thread_local_quarantine_size_kb=0"
    f.start()
    os.environ["ASAN_OPTIONS"] = usual
    c = Carrier(f)
    equal(c.run(new_id(), b"true")[0], 0)

    def rss():
        with open(f"/proc/{f.daemon.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])

    before = rss()
    bogus = "".join(f"entry x{n} {'0' * 64} 300000000\n" for n in range(1000)).encode()
    c.socket.settimeout(HANG)
    sent = 0
    while sent < 3_000_000:
        c.socket.setblocking(True)
        c.socket.sendall(bogus)
        sent += len(bogus)
        c.socket.setblocking(False)
        try:
            while c.socket.recv(1 << 20):
                pass
        except BlockingIOError:
            pass
    c.close()
    # The carrier sends a body that dom0 did not ask for.
    c = Carrier(f)
    c.say("entry big - 300000000", "body big 300000000")
    check(c.file.read() in (b"", b"drop big\n"), "the stream goes on")
    check(rss() - before < 8192, f"{rss() - before} KiB more")


main()
