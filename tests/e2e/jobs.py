#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs: --detach, job list|attach|logs|wait|cancel, and what they survive.
Usage: jobs.py BUILD-DIRECTORY --transport mock|qvm-run|qrexec [CASE...]
"""

import fcntl
import functools
import glob
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time

import fixture
import job_groups
from fixture import KEY, Fixture, check, equal, eventually, main, survivors
from house import HOUSES
from policies import rules

at = sys.argv.index("--transport")
Fixture.transport = sys.argv[at + 1]
del sys.argv[at : at + 2]
ON_MOCK = Fixture.transport == "mock"


def case(function=None, *, outlives=True, only_mock=False):
    """Registers a case. `outlives`: it needs a group for jobs."""
    if function is None:
        return lambda f: case(f, outlives=outlives, only_mock=only_mock)

    @functools.wraps(function)
    def run(f):
        if only_mock and not ON_MOCK:
            print("    only over mock")
        elif outlives and job_groups.GROUP is None:
            print("    skipped: this machine gives us no cgroup")
        else:
            function(f)
    return fixture.case(run)


def start(f, *options, **env):
    if job_groups.GROUP is not None:
        f.jobs_group = getattr(f, "jobs_group", None) or job_groups.another()
        env.setdefault("QVM_REMOTE_JOBS_CGROUP", f.jobs_group)
    f.how = (options, env)
    if ON_MOCK:
        return f.start(*options, **env)
    if f.house:
        f.house.options = options
        f.house.how.update(env)
        f.house.start()
    else:
        f.house = HOUSES[f.transport](f, "work", events=False, options=options, conf=env)
        f.home = f.house.machine.home("work")
    f.house.wait_for_agent("work")
    return f


def restart(f, number=signal.SIGTERM, down=0):
    f.daemon.send_signal(number)
    f.daemon.wait(fixture.HANG)
    f.daemon = None
    time.sleep(down)
    start(f, *f.how[0], **f.how[1])


def detach(f, *words, code=0, **kw):
    got = f.run("--detach", *words, **kw)
    check(got.returncode == code, got)
    return got.stdout.decode().strip()


def job(f, *words, code=0, stdin=None):
    got = f.run("job", *words, stdin=stdin)
    check(got.returncode == code, (words, got))
    return got.stdout


def rows(f):
    """The list by ID: state and exit."""
    out = {}
    for line in job(f, "list").decode().splitlines()[1:]:
        words = line.split()
        out[words[0]] = tuple(words[1:3])
    return out


def ends(f, ident):
    return [r for r in f.audit() if r["kind"] == "END" and r.get("id") == ident]


def starts(f, ident):
    return [r for r in f.audit() if r["kind"] == "START" and r.get("id") == ident]


@case(outlives=False)
def a_job_runs_without_its_client(f):
    start(f)
    mark = os.path.join(f.path, "go")
    ident = detach(f, f"echo begun; while [ ! -e {mark} ]; do sleep 0.02; done; echo ended >&2; exit 7")
    check(re.fullmatch(r"\d{8}-\d{6}-\d+-[0-9a-f]{8}", ident), ident)
    equal(rows(f)[ident], ("running", "-"))
    eventually(lambda: job(f, "logs", ident) == b"begun\n", "the first line")
    equal(len(starts(f, ident)), 1)
    equal(ends(f, ident), [])
    open(mark, "w").close()
    got = f.run("job", "wait", ident)
    equal((got.returncode, got.stdout, got.stderr), (7, b"", b""))
    equal(rows(f)[ident], ("exited", "7"))
    got = f.run("job", "logs", ident)
    equal((got.returncode, got.stdout, got.stderr), (0, b"begun\n", b"ended\n"))
    got = f.run("job", "logs", "-f", ident)
    equal((got.returncode, got.stdout, got.stderr), (7, b"begun\n", b"ended\n"))
    got = f.run("job", "attach", ident)
    equal((got.returncode, got.stdout, got.stderr), (7, b"begun\n", b"ended\n"))
    equal([(e["exit"], e["cause"], e["stdout_bytes"], e["stderr_bytes"]) for e in ends(f, ident)],
          [(7, "exited", 6, 6)])


@case(outlives=False)
def every_form_of_a_command_can_be_a_job(f):
    start(f)
    script = os.path.join(f.path, "script")
    with open(script, "w", encoding="utf-8") as s:
        s.write("#!/bin/bash\nsleep 0.2; printf '%s\\n' \"$@\"; cat\n")
    for words, out in (((["echo", "$HOME", "x y"]), b"%s x y\n" % os.path.expanduser("~").encode()),
                       (["--exec", "printf", "%s.", "a b", "c"], b"a b.c."),
                       (["--script", script, "one", "two words"], b"one\ntwo words\n")):
        ident = detach(f, *words)
        equal(job(f, "logs", "-f", ident), out if words[0] != "echo" else job(f, "logs", ident))
    ident = detach(f, stdin=b"echo from stdin; echo $QVM_REMOTE_ID")
    equal(job(f, "logs", "-f", ident), b"from stdin\n" + ident.encode() + b"\n")
    # What cannot be started is an end of the job, not of the request.
    for _ in range(20):  # some end before the daemon looks again
        ident = detach(f, "exit 5")
        equal(f.run("job", "wait", ident).returncode, 5)
    ident = detach(f, "--exec", "no-such-program")
    equal(f.run("job", "wait", ident).returncode, 127)
    equal(rows(f)[ident], ("not_found", "127"))
    equal(glob.glob(os.path.join(f.root, "var/spool/qvm-remote/*")), [])
    equal(glob.glob(os.path.join(f.root, "run/qvm-remote/jobs/*")), [])


@case(outlives=False)
def cancel_ends_the_whole_tree(f):
    start(f)
    mark = f"job-mark-cancel-{os.getpid()}"
    ident = detach(f, f"export MARK={mark}; (setsid sleep 1000 &); sleep 1000 & wait")
    eventually(lambda: len(survivors(mark)) >= 2, "the tree")
    job(f, "cancel", ident)
    equal(survivors(mark), [])
    equal(rows(f)[ident], ("signalled", "143"))
    stubborn = detach(f, f"export MARK={mark}; trap '' TERM; while :; do sleep 1; done")
    eventually(lambda: survivors(mark), "the command")
    job(f, "cancel", stubborn)
    equal(survivors(mark), [])
    equal(rows(f)[stubborn], ("signalled", "137"))
    equal([len(ends(f, i)) for i in (ident, stubborn)], [1, 1])


@case(outlives=False)
def wrong_words_and_unknown_jobs(f):
    start(f)
    for words, wanted in ((["x"], b"usage: qvm-remote job"), (["attach"], b"usage: qvm-remote job"),
                          (["logs", "-f"], b"is not the ID of a job"),
                          (["wait", "../x"], b"is not the ID of a job")):
        got = f.run("job", *words)
        equal(got.returncode, 1)
        check(wanted in got.stderr, got.stderr)
    got = f.run("job", "wait", "20260218-143022-1-aaaaaaaa")
    equal(got.returncode, 126)
    check(b"this qube has no job" in got.stderr, got.stderr)
    equal(job(f, "list"), b"")
    got = f.run("--input", "cat")
    equal(got.returncode, 1)
    check(b"--input belongs to --detach" in got.stderr, got.stderr)
    # A plain command is no job.
    f.run("true")
    equal(job(f, "list"), b"")


@case(outlives=False, only_mock=True)
def without_a_cgroup_a_job_ends_with_the_daemon_and_the_answer_says_so(f):
    start(f, QVM_REMOTE_JOBS_CGROUP="/none-here")
    mark = f"job-mark-none-{os.getpid()}"
    got = f.run("--detach", f"export MARK={mark}; sleep 1000")
    equal(got.returncode, 0)
    check(b"it ends with dom0's daemon" in got.stderr, got.stderr)
    ident = got.stdout.decode().strip()
    eventually(lambda: survivors(mark), "the command")
    check(b"they end with this daemon" in f.dom0("status").stdout, "status")
    restart(f, signal.SIGKILL)
    equal(survivors(mark), [])
    equal(len(ends(f, ident)), 1)
    check(rows(f)[ident][0] in ("cancelled", "unknown"), rows(f))
    equal(f.run("job", "wait", ident).returncode, 126)


@case
def a_job_outlives_the_daemon(f):
    start(f)
    go = os.path.join(f.path, "go")
    wanted = {}
    for n in range(10):
        ident = detach(f, f"for i in {{1..50}}; do echo {n}-$i; echo err-$i >&2; sleep 0.02; done; "
                          f"while [ ! -e {go} ]; do sleep 0.02; done; exit {n}")
        wanted[ident] = n
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        restart(f, number)
        check(all(row == ("running", "-") for i, row in rows(f).items() if i in wanted), rows(f))
        check(b"jobs: 10 running; they outlive" in f.dom0("status").stdout, f.dom0("status").stdout)
    # Some end while no daemon runs.
    f.daemon.kill()
    f.daemon.wait()
    open(go, "w").close()
    time.sleep(0.5)
    f.daemon = None
    start(f)
    for ident, n in wanted.items():
        equal(f.run("job", "wait", ident).returncode, n)
        got = f.run("job", "logs", ident)
        equal(got.stdout, b"".join(b"%d-%d\n" % (n, i) for i in range(1, 51)))
        equal(got.stderr, b"".join(b"err-%d\n" % i for i in range(1, 51)))
        equal([e["exit"] for e in ends(f, ident)], [n])
    check(f.dom0("audit", "verify").returncode == 0, "the audit log is whole")


@case
def a_client_goes_on_after_a_restart(f):
    start(f)
    ident = detach(f, "for i in {1..200}; do echo line-$i; sleep 0.02; done; exit 9")
    p = f.popen("job", "attach", ident, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    w = f.popen("job", "wait", ident, stdin=subprocess.DEVNULL)
    got = b""
    for number in (signal.SIGKILL, signal.SIGTERM):
        for _ in range(20):
            got += p.stdout.readline()
        restart(f, number, down=1.5)  # long enough to find that there is no dom0, and no agent
    got += p.stdout.read()
    equal(p.wait(fixture.HANG), 9)
    equal(w.wait(fixture.HANG), 9)
    equal(got, b"".join(b"line-%d\n" % i for i in range(1, 201)))


def files_of(f, ident, qube="work"):
    return os.path.join(f.root, "var/lib/qvm-remote/jobs", qube, ident)


@case(outlives=False)
def the_oldest_output_goes_and_a_mark_says_how_much(f):
    start(f, QVM_REMOTE_JOB_OUTPUT="128K")
    ident = detach(f, "for i in {1..40000}; do echo line-$i; done; echo the end >&2; exit 3")
    equal(f.run("job", "wait", ident).returncode, 3)
    whole = b"".join(b"line-%d\n" % i for i in range(1, 40001))
    got = f.run("job", "logs", ident)
    equal((got.returncode, got.stderr.splitlines()[-1]), (0, b"the end"))
    mark = re.search(rb"\[(\d+) bytes of its stdout are gone", got.stderr)
    check(mark, got.stderr)
    gone = int(mark[1])
    equal(got.stdout, whole[gone:])
    check(64 * 1024 <= len(got.stdout) <= 128 * 1024, len(got.stdout))
    kept = sum(os.stat(os.path.join(files_of(f, ident), n)).st_blocks * 512 for n in ("out", "err"))
    check(kept <= 160 * 1024, kept)
    equal([(e["exit"], e["stdout_bytes"]) for e in ends(f, ident)], [(3, len(whole))])
    for words, code in ((("job", "logs", ident), 255), (("--json", "job", "logs", ident), 255)):
        with open("/dev/full", "wb") as full:
            p = f.popen(*words, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
            said = p.communicate(timeout=fixture.HANG)[1]
        check(p.returncode == code and b"No space left" in said, (words, p.returncode, said))
    with open("/dev/full", "wb") as full:
        equal(subprocess.run([fixture.DAEMON, "--root", f.root, "jobs", "logs", "work", ident], env=f.plain_env(),
                             stdout=full, stderr=subprocess.DEVNULL, check=False).returncode, 255)
    # Somebody who reads all the time misses nothing, or is told.
    ident = detach(f, "for i in {1..40000}; do echo line-$i; done")
    got = f.run("job", "logs", "-f", ident)
    told = sum(map(int, re.findall(rb"\[(\d+) bytes", got.stderr)))
    equal(len(got.stdout) + told, len(whole))
    check(whole.endswith(got.stdout[-1000:]), "the last lines")


@case(outlives=False)
def the_oldest_jobs_of_a_qube_make_room(f):
    start(f, QVM_REMOTE_JOB_OUTPUT="256K", QVM_REMOTE_JOBS_OUTPUT="1M")
    made = []
    for _ in range(8):
        made.append(detach(f, "head -c 200000 /dev/zero"))
        equal(f.run("job", "wait", made[-1]).returncode, 0)
    left = set(rows(f))
    check(made[-1] in left and made[0] not in left and len(left) <= 6, left)
    equal(f.run("job", "logs", made[0]).returncode, 126)
    # What runs counts with all that it may keep.
    running = [detach(f, "sleep 1000") for _ in range(4)]
    got = f.run("--detach", "true")
    equal(got.returncode, 126)
    check(b"fills the 1048576 bytes" in got.stderr, got.stderr)
    for ident in running:
        job(f, "cancel", ident)


@case(outlives=False)
def input_is_attached(f):
    start(f)
    ident = detach(f, "--input", "while read -r line; do echo got $line; done; echo closed; exit 4")
    time.sleep(0.1)
    first = f.popen("job", "attach", ident, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first.stdin.write(b"one\n")
    first.stdin.flush()
    equal(first.stdout.readline(), b"got one\n")
    second = f.popen("job", "attach", ident, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    equal(second.stdout.readline(), b"got one\n")
    check(b"another client types into it" in second.stderr.readline(), "who has the input")
    first.kill()  # the job goes on, and its input is free again
    first.wait()
    third = f.popen("job", "attach", ident, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    third.stdin.write(b"two\n" * 1000)
    third.stdin.close()
    wanted = b"got one\n" + b"got two\n" * 1000 + b"closed\n"
    equal(third.stdout.read(), wanted)
    equal(third.wait(fixture.HANG), 4)
    equal(second.stdout.read(), wanted[8:])
    equal(second.wait(fixture.HANG), 4)
    # A job without --input reads nothing, and says so to whoever types.
    ident = detach(f, "cat; sleep 0.5; echo end")
    got = f.run("job", "attach", ident, stdin=b"x")
    equal((got.returncode, got.stdout), (0, b"end\n"))
    check(b"takes no input" in got.stderr, got.stderr)


@case
def input_is_attached_after_a_restart(f):
    start(f)
    ident = detach(f, "--input", "cat; exit 5")
    restart(f, signal.SIGKILL)
    got = f.run("job", "attach", ident, stdin=b"after the restart\n")
    equal((got.returncode, got.stdout), (5, b"after the restart\n"))


@case(outlives=False)
def a_time_out_ends_a_job_and_the_default_does_not(f):
    start(f)
    mark = f"job-mark-limit-{os.getpid()}"
    ident = detach(f, "-t", "1", f"export MARK={mark}; echo begun; sleep 1000")
    equal(f.run("job", "wait", ident).returncode, 124)
    equal(job(f, "logs", ident), b"begun\n")
    equal(survivors(mark), [])
    equal([r["timeout"] for r in starts(f, ident)] if "timeout" in starts(f, ident)[0] else [1], [1])


@case(only_mock=True)
def panic_revoke_and_policy_end_jobs(f):
    start(f)
    mark = f"job-mark-rights-{os.getpid()}"

    def fresh():
        ident = detach(f, f"export MARK={mark}; trap '' TERM; (setsid sleep 1000 &) ; while :; do sleep 1; done")
        eventually(lambda: len(survivors(mark)) >= 2, "the tree")
        return ident

    def over(ident, reason):
        eventually(lambda: not survivors(mark), "the tree ends")
        eventually(lambda: ends(f, ident), "END")
        equal([(e["cause"], e["reason"]) for e in ends(f, ident)], [("cancelled", reason)])

    ident = fresh()
    begin = time.monotonic()
    equal(f.dom0("panic").returncode, 0)
    over(ident, "panicked")
    check(time.monotonic() - begin < 30, "at once")
    equal(f.run("--detach", "true").returncode, 126)
    equal(f.run("job", "list").returncode, 126)
    equal(f.dom0("resume").returncode, 0)

    ident = fresh()
    rules(f, "work * deny\n")
    over(ident, "denied")
    rules(f, None)
    eventually(lambda: f.run("true").returncode == 0, "the policy")

    # A panic while no daemon runs counts for the next one.
    ident = fresh()
    f.daemon.kill()
    f.daemon.wait()
    f.daemon = None
    check(survivors(mark), "it outlives the daemon")
    equal(f.dom0("panic").returncode, 0)
    eventually(lambda: not survivors(mark), "the tree ends without a daemon")
    start(f)
    over(ident, "panicked")
    equal(f.dom0("resume").returncode, 0)

    # A daemon that hangs is killed, and the jobs too.
    ident = fresh()
    f.daemon.send_signal(signal.SIGSTOP)
    equal(f.dom0("panic").returncode, 0)
    eventually(lambda: not survivors(mark), "the tree ends although the daemon hangs")
    f.daemon.wait(fixture.HANG)
    f.daemon = None
    start(f)
    over(ident, "panicked")
    equal(f.dom0("resume").returncode, 0)

    ident = fresh()
    equal(f.dom0("revoke", "work").returncode, 0)
    over(ident, "key_revoked")


@case(only_mock=True)
def a_key_that_is_revoked_while_no_daemon_runs(f):
    start(f)
    mark = f"job-mark-revoked-{os.getpid()}"
    ident = detach(f, f"export MARK={mark}; sleep 1000")
    f.daemon.kill()
    f.daemon.wait()
    f.daemon = None
    equal(f.dom0("revoke", "work").returncode, 0)
    f.write_key()
    f.spawn("mock", QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work dev", **f.how[1])
    eventually(lambda: not survivors(mark), "the tree ends")
    eventually(lambda: len(ends(f, ident)) == 1, "END")


@case(outlives=False, only_mock=True)
def a_qube_sees_only_its_own_jobs(f):
    start(f)
    equal(f.dom0("authorize", "dev", stdin=(KEY + "\n").encode()).returncode, 0)
    mine = detach(f, "echo secret; sleep 1000")
    other = dict(QVM_REMOTE_MOCK_SOCKET=os.path.join(f.root, "dev.sock"))
    equal(f.run("job", "list", env=other).stdout, b"")
    for words in (["logs"], ["logs", "-f"], ["attach"], ["wait"], ["cancel"]):
        got = f.run("job", *words, mine, env=other)
        equal((got.returncode, got.stdout), (126, b""))
        check(b"this qube has no job" in got.stderr, got.stderr)
    theirs = f.run("--detach", "sleep 1000", env=other).stdout.decode().strip()
    equal(set(rows(f)), {mine})
    shown = f.dom0("jobs").stdout.decode()
    check(mine in shown and theirs in shown, shown)
    got = f.dom0("jobs", "logs", "work", mine)
    equal((got.returncode, got.stdout), (0, b"secret\n"))
    equal(f.dom0("jobs", "logs", "dev", mine).returncode, 1)
    for qube, ident in (("work", mine), ("dev", theirs)):
        equal(fixture.operator(f, "jobs", "cancel", qube, ident).returncode, 0)
        equal(f.dom0("jobs", "wait", qube, ident).returncode, 143)
    # The same from inside a qube's command is refused.
    mine = detach(f, "sleep 1000")
    got = f.run(f"{fixture.DAEMON} --root {f.root} jobs cancel work {mine}")
    equal(got.returncode, 1)
    check(b"may not decide" in got.stderr or b"needs a terminal" in got.stderr, got.stderr)
    got = detach(f, f"{fixture.DAEMON} --root {f.root} jobs cancel work {mine} 2>&1")
    equal(f.run("job", "wait", got).returncode, 1)
    check(b"may not decide" in job(f, "logs", got), "from a job")
    equal(rows(f)[mine], ("running", "-"))


def keeper_of(ident):
    """The keeper of a job: the parent of a process that has the ID in its environment."""
    for path in survivors(f"QVM_REMOTE_ID={ident}"):
        with open(os.path.join(os.path.dirname(path), "stat"), encoding="ascii") as s:
            return int(s.read().rsplit(")", 1)[1].split()[1])
    return None


@case
def a_job_whose_keeper_is_killed_has_an_unknown_outcome(f):
    start(f)
    for by_restart in (False, True):
        ident = detach(f, "echo kept; (setsid sleep 1000 &); sleep 1000")
        eventually(lambda: len(survivors(f"QVM_REMOTE_ID={ident}")) >= 2, "the tree")
        eventually(lambda: job(f, "logs", ident) == b"kept\n", "output")
        keeper = keeper_of(ident)
        if by_restart:
            f.daemon.kill()
            f.daemon.wait()
            f.daemon = None
            os.kill(keeper, signal.SIGKILL)
            start(f)
        else:
            os.kill(keeper, signal.SIGKILL)
        eventually(lambda: not survivors(f"QVM_REMOTE_ID={ident}"), "the tree ends")
        eventually(lambda: ends(f, ident), "END")
        equal(len(ends(f, ident)), 1)
        equal(ends(f, ident)[0]["reason"], "outcome_unknown")
        got = f.run("job", "wait", ident)
        equal(got.returncode, 126)
        check(b"nobody knows how job" in got.stderr, got.stderr)
        equal(rows(f)[ident], ("unknown", "126"))
        equal(job(f, "logs", ident), b"kept\n")


@case(only_mock=True)
def what_answers_at_the_socket_of_a_keeper_must_be_the_keeper(f):
    start(f)
    ident = detach(f, "sleep 1000")
    eventually(lambda: survivors(f"QVM_REMOTE_ID={ident}"), "the command")
    with open(os.path.join(files_of(f, ident), "job"), "rb") as r:
        record = r.read()
    name = record[20:36].decode()
    secret = record[36:68]
    path = os.path.join(f.root, "run/qvm-remote/jobs", name)
    check(os.path.exists(path), path)
    equal(os.stat(os.path.dirname(path)).st_mode & 0o777, 0o700)
    f.daemon.kill()
    f.daemon.wait()
    f.daemon = None
    # Somebody who knows the secret, but is not among the keepers.
    os.unlink(path)
    fake = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fake.bind(path)
    fake.listen()
    answerer = os.fork()
    if answerer == 0:
        peer, _ = fake.accept()
        peer.send(b"\1\0\0\0" + secret)
        time.sleep(5)
        os._exit(0)
    start(f)
    os.kill(answerer, signal.SIGKILL)
    os.waitpid(answerer, 0)
    equal([e["reason"] for e in ends(f, ident)], ["outcome_unknown"])
    eventually(lambda: not survivors(f"QVM_REMOTE_ID={ident}"), "the tree ends")
    equal(f.run("job", "wait", ident).returncode, 126)


class Typist:
    """The client, or dom0's program, on a terminal of its own."""

    def __init__(self, f, *words, program=fixture.CLIENT):
        self.control, self.other = pty.openpty()
        self.resize(30, 100)
        self.modes = termios.tcgetattr(self.other)
        self.shown = b""
        self.program = subprocess.Popen([program, *words], env=f.env(TERM="xterm"), stdin=self.other,
                                        stdout=self.other, stderr=self.other, preexec_fn=fixture.at_a_terminal)

    def resize(self, rows, columns):
        """What a window does: the kernel tells the programs in the terminal by SIGWINCH."""
        fcntl.ioctl(self.control, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.control, text)

    def wait_for(self, text):
        end = time.monotonic() + fixture.HANG
        while text not in self.shown:
            check(time.monotonic() < end, f"{text} is not shown, but {self.shown[-300:]}")
            if select.select([self.control], [], [], 0.1)[0]:
                self.shown += os.read(self.control, 4096)

    def end(self):
        """The exit code; the modes of the terminal are what they were."""
        code = self.program.wait(fixture.HANG)
        while select.select([self.control], [], [], 0.1)[0]:
            self.shown += os.read(self.control, 4096)
        equal(termios.tcgetattr(self.other), self.modes)
        os.close(self.control)
        os.close(self.other)
        return code


@case
def a_job_with_a_terminal(f):
    start(f)
    ident = detach(f, "--tty", "test -t 0 && test -t 1 && tty >/dev/null && echo is-a-terminal; read -r line; "
                               "echo got-$line; stty size; read -r line; exit 6")
    eventually(lambda: b"is-a-terminal" in job(f, "logs", ident), "output")
    t = Typist(f, "job", "attach", ident)
    t.wait_for(b"is-a-terminal")
    t.type(b"one\r")
    t.wait_for(b"got-one")
    t.wait_for(b"30 100")
    t.type(b"~.")
    equal(t.end(), 255)
    check(b"goes on" in t.shown, t.shown)
    restart(f, signal.SIGKILL)
    equal(rows(f)[ident], ("running", "-"))
    t = Typist(f, "job", "attach", ident)
    t.wait_for(b"got-one")
    t.type(b"two\r")
    equal(t.end(), 6)
    equal([e["exit"] for e in ends(f, ident)], [6])


@case
def an_operator_attaches_in_dom0(f):
    start(f)
    ident = detach(f, "--tty", "PS1='ready> ' bash --norc")
    eventually(lambda: b"ready> " in job(f, "logs", ident), "output")

    def attach():
        t = Typist(f, "--root", f.root, "jobs", "attach", "work", ident, program=fixture.DAEMON)
        t.wait_for(b"ready> ")
        return t

    t = attach()
    t.type(b"X=5; echo a$X\r")
    t.wait_for(b"a5\r\n")
    t.type(b"\r~.")
    equal(t.end(), 0)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        t = attach()
        t.type(f"echo b{number}-$X\r".encode())
        t.wait_for(f"b{number}-5\r\n".encode())  # so it is attached
        t.program.send_signal(number)
        equal((number, t.end()), (number, 128 + number))
    equal(rows(f)[ident], ("running", "-"))
    t = attach()
    t.type(b"exit 8\r")
    equal(t.end(), 8)
    equal([e["exit"] for e in ends(f, ident)], [8])


@case
def a_job_has_the_size_of_the_operators_window(f):
    start(f)
    ident = detach(f, "--tty", "stty size; trap 'stty size' WINCH; until read -t 0.1 -r line; do :; done; exit 5")
    eventually(lambda: b"\r\n" in job(f, "logs", ident), "output")
    t = Typist(f, "--root", f.root, "jobs", "attach", "work", ident, program=fixture.DAEMON)
    t.wait_for(b"30 100\r\n")
    for rows, columns in ((20, 60), (50, 200)):
        time.sleep(0.3)  # bash loses a signal while it runs the trap of that signal
        t.resize(rows, columns)
        t.wait_for(b"%d %d\r\n" % (rows, columns))
    # While the program is stopped, the shell has other modes.
    time.sleep(0.3)
    t.program.send_signal(signal.SIGSTOP)
    termios.tcsetattr(t.other, termios.TCSANOW, t.modes)
    t.resize(21, 61)
    t.program.send_signal(signal.SIGCONT)
    t.wait_for(b"21 61\r\n")
    check(not termios.tcgetattr(t.other)[3] & termios.ICANON, "the terminal is raw again")
    t.type(b"\r")
    equal(t.end(), 5)


@case
def a_terminal_becomes_a_job(f):
    start(f)
    mark = f"job-mark-tilde-{os.getpid()}"
    t = Typist(f, "--tty", f"export MARK={mark}; PS1='ready> ' bash --norc")
    t.wait_for(b"ready> ")
    t.type(b"sleep 1000 & X=5; echo a$X\r")
    t.wait_for(b"a5\r\n")
    t.type(f"echo before >{f.path}/typed\r~d".encode())  # at once: what is before the escape is sent too
    equal(t.end(), 0)
    eventually(lambda: os.path.exists(f"{f.path}/typed"), "the line before the escape")
    ident = re.search(rb"goes on as job (\S+):", t.shown)
    check(ident, t.shown)
    ident = ident[1].decode()
    equal(rows(f)[ident], ("running", "-"))
    equal((len(starts(f, ident)), len(ends(f, ident))), (1, 0))
    for path in survivors(mark):
        with open(os.path.join(os.path.dirname(path), "cgroup"), encoding="ascii") as g:
            check(f.jobs_group + "/job-" in g.read(), "the processes moved")
    restart(f)
    t = Typist(f, "job", "attach", ident)
    t.type(b"echo b$X; jobs\r")
    t.wait_for(b"b5\r\n")
    t.wait_for(b"sleep 1000")
    t.type(b"exit 8\r")
    equal(t.end(), 8)
    equal(survivors(mark), [])
    equal([e["exit"] for e in ends(f, ident)], [8])
    equal(os.listdir(os.path.join(f.root, "run/qvm-remote/jobs")), [])


@case(outlives=False, only_mock=True)
def a_terminal_that_cannot_become_a_job_goes_on(f):
    start(f, QVM_REMOTE_JOBS_CGROUP="/none-here")
    t = Typist(f, "--tty", "PS1='ready> ' bash --norc")
    t.wait_for(b"ready> ")
    t.type(b"~d")
    t.wait_for(b"it cannot go on as a job")
    t.type(b"exit 4\r")
    equal(t.end(), 4)


if __name__ == "__main__":
    job_groups.enter()
    main()
