# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon and its records: keys, reloads, draining, history, log and audit. Cases of common.py."""

import collections
import glob
import hashlib
import json
import os
import random
import re
import signal
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from fixture import HANG, KEY, case, check, daemon_processes, equal, eventually, survivors
from policies import rules


def processor_seconds(f):
    ticks = 0
    for pid in daemon_processes(f):
        with open(f"/proc/{pid}/stat") as of:
            ticks += sum(map(int, of.read().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


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
    mark = f"revoke-mark-{os.getpid()}"
    p = f.popen(f"export MARK={mark}; echo up; sleep 1000", stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    equal(f.dom0("revoke", "work").returncode, 0)
    err = p.communicate(timeout=HANG)[1]
    equal(p.returncode, 126)
    check(b"revoked" in err, err)
    eventually(lambda: not survivors(mark), "the command ends")


@case
def a_qube_that_is_not_served_any_more_gets_the_end_of_its_commands(f):
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
def a_client_that_does_not_read_does_not_keep_the_daemon_from_ending(f):
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
    # Each client may have its own call, and a user may have only so many calls.
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
    equal(got.returncode, 127)  # dom0 has no program of that name
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
    """I12, over each transport."""
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

    # Another file gives this qube level full after these rules, so replace that file by a rule that
    # denies it.
    os.unlink(os.path.join(f.root, "etc/qubes/remote-policy.d/50-work.policy"))
    rules(f, "@anyvm level:full deny\n", "60-rest.policy")
    seen = collections.Counter()
    with ThreadPoolExecutor(4) as pool:
        for line, said, got in pool.map(verdicts, lines):
            equal((line, got), (line, said))
            seen[got] += 1
    check(set(seen) == {0, 3, 126}, seen)
