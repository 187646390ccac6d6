# SPDX-License-Identifier: GPL-2.0-or-later
"""How a command ends, and what ends with it. Cases of common.py."""

import os
import re
import signal
import subprocess
import time

from fixture import HANG, case, check, equal, eventually, survivors


@case
def signals_are_forwarded_and_end_the_tree(f):
    f.start()
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129),
                         (signal.SIGQUIT, 131)):
        mark = f"signal-mark-{number}-{os.getpid()}"
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
    mark = f"background-mark-{os.getpid()}"
    got = f.run(f"export MARK={mark}; sleep 1000 >/dev/null 2>&1 & setsid sleep 1000 >/dev/null 2>&1 & echo on")
    equal((got.returncode, got.stdout), (0, b"on\n"))
    eventually(lambda: not survivors(mark), "background children end")


@case
def a_process_without_the_output_has_a_moment_to_end(f):
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
def a_process_that_holds_the_output_is_bounded_by_the_time_out(f):
    f.start()
    mark = f"holder-mark-{os.getpid()}"
    got = f.run("-t", "2", f"export MARK={mark}; setsid sleep 1000 & echo on")
    equal((got.returncode, got.stdout), (124, b"on\n"))
    eventually(lambda: not survivors(mark), "its children end")


@case
def no_wait_ends_with_the_first_process(f):
    f.start()
    mark = f"no-wait-mark-{os.getpid()}"
    got = f.run("--no-wait", f"export MARK={mark}; setsid sleep 1000 & echo on; exit 5")
    equal((got.returncode, got.stdout), (5, b"on\n"))
    eventually(lambda: not survivors(mark), "what is left ends")


@case
def a_killed_client_ends_its_command(f):
    f.start()
    mark = f"client-kill-mark-{os.getpid()}"
    p = f.popen(f"export MARK={mark}; echo up; trap '' TERM HUP; while :; do sleep 0.1; done",
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    p.kill()
    p.wait(HANG)
    eventually(lambda: not survivors(mark), "the command ends")


@case
def a_killed_daemon_is_no_success(f):
    f.start()
    mark = f"daemon-kill-mark-{os.getpid()}"
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
