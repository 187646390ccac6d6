#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs from the outside: what a user types, and what must come of it.

Runs as an ordinary user with a HOME of its own (root gives up its rights first), the client and the
daemon being the shipped ones over the mock transport. What holds over any transport is in common.py.
Usage: cli.py BUILD-DIRECTORY [CASE...]
"""

import contextlib
import ctypes
import fcntl
import glob
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import termios
import time

from fixture import BUILD, CLIENT, DAEMON, HANG, KEY, PLUGINS, case, check, equal, eventually, main


# --- nothing set up -----------------------------------------------------------------------------


@case
def nothing_set_up(f):
    got = f.run("--transport", "mock", "echo out; echo err >&2; exit 7",
                env=dict(QVM_REMOTE_MOCK_SOCKET=None, QVM_REMOTE_TRANSPORT=None))
    equal((got.returncode, got.stdout, got.stderr), (7, b"out\n", b"err\n"))


@case
def nothing_set_up_leaves_nothing(f):
    before = set(glob.glob("/tmp/qvm-remote-??????"))
    f.run("--transport", "mock", "true", env=dict(QVM_REMOTE_MOCK_SOCKET=None))
    # Those of other tests go away too.
    new = set(glob.glob("/tmp/qvm-remote-??????")) - before
    eventually(lambda: not any(map(os.path.exists, new)), f"one of {new} to go")


# --- keys ---------------------------------------------------------------------------------------


@case
def key_gen_show_import(f):
    got = f.run("key", "gen")
    equal(got.returncode, 0)
    path = os.path.join(f.home, ".qvm-remote", "auth.key")
    equal(stat.S_IMODE(os.stat(path).st_mode), 0o600)
    equal(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode), 0o700)
    with open(path) as k:
        digits = k.read().strip()
    check(re.fullmatch("[0-9a-f]{64}", digits), digits)
    check(digits.encode() not in got.stdout + got.stderr, "key gen prints the key")
    equal(f.run("key", "show").stdout.decode().strip(), digits)
    again = f.run("key", "gen")
    equal(again.returncode, 1)
    check(b"already" in again.stderr, again.stderr)
    mixed = "ABCDEF0123456789abcdef0123456789" * 2
    got = f.run("key", "import", stdin=f"  {mixed}\n".encode())
    equal(got.returncode, 0)
    equal(f.run("key", "show").stdout.decode().strip(), mixed)  # kept as typed
    want = subprocess.run(["openssl", "dgst", "-sha256", "-binary"], input=mixed.encode(),
                          capture_output=True).stdout
    b64 = subprocess.run(["base64"], input=want, capture_output=True).stdout.decode().strip()
    equal(got.stdout.decode().strip(), "SHA256:" + b64.rstrip("="))


BAD_KEYS = ["", "0" * 63, "0" * 65, "0x" + "0" * 62, "+" + "0" * 63, "-" + "0" * 63,
            "0" * 31 + "_" + "0" * 32, "\u0661" * 32, "g" * 64, "0" * 32 + " " + "0" * 32,
            "0" * 32 + "\n" + "0" * 32]


@case
def bad_keys_are_refused_everywhere(f):
    for bad in BAD_KEYS:
        got = f.run("key", "import", stdin=bad.encode())
        check(got.returncode == 1 and b"64 digits" in got.stderr, f"{bad!r}: {got}")
        equal(got.stderr.count(b"\n"), 1)
        got = f.dom0("authorize", "work", stdin=bad.encode())
        check(got.returncode == 1 and b"64 digits" in got.stderr, f"{bad!r}: {got}")
        check(not os.path.exists(os.path.join(f.root, "etc/qubes/remote.d/work.key")), bad)
        f.write_key(bad)
        got = f.run("true")
        check(got.returncode == 1 and b"64 digits" in got.stderr, f"{bad!r}: {got}")


@case
def key_files_that_are_not_safe(f):
    path = f.write_key(mode=0o640)
    got = f.run("true")
    check(got.returncode == 1 and b"chmod 600" in got.stderr, got)
    os.rename(path, path + ".real")
    os.chmod(path + ".real", 0o600)
    os.symlink(path + ".real", path)
    got = f.run("true")
    check(got.returncode == 1 and b"symbolic link" in got.stderr, got)
    os.unlink(path)
    got = f.run("true")
    check(got.returncode == 1 and path.encode() in got.stderr and b"key gen" in got.stderr, got)


@case
def loose_keys_in_dom0_refuse(f):
    f.start()
    key = os.path.join(f.root, "etc/qubes/remote.d/work.key")
    equal(stat.S_IMODE(os.stat(key).st_mode), 0o600)
    equal(f.run("true").returncode, 0)
    os.chmod(key, 0o640)
    equal(f.run("true").returncode, 126)
    check("chmod" in f.log(), "the log does not say how to mend it")
    os.chmod(key, 0o600)
    equal(f.run("true").returncode, 0)
    os.rename(key, key + ".bak")
    os.symlink(key + ".bak", key)
    equal(f.run("true").returncode, 126)
    os.unlink(key)
    equal(f.run("true").returncode, 126)
    check("AUTH-DENY" in f.log(), f.log())


# --- administration -----------------------------------------------------------------------------


@case
def authorize_names(f):
    for bad in ("../../x", "a/b", "", "-x", "dom0", "none", "default", "sys-net-dm", "1abc",
                "x" * 32, "a b", "a\nb", "\x1b[31m"):
        got = f.dom0("authorize", "--", bad, stdin=KEY.encode())
        check(got.returncode == 1, f"{bad!r}: {got}")
        check(b"\x1b" not in got.stderr, "an escape sequence reached the terminal")
    equal(os.path.exists(os.path.join(f.root, "etc/qubes/remote.d")), False)
    equal(f.dom0("authorize", "x" * 31, stdin=KEY.encode()).returncode, 0)


@case
def authorize_keys_revoke(f):
    got = f.dom0("authorize", "work", "--level", "root", stdin=KEY.encode())
    check(got.returncode == 1 and b"level" in got.stderr, got)
    got = f.dom0("authorize", "work", stdin=KEY.encode())
    equal(got.returncode, 0)
    check(b"IS dom0" in got.stderr, "no warning")
    fingerprint = got.stdout.split()[1].decode()
    f.write_key()
    check(fingerprint.encode() in f.run("-v", "key", "show").stderr, "two fingerprints")
    listed = json.loads(f.dom0("keys", "--json").stdout)
    equal([(k["qube"], k["fingerprint"], k["level"]) for k in listed], [("work", fingerprint, "full")])
    check(KEY[:16].encode() not in f.dom0("keys").stdout, "digits of the key are shown")
    got = f.dom0("authorize", "dev", KEY)
    check(got.returncode == 0 and b"list of processes" in got.stderr, got)
    equal(f.dom0("revoke", "work").returncode, 0)
    got = f.dom0("revoke", "work")
    check(got.returncode == 1 and b"no key" in got.stderr, got)
    equal([k["qube"] for k in json.loads(f.dom0("keys", "--json").stdout)], ["dev"])


@case
def revoke_while_start_is_written(f):
    f.start()
    ran = os.path.join(f.path, "ran")
    # While the index of IDs is locked, its writer waits for up to 5 s behind the START of the first
    # command, and so the second one's START with it.
    for _ in range(20):
        index = sqlite3.connect(os.path.join(f.root, "var/lib/qvm-remote/ids.sqlite"),
                                isolation_level=None)
        index.execute("BEGIN IMMEDIATE")
        begin = time.monotonic()
        equal(f.run("true").returncode, 0)
        p = f.popen(f"touch {ran}", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        eventually(lambda: b"running=1" in f.dom0("status").stdout or p.poll() is not None, "a slot")
        equal(f.dom0("revoke", "work").returncode, 0)
        in_time = time.monotonic() - begin < 4.5
        index.close()
        err = p.communicate(timeout=HANG)[1]
        if in_time:
            break
        # Too slow a machine: nothing was tried.
        if os.path.exists(ran):
            os.unlink(ran)
        equal(f.dom0("authorize", "work", stdin=KEY.encode()).returncode, 0)
    check(p.returncode == 126 and b"revoked" in err, (p.returncode, err))
    check(not os.path.exists(ran), "it ran after the revocation")
    equal([r["cause"] for r in f.audit() if r["kind"] == "END"][-1], "not-run")


@case
def one_daemon_at_a_time(f):
    f.start()
    got = f.dom0("--transport", "mock", "--plugin-dir", PLUGINS,
                 env=dict(QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work"))
    check(got.returncode == 1 and b"another" in got.stderr, got)


@case
def roots_that_are_not_safe(f):
    os.chmod(f.root, 0o755)
    got = f.dom0("keys")
    check(got.returncode == 1 and b"chmod 700" in got.stderr, got)
    for bad in ("relative", "/", "/nowhere/at/all"):
        equal(f.run("--root", bad, "keys", program=DAEMON).returncode, 1)


@case
def mock_is_refused_beside_real_files(f):
    got = f.run("--transport", "mock", "--plugin-dir", PLUGINS, program=DAEMON)
    check(got.returncode == 1 and b"mock" in got.stderr and b"--root" in got.stderr, got)


@case
def only_the_listed_qubes_are_served(f):
    f.start("--vm", "dev")
    got = f.run("true")
    check(got.returncode == 126 and b"dom0 refuses: denied by policy" in got.stderr, got)
    check("work has a key and is not served" in f.log(), f.log())
    f.stop()
    f.start("--vm", "work")
    equal(f.run("true").returncode, 0)
    f.stop()
    for bad, word in (("dom0", b"not a qube name"), ("../x", b"not a qube name"), ("", b"'--vm' has an empty value")):
        got = f.dom0("--vm", bad, "--transport", "mock", "--plugin-dir", PLUGINS)
        check(got.returncode == 1 and word in got.stderr, got)
    conf = os.path.join(f.root, "etc/qubes/remote.conf")
    with open(conf, "w") as c:
        c.write('QVM_REMOTE_VMS="sys-net-dm"\n')  # a list without a good name is not "all"
    os.chmod(conf, 0o600)
    f.start()
    equal(f.run("true").returncode, 126)


@case
def once(f):
    f.start("--once")
    equal(f.run("exit 9").returncode, 9)
    equal(f.daemon.wait(HANG), 0)
    f.daemon = None
    got = f.dom0("--transport", "mock", "--plugin-dir", PLUGINS, "--once", "--wait", "1",
                 env=dict(QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work"))
    equal(got.returncode, 1)


@case
def enable_asks(f):
    fake = os.path.join(f.path, "bin")
    os.mkdir(fake)
    with open(os.path.join(fake, "systemctl"), "w") as s:
        s.write(f"#!/bin/sh\necho \"$@\" >>{f.path}/systemctl.log\n")
    os.chmod(os.path.join(fake, "systemctl"), 0o755)
    env = dict(PATH=fake + ":" + os.environ["PATH"])
    for answer, code in ((b"", 1), (b"no\n", 1), (b"y\n", 1), (b"yes\n", 0)):
        got = f.dom0("enable", stdin=answer, env=env)
        check(got.returncode == code and b"IS dom0" in got.stderr, got)
    equal(f.dom0("disable", env=env).returncode, 0)
    with open(f.path + "/systemctl.log") as s:
        equal(s.read(), f"--root={f.root} enable qvm-remote-dom0.service\n"
                        f"--root={f.root} disable qvm-remote-dom0.service\n")


@case
def bad_configuration(f):
    conf = os.path.join(f.root, "etc/qubes/remote.conf")
    os.makedirs(os.path.dirname(conf), 0o700)
    for text, wanted in (("A=1\nnonsense\n", b"remote.conf:2"), ('X="open\n', b"remote.conf:1")):
        with open(conf, "w") as c:
            c.write(text)
        os.chmod(conf, 0o600)
        got = f.dom0("--transport", "mock", "--plugin-dir", PLUGINS)
        check(got.returncode == 1 and wanted in got.stderr, got)
    os.chmod(conf, 0o666)
    got = f.dom0("--transport", "mock", "--plugin-dir", PLUGINS)
    check(got.returncode == 1 and b"chmod" in got.stderr, got)


@case
def good_configuration(f):
    conf = os.path.join(f.root, "etc/qubes/remote.conf")
    os.makedirs(os.path.dirname(conf), 0o700)
    with open(conf, "w") as c:
        c.write("# comment\r\nQVM_REMOTE_VMS = 'work ../x'\r\nQVM_REMOTE_NONSENSE=1\r\n"
                "QVM_REMOTE_TRANSPORT=other\r\nQVM_REMOTE_TRANSPORT=mock")
    os.chmod(conf, 0o600)
    f.start()
    equal(f.run("echo hello").stdout, b"hello\n")
    check("QVM_REMOTE_NONSENSE" in f.log() and "../x" in f.log(), f.log())


# --- the client's own ---------------------------------------------------------------------------


@case
def usage_errors(f):
    f.write_key()
    for words, wanted in [
        (("--nonsense",), b"--nonsense"), (("-t", "0", "true"), b"time-out"),
        (("-t", "-5", "true"), b"time-out"), (("-t", "1.5", "true"), b"time-out"),
        (("-t", "", "true"), b"empty value"), (("-t", "99999999999", "true"), b"time-out"),
        (("",), b"empty"), (("   ",), b"empty"), (("--script", "/nowhere"), b"No such file"),
        (("--exec", "--script", "x"), b"exclude"), (("key",), b"usage"), (("key", "x"), b"usage"),
        (("log", "0"), b"number"), (("history", "show", "../x"), b"no ID"),
        (("--transport", "../evil", "true"), b"not the name"),
        (("--transport", "missing", "true"), b"not installed"),
        (("ping", "x"), b"no arguments"),
    ]:
        got = f.run(*words)
        check(got.returncode == 1 and wanted in got.stderr, f"{words}: {got}")
        last = got.stderr.rstrip(b"\n").split(b"\n")[-1]
        check(last.startswith(b"qvm-remote: "), last)


@case
def help_and_version(f):
    for program in (CLIENT, DAEMON):
        got = f.run("--help", program=program)
        check(got.returncode == 0 and got.stdout.startswith(b"Usage: ") and not got.stderr, got)
        got = f.run("--version", program=program)
        check(re.fullmatch(rb"qvm-remote(-dom0)? 2\.0\.0\n", got.stdout), got)


@case
def usage_on_a_terminal(f):
    master, slave = pty.openpty()
    p = f.popen(stdin=slave, stdout=subprocess.PIPE)
    check(p.communicate(timeout=HANG)[0].startswith(b"Usage: "), "no usage")
    equal(p.returncode, 0)
    os.close(master)
    os.close(slave)


def on_terminal(f, *words, columns=80, keep_stdout=False, foreground=True):
    """What the client writes to a terminal of its own, and what it writes to stdout elsewhere."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def take_terminal():
        os.setsid()
        fcntl.ioctl(2, termios.TIOCSCTTY, 0)
        if not foreground:  # what a shell does for `command &`: another group has the terminal
            other = os.fork()
            if other == 0:
                os.setpgid(0, 0)
                os.execv("/bin/sleep", ["sleep", "60"])
            with contextlib.suppress(OSError):
                os.setpgid(other, other)
            os.tcsetpgrp(2, other)

    p = f.popen(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if keep_stdout else slave, stderr=slave,
                preexec_fn=take_terminal)
    os.close(slave)
    seen = b""
    while p.poll() is None or select.select([master], [], [], 0)[0]:
        if select.select([master], [], [], 0.1)[0]:
            try:
                seen += os.read(master, 4096)
            except OSError:
                break
    out = p.stdout.read() if keep_stdout else b""
    p.wait(timeout=HANG)
    os.close(master)
    return seen, out


def screen(raw, columns):
    """The rows that a terminal shows after these bytes; a row that would wrap is an error."""
    rows, column = [""], 0
    for token in re.findall(rb"\x1b\[K|[\x00-\xff]", raw):
        if token == b"\x1b[K":
            rows[-1] = rows[-1][:column]
        elif token == b"\r":
            column = 0
        elif token == b"\n":
            rows.append("")
        else:
            rows[-1] = rows[-1][:column] + token.decode("latin-1") + rows[-1][column + 1:]
            column += 1
            check(column < columns, f"a row of {columns} columns overflows: {raw!r}")
    return rows


@case
def waiting_is_shown_on_a_terminal(f):
    f.start()
    seen, out = on_terminal(f, "sleep 4; echo done", keep_stdout=True)
    equal(out, b"done\n")
    check(re.search(rb"\[[23] s\] running in dom0", seen), seen)
    check(seen.endswith(b"\r\x1b[K"), seen)


@case
def the_waiting_line_leaves_output_whole(f):
    f.start()
    for command, rows in (("sleep 4; echo first", ["first", ""]), ("sleep 4; printf 42", ["42"]),
                          ("sleep 4; echo first >&2; printf 42", None)):
        seen, _ = on_terminal(f, command)
        check(re.search(rb"\[[23] s\] running in dom0", seen), seen)
        if rows is None:
            equal(sorted("".join(screen(seen, 80)).replace("first", "f ").split()), ["42", "f"])
        else:
            equal(screen(seen, 80), rows)


@case
def the_waiting_line_is_one_row(f):
    f.start()
    seen, _ = on_terminal(f, "sleep 4; echo x", columns=12)
    check(b"[3 s] runni" in seen, seen)
    equal(screen(seen, 12), ["x", ""])


@case
def the_waiting_line_stays_in_the_foreground(f):
    f.start()
    seen, out = on_terminal(f, "sleep 4; echo x", keep_stdout=True, foreground=False)
    equal((seen, out), (b"", b"x\n"))


@case
def records_that_cannot_be_written_change_nothing(f):
    f.start()
    f.run("true")
    big = b"x" * 300000

    def no_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))

    for limit in (no_files, small_files):
        got = f.run("head -c 300000 /dev/zero | tr '\\0' x; exit 7", preexec_fn=limit)
        equal((got.returncode, got.stdout), (7, big))
        check(b"the history is not complete: cannot " in got.stderr and b"File too large" in got.stderr, got.stderr)
    reading, writing = os.pipe()
    os.close(reading)
    p = f.popen("echo out; exit 7", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=writing, preexec_fn=no_files)
    os.close(writing)
    equal((p.communicate(timeout=HANG)[0], p.returncode), (b"out\n", 7))
    # The cause is the one of the first step that failed.
    history = f.home + "/.qvm-remote/history"
    shutil.rmtree(history)
    open(history, "w").close()
    got = f.run("exit 7")
    equal(got.returncode, 7)
    check(got.stderr.endswith(b"cannot make the history entry in " + history.encode() + b": Not a directory\n"), got.stderr)


@case
def history_and_log_show_what_was_typed(f):
    f.start()
    command = r"printf 'a\\tb' \\\\ # " + "\x1b"
    f.run(command.replace("\x1b", ""))
    f.run("echo \t x")
    with open(f.home + "/.qvm-remote/audit.log", "ab") as log:
        log.write(b"[2026-01-01T00:00:00] garbage \x1b[2J \\x1b\n")
    for words in (["log"], ["history"]):
        shown = f.run(*words).stdout.decode()
        check(command.replace("\x1b", "").rstrip() in shown and r"echo \x09 x" in shown.replace(r"\t", r"\x09"), shown)
        check("\x1b" not in shown, shown)
    check(r"garbage \x1b[2J \x1b" in f.run("log").stdout.decode(), "the foreign line")


@case
def an_empty_value_is_an_error(f):
    f.write_key()
    agent = os.path.join(BUILD, "tools/qvm-remote-agent/qvm-remote-agent")
    for option in ("-t", "--timeout", "--script", "--transport", "--plugin-dir"):
        got = f.run(option, "", "true")
        check(got.returncode == 1 and b"has an empty value" in got.stderr, (option, got))
    config = f.home + "/.qvm-remote/config"
    plain = dict.fromkeys(("QVM_REMOTE_TRANSPORT", "QVM_REMOTE_PLUGIN_DIR", "QVM_REMOTE_MOCK_SOCKET"))
    for name in ("QVM_REMOTE_TRANSPORT", "QVM_REMOTE_PLUGIN_DIR", "QVM_REMOTE_PROTOCOL", "QVM_REMOTE_HISTORY_DAYS",
                 "QVM_REMOTE_HISTORY_MIB", "QVM_REMOTE_MOCK_SOCKET", "QVM_REMOTE_QREXEC_SOCKET", "QUBES_REMOTE_VM"):
        for program, words in ((CLIENT, ["true"]), (agent, ["--keep"])):
            got = f.run(*words, program=program, env=dict(plain, **{name: ""}))
            check(got.returncode == 1 and f"the variable {name} is empty".encode() in got.stderr, (name, got))
            with open(config, "w") as c:
                c.write(f"{name}=''\n")
            got = f.run(*words, program=program, env=plain)
            os.unlink(config)
            check(got.returncode == 1 and f"config: {name} has no value".encode() in got.stderr, (name, got))


@case
def signals_that_the_caller_changed(f):
    """Each program's mask and dispositions as /proc shows them, begun with everything blocked and ignored."""
    f.start()
    every = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
    ours = {signal.SIGPIPE, signal.SIGXFSZ}
    kept = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT}
    syscall = ctypes.CDLL(None).syscall

    def disturb():
        for number in every:
            signal.signal(number, signal.SIG_IGN)
        for number in (32, 33):  # the C library's own, which a caller without it may leave ignored
            syscall(13, number, (ctypes.c_ulong * 4)(1, 0, 0, 0), None, 8)  # rt_sigaction
        signal.pthread_sigmask(signal.SIG_BLOCK, every)

    def shown(p, field):
        text = open(f"/proc/{p.pid}/status").read()
        mask = int(re.search(rf"{field}:\s*(\w+)", text)[1], 16)
        return {n for n in range(1, 65) if mask >> (n - 1) & 1}

    agent = os.path.join(BUILD, "tools/qvm-remote-agent/qvm-remote-agent")
    for words, ignored in (([CLIENT, "sleep 600"], ours | kept), ([agent], ours)):
        p = subprocess.Popen(words, env=f.env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             preexec_fn=disturb, restore_signals=False)
        try:
            try:
                eventually(lambda p=p, ignored=ignored: shown(p, "SigIgn") == ignored, f"ignored by {words[0]}")
            except AssertionError as e:
                state = (sorted(shown(p, "SigIgn")), open(f"/proc/{p.pid}/status").read()[:200])
                p.kill()
                raise AssertionError(f"{e}: {state}, said {p.communicate()}") from e
            eventually(lambda p=p: not shown(p, "SigBlk") & {signal.SIGALRM, signal.SIGUSR1},
                       f"blocked by {words[0]}")
            p.terminate()
            p.communicate(timeout=HANG)
        finally:
            p.kill()


@case
def migration(f):
    old = os.path.join(f.home, ".qubes-remote")
    os.makedirs(old + "/history")
    with open(old + "/auth.key", "w") as k:
        k.write(KEY)
    os.chmod(old + "/auth.key", 0o600)
    equal(f.run("key", "show").stdout.decode().strip(), KEY)
    check(os.path.isdir(f.home + "/.qvm-remote/history") and not os.path.exists(old), "not renamed")


@case
def queue(f):
    for part, names in (("pending", ["a", "a.auth", "\x1b[31m"]), ("results", ["b.exit"])):
        os.makedirs(f"{f.home}/.qvm-remote/queue/{part}")
        for name in names:
            with open(f"{f.home}/.qvm-remote/queue/{part}/{name}", "w") as q:
                q.write("x")
    equal(f.run("queue").stdout, b"pending  3\nrunning  0\nresults  1\n")
    check(b"\x1b" not in f.run("queue", "debug").stdout, "an escape sequence")
    equal(f.run("queue", "clean").stdout, b"removed 4\n")
    check("QUEUE-CLEAN removed=4" in open(f.home + "/.qvm-remote/audit.log").read(), "no line")


@case
def ping_and_status(f):
    f.start()
    got = f.run("ping")
    check(got.returncode == 0 and b"dom0 answers over mock" in got.stdout, got)
    got = f.run("status")
    check(got.returncode == 0 and b"qube: work\n" in got.stdout, got)
    got = f.dom0("status")
    check(got.returncode == 0 and b"transport: mock" in got.stdout, got)
    f.stop()
    equal(f.run("ping").returncode, 1)
    equal(f.run("status").returncode, 1)
    equal(f.dom0("status").returncode, 1)
    equal(f.run("true").returncode, 255)


@case
def configuration_chooses_the_transport(f):
    f.start()
    os.makedirs(f.home + "/.qvm-remote", exist_ok=True)
    with open(f.home + "/.qvm-remote/config", "w") as c:
        c.write(f"QVM_REMOTE_TRANSPORT=mock\nQVM_REMOTE_MOCK_SOCKET={f.root}/work.sock\n")
    none = dict(QVM_REMOTE_TRANSPORT=None, QVM_REMOTE_MOCK_SOCKET=None)
    equal(f.run("echo config", env=none).stdout, b"config\n")
    got = f.run("echo x", env=dict(none, QVM_REMOTE_TRANSPORT="qvm-run"))  # the environment wins
    check(got.returncode == 1 and b"qvm-run" in got.stderr, got)
    got = f.run("--transport", "mock", "echo flag",  # and a flag over that
                env=dict(none, QVM_REMOTE_TRANSPORT="qvm-run"))
    equal(got.stdout, b"flag\n")


# --- faults and records -------------------------------------------------------------------------


@case
def faults_of_the_transport_are_never_a_success(f):
    f.start()
    data = "seq 20000; echo end"
    whole = f.run(data).stdout
    for fault in ("in:cut:200", "in:cut:5000", "in:corrupt:300", "in:corrupt:9000", "out:cut:20",
                  "out:corrupt:100", "out:duplicate:100", "in:duplicate:2000"):
        got = f.run(data, env=dict(QVM_REMOTE_MOCK_FAULT=fault))
        check(got.returncode in (126, 255) and b"qvm-remote: " in got.stderr, f"{fault}: {got.returncode} {got.stderr}")
        check(whole.startswith(got.stdout), f"{fault}: wrong bytes came through")
    got = f.run(data, env=dict(QVM_REMOTE_MOCK_FAULT="in:delay:20,out:delay:20"))
    check(got.returncode == 0 and got.stdout == whole, "a delay is no fault")
    eventually(lambda: b"running: 0\n" in f.dom0("status").stdout, "all sessions end")


@case
def nothing_runs_that_cannot_be_recorded(f):
    f.start()
    equal(f.run("true").returncode, 0)
    made = os.path.join(f.path, "made")
    f.stop()
    audit = f.root + "/var/log/qvm-remote/audit.jsonl"
    os.rename(audit, audit + ".kept")
    os.symlink("/dev/full", audit)
    got = f.dom0("--transport", "mock", "--plugin-dir", PLUGINS,
                 env=dict(QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work"))
    check(got.returncode == 1 and b"audit" in got.stderr, got)
    os.unlink(audit)
    os.rename(audit + ".kept", audit)
    # A limit on the file's size stands for a full disk: writes fail with EFBIG.
    size = os.path.getsize(audit)
    f.start()
    subprocess.run(["prlimit", f"--pid={f.daemon.pid}", f"--fsize={size + 10}:unlimited"], check=True)
    got = f.run(f"touch {made}")
    equal(got.returncode, 126)
    check(b"record" in got.stderr, got.stderr)
    check(not os.path.exists(made), "it ran unrecorded")
    check(b"trouble: " in f.dom0("status").stdout, "status does not say so")
    subprocess.run(["prlimit", f"--pid={f.daemon.pid}", "--fsize=unlimited:unlimited"], check=True)
    got = f.run(f"touch {made}")  # and it recovers by itself
    equal(got.returncode, 0)
    check(os.path.exists(made), "not run after recovery")


@case
def the_log_for_people_is_bounded(f):
    f.start()
    equal(f.run("true").returncode, 0)
    f.stop()
    log = f.root + "/var/log/qubes/qvm-remote.log"
    with open(log, "r+b") as full:
        full.truncate(32 * 1024 * 1024 - 10)
        full.seek(0, os.SEEK_END)
        full.write(b"\nthe last\n")
    f.start()
    equal(f.run("echo after").returncode, 0)
    check(os.path.getsize(log + ".1") >= 32 * 1024 * 1024 and os.path.getsize(log) < 10_000, "it is not begun anew")
    equal(stat.S_IMODE(os.stat(log).st_mode), 0o600)
    shown = f.dom0("log", "100").stdout.splitlines()
    check(b"the last" in shown and shown[-1].find(b" DONE ") > 0, shown)
    equal(f.dom0("log", "1").stdout.splitlines(), shown[-1:])
    # Who rotates it otherwise reloads the daemon.
    os.rename(log, log + ".old")
    f.daemon.send_signal(signal.SIGHUP)
    eventually(lambda: os.path.exists(log) and "read again" in f.log(), "reload")
    # What cannot be opened is said where it was written before, and nothing stops.
    os.rename(log, log + ".older")
    os.mkfifo(log)
    f.daemon.send_signal(signal.SIGHUP)
    with open(log + ".older") as older:
        eventually(lambda: "cannot open the log" in older.read(), "what is wrong to be said")
    equal(f.run("echo alive").stdout, b"alive\n")


@case
def a_lack_of_descriptors_does_not_deafen_the_control_socket(f):
    f.start()
    subprocess.run(["prlimit", f"--pid={f.daemon.pid}", "--nofile=5:"], check=True)  # it has more than that
    asks = [subprocess.Popen([DAEMON, "--root", f.root, "status"], env=f.env(), stdout=subprocess.PIPE)
            for _ in range(2)]
    time.sleep(0.5)
    subprocess.run(["prlimit", f"--pid={f.daemon.pid}", "--nofile=1024:"], check=True)
    for ask in asks:
        check(b"qube work" in ask.communicate(timeout=HANG)[0], "no answer")
        equal(ask.returncode, 0)


@case
def the_daemon_has_more_descriptors_than_its_commands(f):
    had = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, had[1]))
        f.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, had)
    with open(f"/proc/{f.daemon.pid}/limits") as limits:
        [soft] = re.findall(r"^Max open files +(\d+)", limits.read(), re.M)
    equal(int(soft), 65536 if had[1] == resource.RLIM_INFINITY else min(had[1], 65536))
    equal(f.run("ulimit -Sn").stdout, b"256\n")


@case
def a_damaged_index_is_made_anew(f):
    f.start()
    equal(f.run("true").returncode, 0)
    f.stop()
    index = f.root + "/var/lib/qvm-remote/ids.sqlite"
    with open(index, "wb") as i:
        i.write(b"not a database at all" * 100)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(index + suffix)
    f.start()
    equal(f.run("echo alive").stdout, b"alive\n")
    check(f"it is kept as {index}.damaged" in f.log(), f.log())


@case
def nothing_runs_unrecorded(f):
    f.start()
    audit = f.root + "/var/log/qvm-remote/audit.jsonl"
    os.rename(audit, audit + ".aside")
    check(b"audit.jsonl was removed or renamed" in f.dom0("status").stdout, "status is content")
    refused = f.run("touch " + f.path + "/ran")
    equal(refused.returncode, 126)
    check(b"was removed or renamed" in refused.stderr, refused.stderr)
    check(not os.path.exists(f.path + "/ran"), "it ran")
    os.rename(audit + ".aside", audit)
    equal(f.run("echo alive").stdout, b"alive\n")
    check(b"trouble" not in f.dom0("status").stdout, "trouble stays")


main()
