#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests that the stand-ins do what QUBES.md says of qvm-run, qrexec-client, qvm-check and the services
that they start. Each case tests one rule and has its name. Usage: contract.py BUILD-DIRECTORY [CASE...]
"""

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from fixture import BUILD, HANG, case, check, equal, eventually, main, survivors  # noqa: E402
from machine import Machine  # noqa: E402

QVM_RUN = ["--no-gui", "--no-autostart", "--pass-io"]
MARK = f"contract-{os.getpid()}"


class Dom0:
    """A machine with the qube `work`, and dom0's programs."""

    def __init__(self, f, **more):
        self.machine = Machine(BUILD, os.path.join(f.path, "m"))
        self.machine.add("work", agent=False, **more)

    def start(self, *words, **more):
        given = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        given.update(more)
        return subprocess.Popen([os.path.join(self.machine.programs, words[0]), *words[1:]],
                                env=dict(os.environ, QVMREMOTE_STANDIN=self.machine.path), **given)

    def call(self, *words, stdin=b""):
        """Makes a call and returns its exit code, stdout and stderr."""
        p = self.start(*words, stdin=subprocess.PIPE)
        out, err = p.communicate(stdin, timeout=HANG)
        return p.returncode, out, err

    def run(self, command, stdin=b"", qube="work"):
        return self.call("qvm-run", *QVM_RUN, qube, command, stdin=stdin)

    def client(self, command, stdin=b"", qube="work"):
        return self.call("qrexec-client", "-d", qube, command, stdin=stdin)

    def both(self, command, stdin=b""):
        """Runs a command by both programs, which must give the same result."""
        got = self.run(command, stdin)
        equal(self.client("DEFAULT:nogui:" + command, stdin), got)
        return got

    def start_each(self, command, **more):
        """Starts a call by each of the two programs in turn."""
        for words in (["qvm-run", *QVM_RUN, "work", command],
                      ["qrexec-client", "-d", "work", "DEFAULT:nogui:" + command]):
            yield self.start(*words, **more)


# QUBES.md §2


@case
def the_exit_code_is_the_remote_one(f):
    dom0 = Dom0(f)
    for code in (0, 1, 7, 124, 255):
        equal(dom0.both(f"exit {code}")[0], code)


@case
def of_an_exit_code_the_low_eight_bits_survive(f):
    equal(Dom0(f).both("exit 256")[0], 0)


@case
def a_signal_is_128_and_its_number(f):
    dom0 = Dom0(f)
    equal(dom0.both("kill -9 $$")[0], 137)
    equal(dom0.both("kill -15 $$")[0], 143)


@case
def not_running_with_n_is_1_and_a_message(f):
    dom0 = Dom0(f, state="Halted")
    code, out, err = dom0.run("true")
    equal((code, out), (1, b""))
    check(b"not running" in err, err)
    equal(dom0.machine.violations(), "")


@case
def without_n_a_qube_would_be_started_which_is_a_violation(f):
    dom0 = Dom0(f, state="Halted")
    dom0.call("qvm-run", "--pass-io", "work", "true")
    equal(dom0.machine.violations(), "started work\n")


@case
def usage_and_an_unknown_vm_are_2(f):
    dom0 = Dom0(f)
    equal(dom0.run("true", qube="nobody")[0], 2)
    equal(dom0.run("true", qube="../work")[0], 2)
    equal(dom0.call("qvm-run", "--no-such-option", "work", "true")[0], 2)
    equal(dom0.call("qvm-run", "work")[0], 2)
    equal(dom0.call("qvm-run")[0], 2)


@case
def refused_is_126_and_says_so(f):
    dom0 = Dom0(f, faults="refuse")
    equal(dom0.both("true"), (126, b"", b"Request refused\n"))


@case
def no_such_service_is_127(f):
    equal(Dom0(f, shell="no-such-program").both("true")[0], 127)


@case
def trouble_in_qrexec_is_125(f):
    equal(Dom0(f, faults="trouble").both("true")[0], 125)


@case
def a_qube_that_halts_ends_its_calls_with_255(f):
    dom0 = Dom0(f)
    for c in dom0.start_each("echo up; sleep 1000"):
        equal(c.stdout.readline(), b"up\n")
        dom0.machine.set_state("work", "Halted")
        c.communicate(timeout=HANG)
        equal(c.returncode, 255)
        dom0.machine.set_state("work", "Running")


@case
def a_multi_line_command_shares_stdin_with_its_own_text(f):
    equal(Dom0(f).run("echo 1\ncat\necho 3", b"data\n")[:2], (0, b"1\necho 3; exit\ndata\n"))


@case
def a_compound_command_is_read_whole_first(f):
    equal(Dom0(f).run("{ echo 1\ncat\necho 3\n}", b"data\n")[:2], (0, b"1\ndata\n3\n"))


@case
def a_comment_at_the_end_eats_the_exit_and_stdin_is_executed(f):
    dom0 = Dom0(f)
    equal(dom0.run("echo a # x", b"echo INJECTED\n")[1], b"a\nINJECTED\n")
    equal(dom0.run("echo a \\", b"echo INJECTED\n")[1], b"a ; exit\nINJECTED\n")
    # In a compound command the comment eats only the rest of its own line.
    equal(dom0.run("{ echo a # x\n}", b"echo INJECTED\n")[1], b"a\n")


@case
def an_ampersand_at_the_end_is_a_syntax_error(f):
    dom0 = Dom0(f)
    code, out, err = dom0.run("true &")
    equal((code, out), (2, b""))
    check(b"syntax error" in err, err)
    equal(dom0.run("( true >/dev/null 2>&1 & )")[0], 0)


@case
def bash_reads_its_command_byte_by_byte_and_binary_stdin_is_intact(f):
    data = os.urandom(100_000)
    equal(Dom0(f).run("sha256sum", data)[1].split()[0].decode(), hashlib.sha256(data).hexdigest())


@case
def the_text_is_one_argument_of_128_kib_at_most(f):
    dom0 = Dom0(f)
    equal(dom0.run(": " + "x" * 131_000)[0], 0)
    try:
        dom0.run(": " + "x" * 140_000)
        check(False, "it was taken")
    except OSError as e:
        check("too long" in e.strerror, e)


@case
def without_p_stdin_and_output_are_dev_null_and_the_exit_code_comes_back(f):
    dom0 = Dom0(f)
    code, out, err = dom0.call("qvm-run", "--no-gui", "-n", "work", "cat; echo out; echo err >&2; exit 7",
                               stdin=b"data\n")
    equal((code, out), (7, b""))
    check(err.startswith(b"Running '") and b"err\n" not in err, err)
    equal(dom0.call("qvm-run", "-q", "--no-gui", "-n", "work", "exit 7"), (7, b"", b""))


@case
def with_p_nothing_is_said_on_stderr(f):
    equal(Dom0(f).both("echo err >&2"), (0, b"", b"err\n"))


# QUBES.md §3


@case
def a_start_can_be_slow(f):
    dom0 = Dom0(f, faults="start-delay 300")
    begin = time.monotonic()
    equal(dom0.both("cat", b"data"), (0, b"data", b""))
    check(time.monotonic() - begin >= 0.6, "two starts of 300 ms each")


@case
def a_command_can_stall_behind_its_start(f):
    """A real one stalls for 10 s; the stand-in stalls for as long as it is told to."""
    dom0 = Dom0(f, faults="stall 1000")
    begin = time.monotonic()
    equal(dom0.run("cat", b"data"), (0, b"data", b""))
    check(time.monotonic() - begin >= 1, "no stall")


# QUBES.md §4


@case
def stdin_and_stdout_are_sockets_and_stderr_is_a_pipe(f):
    _, out, _ = Dom0(f).both("stat -L -c %F /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2")
    equal(out.splitlines(), [b"socket", b"socket", b"fifo"])


@case
def dev_stdin_cannot_be_opened(f):
    code, out, err = Dom0(f).both("cat /dev/stdin", b"data")
    equal((code, out), (1, b""))
    check(b"No such device or address" in err, err)


@case
def there_is_no_tty_and_no_descriptor_above_2(f):
    dom0 = Dom0(f)
    equal(dom0.both("test -t 0 || test -t 1 || test -t 2")[0], 1)
    with open("/dev/null") as null:
        more = fcntl.fcntl(null, fcntl.F_DUPFD, 50)
    for c in dom0.start_each(f"test ! -e /proc/self/fd/{more}", pass_fds=[more]):
        c.communicate(timeout=HANG)
        equal(c.returncode, 0)
    os.close(more)


@case
def sigpipe_is_at_its_default_and_no_signal_is_blocked(f):
    dom0 = Dom0(f)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    _, out, _ = dom0.both("grep -E '^Sig(Blk|Ign)' /proc/self/status")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    equal([int(line.split()[1], 16) for line in out.splitlines()], [0, 0])


@case
def a_profile_prints_first_and_to_the_caller(f):
    equal(Dom0(f, profile="Welcome!").both("echo me")[1], b"Welcome!\nme\n")


@case
def the_home_of_the_qube_is_the_working_directory(f):
    dom0 = Dom0(f)
    equal(dom0.both("pwd; echo $HOME")[1], (dom0.machine.home("work") + "\n").encode() * 2)


@case
def the_end_of_stdin_is_a_half_close(f):
    equal(Dom0(f).both("cat; sleep 0.2; echo later", b"data\n")[:2], (0, b"data\nlater\n"))


@case
def a_background_child_that_holds_stdout_holds_the_call(f):
    dom0 = Dom0(f)
    for what, holds in (("sleep 1000 & echo", True), ("sleep 1000 2>/dev/null & echo", True),
                        ("sleep 1000 >/dev/null & echo", True),
                        ("sleep 1000 >/dev/null 2>&1 & echo", False)):
        for c in dom0.start_each(f"export MARK={MARK}; {what}"):
            equal(c.stdout.readline(), b"\n")
            eventually(lambda: survivors("MARK=" + MARK), "a child in the background")
            if holds:
                try:
                    c.wait(0.3)
                    check(False, f"the call ended: {what}")
                except subprocess.TimeoutExpired:
                    pass
                end_all(MARK)
            c.communicate(timeout=HANG)
            equal(c.returncode, 0)
            end_all(MARK)


def end_all(mark):
    for path in survivors("MARK=" + mark):
        try:
            os.kill(int(path.split("/")[2]), signal.SIGKILL)
        except ProcessLookupError:
            pass


@case
def the_call_ends_with_the_service_though_its_own_stdin_is_open(f):
    for c in Dom0(f).start_each("echo over", stdin=subprocess.PIPE):
        equal(c.stdout.read(), b"over\n")
        equal(c.wait(HANG), 0)
        c.stdin.close()


@case
def a_closed_stdout_does_not_end_the_call(f):
    dom0 = Dom0(f)
    for c in dom0.start_each("export MARK=" + MARK + "; while echo yes; do sleep 0.05; done"):
        c.stdout.read(3)
        c.stdout.close()
        try:
            c.wait(0.5)
            check(False, "it ended")
        except subprocess.TimeoutExpired:
            pass
        c.kill()
        c.wait()
    eventually(lambda: not survivors("MARK=" + MARK), "EPIPE behind a call that was killed")


@case
def a_killed_call_gives_the_service_the_end_of_stdin_and_no_signal(f):
    dom0 = Dom0(f)
    home = dom0.machine.home("work")
    for c in dom0.start_each("trap ': >signal' HUP INT TERM PIPE; echo up; cat; : >end",
                             stdin=subprocess.PIPE):
        equal(c.stdout.readline(), b"up\n")
        c.kill()
        c.wait()
        eventually(lambda: os.path.exists(os.path.join(home, "end")), "the end of stdin")
        check(not os.path.exists(os.path.join(home, "signal")), "a signal")
        os.unlink(os.path.join(home, "end"))


@case
def a_service_that_neither_reads_nor_writes_outlives_a_killed_call(f):
    for c in Dom0(f).start_each(f"export MARK={MARK}; echo up; exec sleep 1000", stdin=subprocess.PIPE):
        equal(c.stdout.readline(), b"up\n")
        eventually(lambda: survivors("MARK=" + MARK), "a program with the mark")
        c.kill()
        c.wait()
        time.sleep(0.2)
        check(survivors("MARK=" + MARK), "it ended")
        end_all(MARK)


@case
def a_call_sets_o_nonblock_on_what_the_caller_shares_and_restores_it_unless_killed(f):
    dom0 = Dom0(f)
    ours, theirs = os.pipe()

    def shared():
        return bool(fcntl.fcntl(ours, fcntl.F_GETFL) & os.O_NONBLOCK)
    for c in dom0.start_each("echo up; read x", stdin=ours):
        equal(c.stdout.readline(), b"up\n")
        check(shared(), "it blocks")
        os.write(theirs, b"x\n")
        c.communicate(timeout=HANG)
        check(not shared(), "not restored")
    for c in dom0.start_each("echo up; read x", stdin=ours):
        equal(c.stdout.readline(), b"up\n")
        c.kill()
        c.communicate()
        check(shared(), "restored by a dead process")
    os.close(ours)
    os.close(theirs)


# QUBES.md §5 and §7


@case
def qrexec_client_without_a_colon_is_125(f):
    equal(Dom0(f).client("true")[0], 125)


@case
def qrexec_client_starts_nothing_and_ends_at_once_with_125(f):
    dom0 = Dom0(f, state="Halted")
    equal(dom0.client("DEFAULT:nogui:true")[0], 125)
    equal(dom0.client("DEFAULT:nogui:true", qube="nobody")[0], 125)
    equal(dom0.machine.violations(), "")


@case
def a_control_message_of_4087_bytes_passes_and_one_more_hangs_for_good(f):
    dom0 = Dom0(f)
    start = "DEFAULT:nogui:: "
    equal(dom0.client(start + "x" * (4087 - len(start)))[0], 0)
    equal(dom0.machine.violations(), "")
    c = dom0.start("qrexec-client", "-d", "work", start + "x" * (4088 - len(start)))
    eventually(lambda: dom0.machine.violations() == "too-long\n", "a violation")
    c.terminate()
    try:
        c.wait(0.3)
        check(False, "SIGTERM ended it")
    except subprocess.TimeoutExpired:
        pass
    c.kill()
    c.communicate()


@case
def a_reader_that_does_not_read_stops_the_writer(f):
    """In both directions: the call keeps little, so a reader that stops makes the writer stop."""
    dom0 = Dom0(f)
    count = os.path.join(dom0.machine.home("work"), "count")
    for c in dom0.start_each("dd if=/dev/zero bs=1000 count=20000 2>count; echo end >>count"):
        time.sleep(0.5)
        check(not os.path.exists(count) or b"end" not in open(count, "rb").read(), "it has written all")
        equal(len(c.stdout.read()), 20_000_000)
        c.communicate(timeout=HANG)
        os.unlink(count)


# QUBES.md §8


@case
def qvm_check_is_0_when_the_qube_exists_and_with_running_when_it_runs(f):
    dom0 = Dom0(f)

    def code(*words):
        return dom0.call("qvm-check", *words)[0]
    equal((code("work"), code("--running", "work"), code("--quiet", "--running", "work")), (0, 0, 0))
    equal((code("nobody"), code("--running", "nobody")), (1, 1))
    for state in ("Halted", "Paused"):
        dom0.machine.set_state("work", state)
        equal((code("work"), code("--running", "work")), (0, 1))
    equal((code("--paused", "work"), code()), (0, 2))


# Faults that a test can ask for


@case
def a_qube_can_be_absent_and_start_later(f):
    dom0 = Dom0(f)
    equal(dom0.run("true", qube="late")[0], 2)
    dom0.machine.add("late", state="Halted", agent=False)
    equal(dom0.run("true", qube="late")[0], 1)
    dom0.machine.set_state("late", "Running")
    equal(dom0.run("true", qube="late")[0], 0)


@case
def a_call_can_stop_reading_and_be_cut(f):
    dom0 = Dom0(f, faults="stop-reading 100")
    for c in dom0.start_each("head -c 1000 /dev/zero; sleep 1000"):
        check(len(c.stdout.read(100)) == 100, "nothing came")
        c.kill()
        c.communicate()
    dom0.machine.set_faults("work", "cut 100")
    equal(dom0.run("head -c 1000000 /dev/zero; sleep 1000")[0], 125)


main()
