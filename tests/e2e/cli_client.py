# SPDX-License-Identifier: GPL-2.0-or-later
"""The client itself: words, the terminal, records and configuration. Cases of cli.py."""

import ctypes
import glob
import os
import pty
import re
import resource
import shutil
import signal
import subprocess

from fixture import BUILD, CLIENT, DAEMON, HANG, KEY, case, check, equal, eventually, on_terminal


@case
def usage_errors(f):
    f.write_key()
    for words, wanted in [
        (("--nonsense",), b"--nonsense"), (("-t", "0", "true"), b"time-out"),
        (("-t", "-5", "true"), b"time-out"), (("-t", "1.5", "true"), b"time-out"),
        (("-t", "", "true"), b"empty value"), (("-t", "99999999999", "true"), b"time-out"),
        (("",), b"empty"), (("   ",), b"empty"), (("--script", "/nowhere"), b"No such file"),
        (("--exec", "--script", "x"), b"exclude"), (("key",), b"usage"), (("key", "x"), b"usage"),
        (("log", "0"), b"number"), (("history", "show", "../x"), b"not the ID"),
        (("--transport", "../evil", "true"), b"not the name"),
        (("--transport", "missing", "true"), b"not installed"),
        (("ping", "x"), b"usage"),
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


def screen(raw, columns):
    """The rows of a terminal after these bytes. A row that would wrap is an error."""
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
def a_process_that_holds_the_output_is_reported_on_a_terminal(f):
    f.start()
    told = b"qvm-remote: the command has ended; processes that it left running still hold its output, and are waited for"
    seen, out = on_terminal(f, "echo x; sleep 4 & exit 3", keep_stdout=True)
    equal((seen.count(told), out), (1, b"x\n"))
    seen, out = on_terminal(f, "-q", "echo x; sleep 4 & exit 3", keep_stdout=True)
    equal((seen, out), (b"", b"x\n"))
    # Here no process is left: only the reader of the output is slow. The window and the pipes in
    # the qube are too small for the output, and the pipes in dom0 hold the rest.
    for size in (550_000, 650_000, 750_000):
        slow = os.path.join(f.path, f"slow-{size}")
        os.mkfifo(slow)
        reader = subprocess.Popen(["/bin/sh", "-c", f"exec <{slow}; sleep 4; wc -c"], stdout=subprocess.PIPE)
        with open(slow, "wb") as to:
            seen, _ = on_terminal(f, f"head -c {size} /dev/zero", stdout=to)
        equal((seen.count(b"the command has ended"), reader.communicate(timeout=HANG)[0]), (0, b"%d\n" % size))
    got = f.run("echo x; sleep 4 & exit 3")
    equal((got.returncode, got.stdout, got.stderr), (3, b"x\n", b""))


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


CONTROLS = b"\x1b[31mred\x1b]0;title\x07\x1b[6n \xe2\x82\xac\x9b\xc2\x9b\rover\tx\xff\n"
SHOWN = b"\\x1b[31mred\\x1b]0;title\\x07\\x1b[6n \xe2\x82\xac\\x9b\\xc2\\x9b\\x0dover\tx\\xff\r\n"


@case
def output_cannot_control_a_terminal(f):
    f.start()
    octal = "".join(f"\\{byte:03o}" for byte in CONTROLS)
    equal(on_terminal(f, f"printf '{octal}'")[0], SHOWN)
    equal(on_terminal(f, f"printf '{octal}' >&2")[0], SHOWN)
    equal(on_terminal(f, f"printf '{octal}'; printf '{octal}' >&2", keep_stdout=True), (SHOWN, CONTROLS))
    equal(on_terminal(f, f"printf '{octal}'", env={"LC_ALL": "C"})[0], SHOWN.replace(b"\xe2\x82\xac", b"\\xe2\\x82\\xac"))
    equal(on_terminal(f, "--tty", f"printf '{octal}'")[0], CONTROLS.replace(b"\n", b"\r\r\n"))
    # A character in two pieces, and one of which the command writes only the half.
    equal(on_terminal(f, r"printf '\342'; sleep 0.3; printf '\202\254'; printf '\342\202'")[0], b"\xe2\x82\xac\\xe2\\x82")
    # The terminal is full all the time, and the command has closed its output before the end.
    size = 300_000
    seen, _ = on_terminal(f, f"head -c {size} /dev/zero | tr '\\0' '\\33'; exec >&- 2>&-; sleep 1")
    equal(seen == b"\\x1b" * size, True)
    # Its record is shown in the same way.
    f.run(f"printf '{octal}'")
    ident = f.run("history", "1").stdout.split()[1].decode()
    seen, _ = on_terminal(f, "history", "show", ident)
    check(b"--- out\r\n" + SHOWN + b"--- err" in seen, seen)
    check(b"--- out\n" + CONTROLS + b"--- err" in f.run("history", "show", ident).stdout, "a pipe gets it raw")


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
    # The cause is that of the first step that failed.
    history = f.home + "/.qvm-remote/history"
    shutil.rmtree(history)
    open(history, "w").close()
    got = f.run("exit 7")
    equal(got.returncode, 7)
    check(got.stderr.endswith(b"cannot make the history entry in " + history.encode() + b": Not a directory\n"), got.stderr)


@case
def a_record_that_is_cut_says_so(f):
    """Also when a piece of the output ends exactly at the limit."""
    f.start()
    mark, limit = b"\n[truncated at 10485760 bytes]\n", 10485760
    for command, is_cut in ((f"head -c {limit} /dev/zero", False), (f"head -c {limit + 1} /dev/zero", True),
                            (f"head -c {limit} /dev/zero; sleep 0.5; echo more", True)):
        equal(f.run(command).returncode, 0)
        [newest] = sorted(glob.glob(f.home + "/.qvm-remote/history/*/*/out"), key=os.path.getmtime)[-1:]
        with open(newest, "rb") as record:
            equal(record.read()[limit:], mark if is_cut else b"")


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
    """Each program is started with every signal blocked and ignored; /proc shows its mask and dispositions."""
    f.start()
    every = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
    ours = {signal.SIGPIPE, signal.SIGXFSZ}
    kept = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT}
    syscall = ctypes.CDLL(None).syscall

    def disturb():
        for number in every:
            signal.signal(number, signal.SIG_IGN)
        for number in (32, 33):  # used by the C library; a caller without it may leave them ignored
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
    got = f.run("--transport", "mock", "echo flag",  # and an option wins over that
                env=dict(none, QVM_REMOTE_TRANSPORT="qvm-run"))
    equal(got.stdout, b"flag\n")
