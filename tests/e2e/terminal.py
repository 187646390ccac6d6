#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Terminals: --tty and --shell on a pseudo-terminal that the test makes and reads.
Usage: terminal.py BUILD-DIRECTORY --transport mock|qvm-run|qrexec [CASE...]
"""

import contextlib
import fcntl
import functools
import glob
import hashlib
import os
import pty
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import fixture
from fixture import CLIENT, HANG, KEY, Fixture, check, equal, eventually, main, survivors
from house import HOUSES
from policies import rules

at = sys.argv.index("--transport")
Fixture.transport = sys.argv[at + 1]
del sys.argv[at : at + 2]

HANG = int(os.environ.get("HANG", HANG))


TERMINALS = []


def case(function):
    """Registers a case, and closes its terminals after any result, so that no daemon waits for them."""
    @functools.wraps(function)
    def run(f):
        try:
            function(f)
        finally:
            for t in TERMINALS:
                t.close()
            TERMINALS.clear()
    return fixture.case(run)


class Terminal:
    """A program on its own terminal: reads what it shows, and types."""

    def __init__(self, f, *words, rows=24, columns=80, program=CLIENT, stdout=None, env=None):
        self.control, self.other = pty.openpty()
        self.resize(columns, rows)
        self.before = self.modes()
        self.shown = b""
        TERMINALS.append(self)
        self.program = subprocess.Popen([program, *words], env=f.env(TERM="xterm-256color", **(env or {})),
                                        stdin=self.other, stdout=self.other if stdout is None else stdout,
                                        stderr=self.other, preexec_fn=self.take)

    def take(self):
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def modes(self):
        """The modes that stty -a shows. EXTPROC and similar modes do not occur here."""
        got = termios.tcgetattr(self.other)
        return got[:6] + [[c if isinstance(c, bytes) else bytes([c]) for c in got[6]]]

    def is_raw(self):
        return not self.modes()[3] & termios.ICANON

    def resize(self, columns, rows):
        fcntl.ioctl(self.control, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, timeout=HANG):
        if not select.select([self.control], [], [], timeout)[0]:
            return False
        self.shown += os.read(self.control, 65536)
        return True

    def see(self, wanted):
        """Waits for this text or pattern, and removes what was shown up to its end. Returns the match of a pattern."""
        pattern = wanted if isinstance(wanted, re.Pattern) else re.compile(re.escape(wanted))
        while not (found := pattern.search(self.shown)):
            check(self.read(), f"never shown: {wanted}: {self.shown[-2000:]}")
        before, self.shown = self.shown[:found.start()], self.shown[found.end():]
        return found if wanted is pattern else before

    def type(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        while data:
            readable, writable, _ = select.select([self.control], [self.control], [], HANG)
            check(readable or writable, "the terminal takes nothing")
            if readable:
                self.read(0)
            if writable:
                data = data[os.write(self.control, data[:512]):]

    def ready(self):
        """Waits until keys go to dom0."""
        eventually(self.is_raw, "raw mode")
        return self

    def ended(self):
        """Waits for the end and returns the exit code. What was shown meanwhile is in `shown`."""
        end = time.monotonic() + HANG
        while self.program.poll() is None:
            check(time.monotonic() < end, f"does not end: {self.shown[-2000:]}")
            self.read(0.05)
        while self.read(0.05):
            pass
        return self.program.returncode

    def close(self):
        if self.program.poll() is None:
            self.program.kill()
            self.program.wait(HANG)
        if self.control >= 0:
            os.close(self.control)
            os.close(self.other)
        self.control = -1


def prompt(t):
    """Gives the shell a known prompt."""
    t.type("PS1='[ready]'; PROMPT_COMMAND=; bind 'set enable-bracketed-paste off' 2>/dev/null\r")
    t.see(re.compile(rb"(^|[\r\n])\[ready\]"))
    return t


def shell(f, *options, **more):
    return prompt(Terminal(f, *options, "--shell", **more).ready())


@case
def a_terminal_in_dom0(f):
    f.start()
    t = Terminal(f, "--tty", "tty; stty -a; ps -o sid= -p $$ | tr -d ' '; echo pid $$; exit 3", columns=132, rows=43)
    t.see(re.compile(rb"/dev/pts/\d+\r\n"))
    check(b"rows 43; columns 132" in t.see(b"isig icanon"), "no such size")
    found = t.see(re.compile(rb"(\d+)\r\npid (\d+)\r\n"))
    equal(found[1], found[2])
    equal(t.ended(), 3)
    equal(t.modes(), t.before)
    # Without --tty there is no terminal.
    t = Terminal(f, "tty")
    t.see(b"not a tty\r\n")
    equal(t.ended(), 1)


@case
def a_shell_with_jobs(f):
    f.start()
    t = shell(f)
    t.type("shopt -q login_shell && echo login $-\r")
    check(set(b"im") <= set(t.see(re.compile(rb"\nlogin (\w+)\r\n"))[1]), "not interactive")
    t.see(b"[ready]")
    t.type("sleep 1000\r")
    time.sleep(0.3)
    t.type(b"\x1a")
    t.see(b"Stopped")
    t.see(b"[ready]")
    t.type("jobs\r")
    t.see(re.compile(rb"\[1\]\+ +Stopped +sleep 1000"))
    t.type("bg\r")
    t.see(b"sleep 1000 &")
    t.see(b"[ready]")
    t.type("fg\r")
    t.see(b"sleep 1000")
    time.sleep(0.3)
    t.type(b"\x03")
    t.see(b"[ready]")
    t.type("echo code $?\r")
    t.see(b"\ncode 130\r\n")
    t.type("cat\r")
    time.sleep(0.3)  # until the shell has reset its own modes
    t.type(b"here\r")
    t.see(b"here\r\nhere\r\n")
    t.type(b"\x04")
    t.see(b"[ready]")
    t.type("exit 7\r")
    equal(t.ended(), 7)
    equal(t.modes(), t.before)


@case
def a_size_and_its_changes(f):
    f.start()
    t = Terminal(f, "--tty", "trap 'stty size' WINCH; stty size; until read -t 0; do sleep 0.1; done; exit 7")
    t.see(b"24 80\r\n")
    for columns, rows in ((100, 30), (40, 10), (300, 80)):
        time.sleep(0.3)  # bash loses a signal while it runs the trap of that signal
        t.resize(columns, rows)
        t.see(b"%d %d\r\n" % (rows, columns))
    t.type(b"\r")
    equal(t.ended(), 7)
    equal(t.modes(), t.before)


@case
def full_screen_programs(f):
    f.start()
    path = os.path.join(f.path, "text")
    with open(path, "w") as of:
        of.writelines(f"line {n}\n" for n in range(1000))
    if shutil.which("less"):
        t = Terminal(f, "--tty", f"less {path}").ready()
        t.see(b"line 22")
        t.type(b"G")
        t.see(b"(END)")
        t.shown, end = b"", time.monotonic() + HANG
        rows = 50
        # Wait until less has drawn more rows. It may miss a change of the size, so make more
        # changes.
        while b"line 977" not in t.shown:
            check(time.monotonic() < end, f"not redrawn: {t.shown[-2000:]}")
            t.resize(80, rows)
            rows ^= 1
            t.read(1)
        t.type(b"q")
        equal(t.ended(), 0)
        equal(t.modes(), t.before)
    if shutil.which("vi"):
        t = Terminal(f, "--tty", f"vi {path}").ready()
        t.see(b"line 22")
        t.type(b"dwiword \x1b:wq\r")
        equal(t.ended(), 0)
        equal(t.modes(), t.before)
        with open(path) as of:
            equal(of.readline(), "word 0\n")
    if shutil.which("top"):
        t = Terminal(f, "--tty", "top -d 0.3").ready()
        t.see(b"load average")
        t.type(b"q")
        equal(t.ended(), 0)
        equal(t.modes(), t.before)


@case
def bytes_of_colour(f):
    f.start()
    text = b"\x1b[38;2;250;128;3mX\x1b[0m\x1b]0;title\x07\xff\x00\x9b"
    t = Terminal(f, "--tty", "stty -opost; printf '" + "".join(f"\\x{b:02x}" for b in text) + "'; printf END")
    equal(t.see(b"END"), text)
    equal(t.ended(), 0)


@case
def a_large_paste(f):
    f.start()
    data = random.Random(1).randbytes(1 << 20)
    t = Terminal(f, "-e", "none", "--tty", f"stty raw -echo; echo ready; head -c {len(data)} | sha256sum; stty sane").ready()
    t.see(b"ready")
    t.type(data)
    t.see(hashlib.sha256(data).hexdigest().encode())
    equal(t.ended(), 0)
    equal(t.modes(), t.before)


@case
def much_output(f):
    f.start()
    r, w = os.pipe()
    t = Terminal(f, "--tty", "seq 1000000", stdout=w)
    os.close(w)
    with os.fdopen(r, "rb") as of:
        got = of.read()
    equal(hashlib.sha256(got).digest(),
          hashlib.sha256(b"".join(b"%d\r\n" % n for n in range(1, 1000001))).digest())
    equal(t.ended(), 0)
    equal(t.modes(), t.before)


@case
def escapes(f):
    f.start()
    t = Terminal(f, "--tty", "stty raw -echo; echo ready; exec cat -v").ready()
    t.see(b"ready\n")
    t.type("~?")
    t.see(b"send the character itself\r\n")
    t.type("~~a\r~xb\rc~.\r~")  # the client keeps the last one
    t.see(b"~a^M~xb^Mc~.^M")
    t.type("y")
    t.see(b"~y")
    t.type("\r~")
    time.sleep(0.1)
    t.type(".")
    equal(t.ended(), 255)
    check(b"left by the escape" in t.shown, t.shown)
    equal(t.modes(), t.before)
    t = Terminal(f, "-e", "none", "--tty", "stty raw -echo; echo ready; exec cat -v").ready()
    t.see(b"ready\n")
    t.type("~.~?\r~.")
    t.see(b"~.~?^M~.")
    t.program.terminate()
    equal(t.ended(), 143)
    t = Terminal(f, "--escape=^B", "--tty", "stty raw -echo; echo ready; exec cat -v").ready()
    t.see(b"ready\n")
    t.type("~.\r\x02\x02\r")
    t.see(b"~.^M^B^M")
    t.type("\x02.")
    equal(t.ended(), 255)
    for bad in ("ab", "^é", "ü"):
        got = f.run("-e", bad, "--tty", "true")
        check(got.returncode == 1 and got.stderr.startswith(b"qvm-remote: "), (bad, got))


@case
def suspended_and_back(f):
    f.start()
    t = prompt(Terminal(f, "--norc", "-i", program="/bin/bash"))
    t.type(f"{CLIENT} --shell\r")
    t.see(b"--shell\r\n")
    eventually(lambda: b"\r\n" in t.shown or t.read(0.1) and b"$" in t.shown or b"#" in t.shown, "a prompt")
    t.type("PS1='[there]'; sleep 1000\r")
    time.sleep(0.5)
    for how in ("escape", "signal", "stop"):
        children = subprocess.run(["pgrep", "-P", str(t.program.pid), "-f", CLIENT], capture_output=True).stdout.split()
        client = int(children[0])
        if how == "escape":
            t.type("\x03")
            t.see(b"[there]")
            t.type("\r~\x1a")
        else:
            os.kill(client, signal.SIGTSTP if how == "signal" else signal.SIGSTOP)
        t.see(b"Stopped")
        t.see(b"[ready]")
        t.type("true\r")
        t.see(b"[ready]")
        t.resize(111, 33)
        t.type("stty -a\r")
        equal((how, t.see(re.compile(rb"(-?)isig (-?)icanon"))[0]), (how, b"isig icanon"))
        t.type("fg\r")
        t.see(b"--shell")
        eventually(t.is_raw, f"raw again after {how}")
        t.type("\rstty size\r")
        t.see(b"33 111\r\n")
        t.resize(80, 24)
        t.see(b"[there]")
    t.type("exit 4\r")
    t.see(b"[ready]")
    t.type("echo code $?\r")
    t.see(b"\ncode 4\r\n")
    t.type("exit\r")
    t.ended()


def of_daemon(f, *words):
    got = f.dom0(*words)
    check(got.returncode == 0, got)


def kill_keeper(f, mark):
    command = survivors(mark)[0].split("/")[2]
    with open(f"/proc/{command}/stat") as of:
        keeper = int(of.read().rpartition(")")[2].split()[1])
    with open(f"/proc/{keeper}/comm") as of:
        equal(of.read(), "qvm-remote-keep\n")
    os.kill(keeper, signal.SIGKILL)


@case
def modes_are_as_before_whatever_ends_it(f):
    f.start()
    mark = f"MARK=terminal-ways-{os.getpid()}"
    loop = f"export {mark}; echo up; exec sleep 1000"
    ways = [("its own end", "echo up; read x; exit 0", lambda t: t.type("\r"), 0),
            ("its exit code", "echo up; read x; exit 9", lambda t: t.type("\r"), 9),
            ("its signal", "echo up; read x; kill -9 $$", lambda t: t.type("\r"), 137),
            ("modes of its own", "stty raw -echo; echo up; head -c1; exit 1", lambda t: t.type("q"), 1),
            ("Ctrl-C", loop, lambda t: t.type("\x03"), 130),
            ("Ctrl-\\", loop, lambda t: t.type("\x1c"), 131),
            ("the end of input", "echo up; cat", lambda t: t.type("\x04"), 0),
            ("the escape", loop, lambda t: t.type("~."), 255)]
    for name, code in (("TERM", 143), ("HUP", 129), ("INT", 130), ("QUIT", 131), ("USR1", -10), ("USR2", -12),
                       ("ALRM", -14), ("ABRT", -6), ("SEGV", -11), ("BUS", -7), ("XCPU", -24), ("SYS", -31)):
        ways.append(("SIG" + name, loop, lambda t, name=name: t.program.send_signal(getattr(signal, "SIG" + name)),
                     code))
    ways += [("a time-out", loop, None, 124),
             ("a keeper that is killed", loop, lambda t: kill_keeper(f, mark), 126),
             ("a revoked key", loop, lambda t: (of_daemon(f, "revoke", "work")), None),
             ("panic", loop, lambda t: of_daemon(f, "panic"), None),
             ("a daemon that is killed", loop, lambda t: f.daemon.kill(), 255)]
    for name, command, how, code in ways:
        t = Terminal(f, *(("-t", "2") if how is None else ()), "--tty", command).ready()
        t.see(b"up")
        if command == loop:  # wait until bash has executed sleep, since bash ignores SIGQUIT
            eventually(lambda: survivors(mark), "the mark")
        if how:
            how(t)
        try:
            got = t.ended()
        except AssertionError as e:
            raise AssertionError(f"{name}: {e}") from e
        check(t.modes() == t.before, f"{name}: other modes")
        check(got == code if code is not None else got not in (0, 255), f"{name}: {got}: {t.shown}")
        eventually(lambda: not survivors(mark), f"{name}: nothing goes on in dom0")
        t.close()
        if name == "a revoked key":
            of = f.dom0("authorize", "work", stdin=KEY.encode())
            check(of.returncode == 0, of)
            eventually(lambda: f.run("true").returncode == 0, "authorized again")
        elif name == "panic":
            of_daemon(f, "resume")
            eventually(lambda: f.run("true").returncode == 0, "resumed")
    f.daemon.wait(HANG)
    check(len(ways) >= 20, "fewer than 20 ways")


@case
def the_first_process_is_the_end(f):
    f.start()
    mark, told = f"MARK=terminal-first-{os.getpid()}", os.path.join(f.path, "told")
    begin = time.monotonic()
    t = Terminal(f, "--tty", f"export {mark}; (trap 'echo hup >{told}; exit' HUP; while :; do sleep 0.05; done) & "
                 f"(trap '' HUP; sleep 1000) & yes & sleep 0.3; exit 5")
    equal(t.ended(), 5)
    check(time.monotonic() - begin < 30, "it waited")
    check(not survivors(mark), "something goes on")
    with open(told) as of:
        equal(of.read(), "hup\n")


@case
def what_a_terminal_takes_along(f):
    f.start()
    t = Terminal(f, "--tty", "env; echo END", env={
        "COLORTERM": "truecolor", "LANG": "de_DE.UTF-8", "LC_TIME": "C.UTF-8", "LC_SECRET": "no", "FOO": "no", "LS_COLORS": "no"})
    got = dict(line.split("=", 1) for line in t.see(b"END").decode().splitlines() if "=" in line)
    equal({k: got.get(k) for k in ("TERM", "COLORTERM", "LANG", "LC_TIME", "LC_SECRET", "FOO", "LS_COLORS")},
          {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "de_DE.UTF-8", "LC_TIME": "C.UTF-8", "LC_SECRET": None,
           "FOO": None, "LS_COLORS": None})
    t.ended()
    check("TERM" not in f.run("env", env={"TERM": "xterm"}).stdout.decode().split("QVM")[0], "TERM without a terminal")


@case
def input_and_output_that_are_no_terminal(f):
    f.start()
    got = f.run("--tty", "tty; cat; echo end", stdin=b"one\ntwo")
    equal(got.returncode, 0)
    check(re.fullmatch(rb"/dev/pts/\d+\r\n(one\r\ntwo)+(one\r\n)?(two)?end\r\n", got.stdout.replace(b"one\r\ntwoone\r\ntwo", b"one\r\ntwo"))
          or got.stdout.endswith(b"end\r\n"), got.stdout)
    got = f.run("-n", "--tty", "read -t 1 x; echo $?")
    equal((got.returncode, got.stdout), (0, b"142\r\n"))
    # Standard error is the terminal too.
    got = f.run("--tty", "echo to stderr >&2", stdin=b"")
    check(got.stdout == b"to stderr\r\n" and not got.stderr, got)


@case
def a_stopped_terminal_gets_the_last_output(f):
    """Nothing comes after the output that the terminal did not take at first."""
    f.start()
    for n, words in enumerate((("echo ready; exec sleep 1000",), ("--json=lines", "echo ready; exec sleep 1000"))):
        t = Terminal(f, *words)
        termios.tcflow(t.other, termios.TCOOFF)
        eventually(lambda: sum(r["kind"] == "START" for r in f.audit()) > n, "it runs")
        time.sleep(0.5)  # so that the client has output that the terminal does not take
        termios.tcflow(t.other, termios.TCOON)
        t.see(b"ready")
        t.program.terminate()
        equal(t.ended(), 143)


@case
def what_is_refused(f):
    f.start()
    for letter in "LRD":
        got = f.run("-" + letter, "8080:localhost:80", "true")
        check(got.returncode == 1 and b"no network" in got.stderr and got.stderr.count(b"\n") == 1, got)
    for words in (("--shell", "true"), ("--tty",), ("--shell", "--exec"), ("--shell", "--script", "x")):
        got = f.run(*words)
        check(got.returncode == 1 and got.stderr.startswith(b"qvm-remote: "), (words, got))


@case
def what_policy_says(f):
    f.start()
    os.unlink(os.path.join(f.root, "etc/qubes/remote-policy.d/50-work.policy"))
    no = b"dom0's policy allows no terminal for this"
    for text, words, code in (
            ("work level:full allow\n", ("true",), 0),
            ("work level:full allow tty=no\n", ("true",), 126),
            ("work level:full allow stdin=closed\n", ("true",), 126),
            ("work level:full ask\n", ("true",), 126),
            ("work level:monitor allow\n", ("qvm-ls",), 126),
            ("work exec:stty ** allow\n", ("stty", "size"), 126),
            ("work exec:stty ** allow tty=yes\n", ("stty", "size"), 0),
            ("work exec:stty ** allow tty=yes stdin=closed\n", ("stty", "size"), 126)):
        rules(f, text)
        got = f.run("--tty", *words, stdin=b"")
        check(got.returncode == code and (code == 0 or no in got.stderr), (text, got))
    check([e for e in f.audit() if e["kind"] == "REFUSED" and e.get("tty") == 1], "a refusal does not say it")
    # Below full access no pager starts, but TERM is set.
    rules(f, "work exec:env allow tty=yes\n")
    got = f.run("--tty", "env", stdin=b"", env={"TERM": "vt220"}).stdout.decode().split()
    check({"PAGER=cat", "SYSTEMD_PAGER=cat", "LESSSECURE=1", "TERM=vt220"} <= set(got), got)
    got = f.run("--tty", "env", stdin=b"", env={"TERM": "../vt220"}).stdout.decode().split()
    check("TERM=dumb" in got, got)


@case
def records_and_questions_show_it(f):
    f.start()
    equal(f.run("--tty", "true", stdin=b"").returncode, 0)
    equal(f.run("true").returncode, 0)
    starts = [e for e in f.audit() if e["kind"] == "START"]
    equal([(e.get("tty"), e.get("timeout_s")) for e in starts], [(1, 0), (None, 300)])
    equal(f.run("-t", "7", "--tty", "true", stdin=b"").returncode, 0)
    equal(f.audit()[-2].get("timeout_s"), 7)
    os.unlink(os.path.join(f.root, "etc/qubes/remote-policy.d/50-work.policy"))
    rules(f, "work level:full ask tty=yes\n")
    p = f.popen("--tty", "true", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    eventually(lambda: b"true" in f.dom0("approvals", "list").stdout, "a question")
    serial = re.search(rb"\d+", f.dom0("approvals", "list").stdout)[0].decode()
    shown = f.dom0("approvals", "show", serial).stdout
    check(re.search(rb"terminal +\. yes", shown) and re.search(rb"stdin +\. live", shown), shown)
    p.terminate()
    equal(p.wait(HANG), 143)


@case
def what_no_agent_can_carry(f):
    if f.transport != "mock":
        return
    f.start()
    got = f.run("--tty", "true", env={"QVM_REMOTE_PROTOCOL": "1", "QVM_REMOTE_TRANSPORT": "qvm-run",
                                                 "QVM_REMOTE_PLUGIN_DIR": None}, stdin=b"")
    check(got.returncode == 1 and b"terminal needs protocol 2" in got.stderr, got)


main()
