#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds whatever carries the bytes: one list of cases, run over each transport.
Usage: common.py BUILD-DIRECTORY --transport mock|qvm-run|qrexec|qrexec-kept [CASE...]
"""

import collections
import fcntl
import glob
import hashlib
import json
import os
import shutil
import random
import re
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from fixture import (CLIENT, HANG, KEY, Fixture, case, check, daemon_processes, equal, eventually, main,
                     survivors)
from house import HOUSES
from policies import rules

at = sys.argv.index("--transport")
Fixture.transport = sys.argv[at + 1]
del sys.argv[at : at + 2]


def house_of(f, *qubes, **more):
    return HOUSES[f.transport](f, *qubes, events=False, **more).wait_for_agent(*qubes)


def processor_seconds(f):
    ticks = 0
    for pid in daemon_processes(f):
        with open(f"/proc/{pid}/stat") as of:
            ticks += sum(map(int, of.read().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


# --- one qube -----------------------------------------------------------------------------------


@case
def exit_codes(f):
    f.start()
    for words, code, err in [
        (("true",), 0, b""),
        (("exit 3",), 3, b""),
        (("exit", "255"), 255, b""),
        (("kill -9 $$",), 137, b"qvm-remote: the command was killed by signal 9\n"),
        (("no-such-program-anywhere",), 127, None),
        (("--exec", "/no/such/program"), 127, b"qvm-remote: no such program in dom0\n"),
        (("--exec", "/etc/passwd"), 125, b"qvm-remote: dom0 could not start the command: "
                                         b"Permission denied\n"),
        (("-t", "1", "sleep 30"), 124, b"qvm-remote: command timed out after 1s\n"),
        (("--timeout=1", "sleep 30"), 124, b"qvm-remote: command timed out after 1s\n"),
    ]:
        got = f.run(*words)
        check(got.returncode == code, f"{words}: {got}")
        if err is not None:
            equal(got.stderr, err)


@case
def streams_stay_apart_and_whole(f):
    f.start()
    data = os.urandom(3_000_001)
    got = f.run("tee /dev/stderr", stdin=data)
    equal(got.returncode, 0)
    check(got.stdout == data and got.stderr == data, "streams differ")


@case
def output_arrives_as_it_is_written(f):
    f.start()
    p = f.popen("echo first; read x; echo second $x", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    equal(p.stdout.readline(), b"first\n")  # it has not ended: it waits for us
    p.stdin.write(b"go\n")
    p.stdin.flush()
    equal(p.stdout.readline(), b"second go\n")
    equal(p.wait(HANG), 0)


@case
def half_close_each_way(f):
    f.start()
    go_on = os.path.join(f.path, "go-on")
    p = f.popen("cat >/dev/null; echo after eof; exec >&-; "
                f"until [ -e {go_on} ]; do sleep 0.05; done; echo late >&2",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdin.write(b"x")
    p.stdin.close()
    equal(p.stdout.read(), b"after eof\n")  # its end is seen while the command goes on
    check(p.poll() is None, "the client ended with the first stream")
    open(go_on, "w").close()
    equal(p.stderr.read(), b"late\n")
    equal(p.wait(HANG), 0)


@case
def script_on_stdin(f):
    f.start()
    got = f.run(stdin=b"echo script; exit 5\n")
    equal((got.returncode, got.stdout), (5, b"script\n"))


@case
def script_file_with_arguments(f):
    f.start()
    path = os.path.join(f.path, "s")
    for text, wanted in [
        (b"echo \"$#:$1:$2\"; cat", b"2:a b:-c\nin"),
        (b"#!/usr/bin/env python3\nimport sys; print(len(sys.argv), sys.argv[1:])\n",
         b"3 ['a b', '-c']\n"),
        (b"#" * 200_000 + b"\necho big $1", b"big a b\n"),
    ]:
        with open(path, "wb") as s:
            s.write(text)
        got = f.run("--script", path, "a b", "-c", stdin=b"in")
        equal((got.returncode, got.stdout), (0, wanted))


@case
def a_script_runs_in_the_interpreter_that_it_names(f):
    """Interpreters differ in how they open their script: each reads it from its beginning, with its arguments."""
    f.start()
    say = {
        "awk -f": 'BEGIN { print "on " ARGV[1] }', "bash": 'echo "on $1"', "bc -q": 'print "on one\\n"\nquit',
        "busybox sh": 'echo "on $1"', "dash": 'echo "on $1"', "expect": 'puts "on [lindex $argv 0]"',
        "gawk -f": 'BEGIN { print "on " ARGV[1] }', "guile": '!#\n(display (string-append "on " (cadr (command-line))))(newline)',
        "ksh": 'echo "on $1"', "lua": 'print("on " .. arg[1])', "m4": 'on one', "make -f": "one:\n\t@echo on one",
        "mawk -f": 'BEGIN { print "on " ARGV[1] }', "node": 'console.log("on " + process.argv[2])',
        "perl": 'print "on $ARGV[0]\\n"', "php": '<?php echo "on $argv[1]\\n";', "python3": 'import sys; print("on", sys.argv[1])',
        "ruby": 'puts "on #{ARGV[0]}"', "sed -nf": "1s/.*/on one/p", "sh": 'echo "on $1"',
        "tclsh": 'puts "on [lindex $argv 0]"', "zsh": 'echo "on $1"'}
    path, tried = os.path.join(f.path, "s"), []
    for interpreter, text in say.items():
        program = shutil.which(interpreter.split()[0], path="/usr/bin:/bin")
        if not program:
            print(f"not installed, so not tried: {interpreter}")
            continue
        with open(path, "w") as s:
            s.write(f"#!{program}{interpreter[len(interpreter.split()[0]):]}\n{text}\n")
        got = f.run("--script", path, *([path] if interpreter.startswith("sed") else [] if interpreter in ("m4", "bc -q") else ["one"]))
        # To m4 the first line is text, which it copies.
        equal((interpreter, got.returncode, got.stdout.split(b"\n")[-2:]), (interpreter, 0, [b"on one", b""]))
        tried.append(interpreter)
    check(len(tried) >= 6, f"only {tried}")
    eventually(lambda: not os.listdir(os.path.join(f.root, "var/spool/qvm-remote")), "scripts that ended are gone")
    with open(path, "w") as s:
        s.write("#!/no/such/interpreter -x\n")
    got = f.run("--script", path)
    equal(got.returncode, 127)
    check(b"#!/no/such/interpreter -x" in got.stderr, got.stderr)
    # What a daemon that was killed left behind is gone after the next start.
    f.stop()
    with open(os.path.join(f.root, "var/spool/qvm-remote", "77"), "w") as s:
        s.write("left")
    f.start()
    equal(os.listdir(os.path.join(f.root, "var/spool/qvm-remote")), [])


@case
def exec_passes_arguments_as_they_are(f):
    f.start()
    words = ["a b", "", "*", "$HOME", "'", "\n", "-n", "ü"]
    got = f.run("--exec", "printf", "<%s>", *words)
    equal(got.stdout.decode(), "".join(f"<{w}>" for w in words))


@case
def arguments_are_joined_with_blanks(f):
    f.start()
    equal(f.run("echo", "a", "b;", "echo", "c").stdout, b"a b\nc\n")


@case
def large_commands(f):
    f.start()
    for size in (12 * 1024 - 1, 12 * 1024, 12 * 1024 + 1, 100 * 1024, 100 * 1024 + 1, 1 << 20):
        text = b"echo ok #" + b"x" * (size - 9)
        got = f.run(stdin=text)
        check((got.returncode, got.stdout) == (0, b"ok\n"), f"{size}: {got.stderr}")
    got = f.run(stdin=b"#" * ((1 << 20) + 1))
    equal(got.returncode, 1)
    check(b"1 MiB" in got.stderr, got.stderr)


@case
def stdin_is_not_read_before_dom0_accepts(f):
    f.start(key="f" * 64)  # refused: nothing may be gone from stdin
    r, w = os.pipe()
    os.write(w, b"precious")
    os.close(w)
    p = f.popen("cat", stdin=r, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    err = p.communicate(timeout=HANG)[1]
    check(p.returncode == 126, err)
    equal(os.read(r, 100), b"precious")


@case
def no_stdin(f):
    f.start()
    r, w = os.pipe()
    os.write(w, b"precious")
    os.close(w)
    p = f.popen("-n", "cat; echo done", stdin=r, stdout=subprocess.PIPE)
    equal(p.communicate(timeout=HANG)[0], b"done\n")
    equal(os.read(r, 100), b"precious")


@case
def inherited_descriptors_keep_their_flags(f):
    f.start()
    r, w = os.pipe()
    r2, w2 = os.pipe()
    os.close(w)
    before = fcntl.fcntl(r, fcntl.F_GETFL), fcntl.fcntl(w2, fcntl.F_GETFL)
    p = f.popen("seq 10000", stdin=r, stdout=w2)
    out = b""
    while not out.endswith(b"10000\n"):
        out += os.read(r2, 65536)
        equal(fcntl.fcntl(w2, fcntl.F_GETFL), before[1])
    equal(p.wait(HANG), 0)
    equal((fcntl.fcntl(r, fcntl.F_GETFL), fcntl.fcntl(w2, fcntl.F_GETFL)), before)


@case
def closed_standard_descriptors(f):
    f.start()
    got = subprocess.run(["bash", "-c", f"exec {CLIENT} 'echo x; exit 4' <&- >&- 2>&-"], env=f.env(),
                         timeout=HANG)
    equal(got.returncode, 4)


@case
def closed_pipe(f):
    f.start()
    mark = "closed-pipe-mark"
    got = subprocess.run(["bash", "-c", f"{CLIENT} 'MARK={mark} yes' | head -1; echo ${{PIPESTATUS[0]}}"],
                         env=f.env(), capture_output=True, timeout=HANG)
    equal(got.stdout, b"y\n141\n")
    eventually(lambda: not survivors(mark), "yes ends")


@case
def full_disk(f):
    f.start()
    with open("/dev/full", "wb") as full:
        p = f.popen("echo hello", stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
        err = p.communicate(timeout=HANG)[1]
    equal(p.returncode, 255)
    check(b"No space left" in err, err)


@case
def signals_are_forwarded_and_end_the_tree(f):
    f.start()
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129),
                         (signal.SIGQUIT, 131)):
        mark = f"signal-mark-{number}"
        p = f.popen(f"export MARK={mark}; setsid sleep 1000 & echo up; sleep 1000",
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        equal(p.stdout.readline(), b"up\n")
        p.send_signal(number)
        equal(p.wait(HANG), code)
        eventually(lambda: not survivors(mark), "the tree ends")


@case
def a_second_signal_leaves_at_once(f):
    f.start()
    p = f.popen("trap '' INT; echo up; while :; do sleep 0.1; done", stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    p.send_signal(signal.SIGINT)
    time.sleep(0.3)
    check(p.poll() is None, "it left at the first")
    p.send_signal(signal.SIGINT)
    equal(p.wait(HANG), 130)


@case
def background_children_end_with_the_command(f):
    f.start()
    mark = "background-mark"
    got = f.run(f"export MARK={mark}; sleep 1000 >/dev/null 2>&1 & setsid sleep 1000 >/dev/null 2>&1 & echo on")
    equal((got.returncode, got.stdout), (0, b"on\n"))
    eventually(lambda: not survivors(mark), "background children end")


@case
def what_holds_no_output_has_a_moment_to_end_by_itself(f):
    f.start()
    done = os.path.join(f.home, "done")
    equal(f.run(f"(sleep 1; echo yes >'{done}') >/dev/null 2>&1 & true").returncode, 0)
    with open(done) as said:
        equal(said.read(), "yes\n")


@case
def output_is_read_to_its_end_as_with_ssh(f):
    f.start()
    got = f.run("seq 3 > >(sleep 1; cat)")
    equal((got.returncode, got.stdout), (0, b"1\n2\n3\n"))
    got = f.run("exec 3>&1; (sleep 1; head -c 1000000 /dev/zero >&3; echo end >&2) & exit 7")
    equal((got.returncode, len(got.stdout), got.stderr), (7, 1000000, b"end\n"))
    got = f.run("seq 300000 > >(sort -R)")
    equal((got.returncode, got.stdout.count(b"\n")), (0, 300000))


@case
def what_holds_the_output_is_bounded_by_the_time_out(f):
    f.start()
    mark = "holder-mark"
    got = f.run("-t", "2", f"export MARK={mark}; setsid sleep 1000 & echo on")
    equal((got.returncode, got.stdout), (124, b"on\n"))
    eventually(lambda: not survivors(mark), "its children end")


@case
def no_wait_ends_with_the_first_process(f):
    f.start()
    mark = "no-wait-mark"
    got = f.run("--no-wait", f"export MARK={mark}; setsid sleep 1000 & echo on; exit 5")
    equal((got.returncode, got.stdout), (5, b"on\n"))
    eventually(lambda: not survivors(mark), "what is left ends")


@case
def a_killed_client_ends_its_command(f):
    f.start()
    mark = "client-kill-mark"
    p = f.popen(f"export MARK={mark}; echo up; trap '' TERM HUP; while :; do sleep 0.1; done",
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    p.kill()
    p.wait(HANG)
    eventually(lambda: not survivors(mark), "the command ends")


@case
def a_killed_daemon_is_no_success(f):
    f.start()
    mark = "daemon-kill-mark"
    p = f.popen(f"export MARK={mark}; echo up; sleep 1000", stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    f.daemon.kill()
    f.daemon.wait(HANG)
    f.daemon = None
    err = p.communicate(timeout=HANG)[1]
    equal(p.returncode, 255)
    check(re.search(rb"incomplete.*command \d{8}-\d{6}-\d+-[0-9a-f]{8} may have run", err), err)
    eventually(lambda: not survivors(mark), "the command ends")


@case
def environment_of_a_command(f):
    f.start()
    got = f.run("env -0; pwd; umask; ls -l /proc/self/fd | wc -l", env=dict(SECRET="leak", TERM="x"))
    parts = got.stdout.split(b"\0")
    names = sorted(p.split(b"=")[0].decode() for p in parts[:-1])
    equal([n for n in names if n not in ("PWD", "SHLVL", "_", "OLDPWD")],
          ["HOME", "LANG", "LOGNAME", "PATH", "QVM_REMOTE_ID", "QVM_REMOTE_PEER", "SHELL", "USER"])
    check(b"QVM_REMOTE_PEER=work" in parts, parts)
    equal(parts[-1].split(b"\n")[1:3], [b"0022", b"5"])  # 0 1 2, ls's own, and the total line


@case
def signals_are_as_a_command_expects_them(f):
    f.start()
    got = f.run("grep -E '^Sig(Blk|Ign)' /proc/self/status")
    equal(got.stdout, b"SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n")
    equal(f.run("yes | head -1").stderr, b"")


@case
def forty_clients_at_once(f):
    f.start()
    all_of_them = [f.popen(f"echo {i}; exit {i}", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
                   for i in range(40)]
    for i, p in enumerate(all_of_them):
        equal(p.communicate(timeout=HANG)[0], b"%d\n" % i)
        equal(p.returncode, i)


@case
def a_slow_reader_stalls_only_itself(f):
    f.start()
    slow = f.popen("yes", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    equal(slow.stdout.read(4), b"y\ny\n")
    for _ in range(20):
        equal(f.run("echo quick").stdout, b"quick\n")
    slow.kill()
    slow.wait(HANG)


@case
def keys_stay_out_of_sight(f):
    f.start()
    p = f.popen("tr '\\0' '\\n' </proc/$PPID/environ; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ "
                "2>/dev/null | tr '\\0' '\\n'; exit 0", stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE)
    out = p.communicate(timeout=HANG)[0]
    check(KEY.encode() not in out, "a key in an argv or an environment")
    f.run("echo x")
    for path in glob.glob(f.path + "/**", recursive=True):
        if os.path.isfile(path) and not path.endswith(".key"):
            with open(path, "rb") as one:
                check(KEY.encode() not in one.read(), f"a key in {path}")


@case
def signals_buy_no_time(f):
    f.start()
    p = f.popen("-t", "2", "trap '' INT; echo up; while :; do sleep 0.1; done",
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    p.send_signal(signal.SIGINT)
    equal(p.wait(HANG), 130)
    check("TIMEOUT" in f.log(), "the limit was put off")


@case
def revoke_ends_live_sessions(f):
    f.start()
    mark = "revoke-mark"
    p = f.popen(f"export MARK={mark}; echo up; sleep 1000", stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    equal(f.dom0("revoke", "work").returncode, 0)
    err = p.communicate(timeout=HANG)[1]
    equal(p.returncode, 126)
    check(b"revoked" in err, err)
    eventually(lambda: not survivors(mark), "the command ends")


@case
def a_qube_that_is_served_no_more_has_its_last_word(f):
    f.start()
    p = f.popen("echo up; sleep 1000", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    with open(os.open(os.path.join(f.root, "etc/qubes/remote.conf"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as conf:
        conf.write("QVM_REMOTE_VMS=dev\n")
    f.daemon.send_signal(signal.SIGHUP)
    err = p.communicate(timeout=HANG)[1]
    check(p.returncode == 126 and b"denied" in err, (p.returncode, err))


@case
def reload_keeps_sessions(f):
    f.start()
    p = f.popen("echo up; read x; echo $x", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    f.daemon.send_signal(signal.SIGHUP)
    eventually(lambda: "read again" in f.log(), "reload")
    equal(p.communicate(b"still here\n", timeout=HANG)[0], b"still here\n")
    equal(p.returncode, 0)


@case
def terminate_drains(f):
    f.start()
    p = f.popen("echo up; sleep 1; echo end", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    equal(f.stop(), 0)
    equal(p.communicate(timeout=HANG)[0], b"end\n")
    equal(p.returncode, 0)


@case
def a_client_that_does_not_read_keeps_no_daemon_from_ending(f):
    f.start()
    clients = [f.popen(*words, "yes", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
               for words in (["-t", "1"], [])]
    eventually(lambda: sum(e["kind"] == "START" for e in f.audit()) == 2, "two start")
    eventually(lambda: b": running=1 waiting=0\n" in f.dom0("status").stdout, "one has ended, and waits to be read")
    f.daemon.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    equal(f.daemon.poll(), None)
    equal(f.stop(), 0)
    equal([(e["exit"], e["reason"]) for e in f.audit() if e["kind"] == "END"], [(126, "draining")] * 2)
    for p in clients:
        p.communicate(timeout=HANG)
        check(p.returncode in (126, 255), p.returncode)


@case
def an_unread_output_holds_no_slot(f):
    f.start()
    stalled = [f.popen("-t", "1", "yes", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.DEVNULL) for _ in range(8)]
    eventually(lambda: sum(e["kind"] == "START" for e in f.audit()) == 8, "eight start")
    eventually(lambda: b": running=0 waiting=0\n" in f.dom0("status").stdout, "no slot is held")
    check(all(p.poll() is None for p in stalled), "they wait to be read")
    used = processor_seconds(f)
    time.sleep(1)
    check(processor_seconds(f) - used < 0.2, "the daemon waits for them without a pause")
    # Each may be a call of its own, of which a user has as many.
    stalled[0].kill()
    equal(f.run("echo next").stdout, b"next\n")
    for p in stalled:
        p.kill()
        p.wait(HANG)


@case
def dry_runs(f):
    f.start()
    path = os.path.join(f.path, "made")
    got = f.run("--dry-run", f"touch {path}")
    equal((got.returncode, got.stdout), (0, f"[dry-run] touch {path}\n".encode()))
    f.stop()
    f.start("--dry-run")
    got = f.run(f"touch {path}")
    equal((got.returncode, got.stdout), (0, f"[dry-run] touch {path}\n".encode()))
    check(not os.path.exists(path), "a dry run ran")
    check("DRY" in f.log(), f.log())


@case
def double_dash_ends_subcommands(f):
    f.start()
    got = f.run("--", "queue", "x")
    equal(got.returncode, 127)  # dom0's program of that name, which does not exist
    equal(f.run("--", "echo", "--help").stdout, b"--help\n")
    equal(f.run("echo", "-n", "--exec").stdout, b"--exec")


@case
def history_and_log(f):
    f.start()
    f.run("echo out; echo err >&2; exit 7")
    f.run("-t", "1", "sleep 30")
    [entry] = [e for e in glob.glob(f.home + "/.qvm-remote/history/*/*")
               if open(e + "/exit").read() == "7"]
    check(re.fullmatch(r"\d{8}-\d{6}-\d+-[0-9a-f]{8}", os.path.basename(entry)), entry)
    equal({n: open(os.path.join(entry, n)).read() for n in ("out", "err", "exit", "command")},
          {"out": "out\n", "err": "err\n", "exit": "7", "command": "echo out; echo err >&2; exit 7"})
    meta = open(entry + "/meta").read()
    check(re.fullmatch(rf"id={os.path.basename(entry)}\nstarted=[0-9T:-]+\nduration_ms=\d+\n"
                       r"exit_code=7\n", meta), meta)
    for path in glob.glob(f.home + "/.qvm-remote/**", recursive=True):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            continue
        equal((path, stat.S_IMODE(os.stat(path).st_mode)),
              (path, 0o700 if os.path.isdir(path) else 0o600))
    log = open(f.home + "/.qvm-remote/audit.log").read()
    check(re.search(r"^\[[0-9T:-]+\] SUBMIT id=\S+ size=30B cmd=echo out; ", log, re.M), log)
    check(re.search(r"^\[[0-9T:-]+\] DONE id=\S+ exit=7$", log, re.M), log)
    check(re.search(r"^\[[0-9T:-]+\] TIMEOUT id=\S+ after=1s$", log, re.M), log)
    listed = f.run("history", "1").stdout.decode()
    check("exit=124" in listed and listed.count("\n") == 1, listed)
    shown = f.run("history", "show", os.path.basename(entry)).stdout
    check(b"exit_code=7" in shown and b"\nout\n" in shown and b"\nerr\n" in shown, shown)
    equal(f.run("log", "1").stdout.count(b"\n"), 1)


@case
def hostile_text_stays_out_of_terminals_and_logs(f):
    f.start()
    f.run("printf '\\033[31mred\\033[0m\\n[2026-01-01T00:00:00] DONE forged\\n' # \x1b[2J\nexit 3")
    for text in (f.run("history").stdout, f.run("log").stdout, f.log().encode(),
                 f.dom0("log").stdout):
        check(b"\x1b" not in text, text)
    check(not re.search(r"^\[2026-01-01", f.log(), re.M), "a forged line in the log")


@case
def audit_follows_from_line_to_line(f):
    f.start()
    f.run("echo a")
    f.run("--exec", "/no/such/program")
    f.run("cat", stdin=b"12345")
    f.stop()
    records = [r for r in f.audit() if r["kind"] != "ADMIN"]
    kinds = [(r["kind"], r.get("exit")) for r in records]
    equal(kinds, [("START", None), ("END", 0), ("START", None), ("END", 127), ("START", None), ("END", 0)])
    equal(records[4]["argv"], ["bash", "-c", "cat"])
    equal((records[5]["of"], records[5]["stdin_bytes"], records[5]["stdout_bytes"]),
          (records[4]["n"], 5, 5))
    previous = "0" * 64
    with open(f.root + "/var/log/qvm-remote/audit.jsonl", "rb") as raw:
        for line in raw:
            covered = line[: line.rindex(b',"h":')]
            previous = hashlib.sha256(previous.encode() + covered).hexdigest()
            equal(json.loads(line)["h"], previous)
    equal(stat.S_IMODE(os.stat(f.root + "/var/log/qvm-remote").st_mode), 0o700)


@case
def random_requests_get_the_verdict_of_policy_check(f):
    """I12: the same ones over each transport."""
    f.start()
    rules(f, "work level:monitor allow\nwork exec:echo * allow timeout=9\nwork exec:sh ** deny\n"
             "work exec:ls ask\nwork exec:qvm-start {qube:dev-*} allow\n@anyvm exec:printf ** allow\n"
             "work exec:id ** ask\n", "10-random.policy")
    r = random.Random(20261125)
    words = ["true", "echo", "a", "-n", "uname", "-s", "printf", "x=y", "sh", "-c", "ls", ";", "$HOME", "''",
             "qvm-start", "dev-1", "work", "id", "qvm-ls", "--raw-list", "/bin/ls", "a\nb", "é", "--", "&&",
             "../x", "qvm-prefs", "memory", "400", "-"]
    lines = [(r.random() < 0.3, [r.choice(words) for _ in range(r.randint(1, 4))])
             for _ in range(int(os.environ.get("QVMREMOTE_REQUESTS", "60")))]

    def verdicts(line):
        is_argv, given = line
        kind = ["--exec"] if is_argv else []
        said = f.dom0("policy", "check", *kind, "work", "--", *given).returncode
        got = f.run("--dry-run", *kind, "--", *given)
        if got.returncode == 0:
            return line, said, 0
        check(got.returncode == 126, (line, got))
        return line, said, 3 if b"would be asked" in got.stderr else 126

    # This qube has level full behind these rules: a last one takes that away.
    os.unlink(os.path.join(f.root, "etc/qubes/remote-policy.d/50-work.policy"))
    rules(f, "@anyvm level:full deny\n", "60-rest.policy")
    seen = collections.Counter()
    with ThreadPoolExecutor(4) as pool:
        for line, said, got in pool.map(verdicts, lines):
            equal((line, got), (line, said))
            seen[got] += 1
    check(set(seen) == {0, 3, 126}, seen)


# --- several qubes ------------------------------------------------------------------------------


@case
def each_qube_is_who_it_is(f):
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
    # Its client would wait for another agent for half a minute.
    eventually(lambda: not house.has_agent("stranger") if f.transport == "qvm-run" else
               house.run("stranger", "true").returncode != 0, "it is out")
    equal(house.run("work", "echo on").stdout, b"on\n")


@case
def one_that_does_not_read_holds_up_nobody(f):
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
def whichever_link_is_killed_loses_nothing_in_silence(f):
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


main()
