#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The known faults of the Python programs, each tried against our programs over the qvm-run transport.
An entry is tried with the agent and with the shell program.

Usage: faults.py BUILD-DIRECTORY [CASE...]
"""

import os
import signal
import subprocess
import time

from entries import token
from fixture import CLIENT, HANG, KEY, case, check, equal, eventually, main, survivors
from house import House


class Qube:
    """The queue of one qube, used as by a Python client."""

    count = 0

    def __init__(self, house, name):
        self.house, self.name = house, name
        self.base = os.path.join(house.machine.home(name), ".qvm-remote")

    def path(self, *names):
        return os.path.join(self.base, "queue", *names)

    def new_id(self):
        Qube.count += 1
        return time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}-{Qube.count:08x}"

    def write(self, part, name, data):
        with open(self.path(part, name), "wb") as f:
            f.write(data)

    def leave(self, body, name=None, key=KEY):
        name = name or self.new_id()
        self.write("pending", name, body)
        if key:
            self.write("pending", name + ".auth", token(name, key).encode())
        return name

    def has(self, part, name):
        return os.path.exists(self.path(part, name))

    def result(self, name):
        eventually(lambda: self.has("results", name + ".exit"), f"a result of {name}")
        # Wait for the last steps, which come after the result is complete.
        eventually(lambda: f"id={name} " in self.audit(), f"the end of {name}")
        out = []
        for suffix in (".exit", ".out", ".err"):
            with open(self.path("results", name + suffix), "rb") as f:
                out.append(f.read())
        return int(out[0]), out[1], out[2]

    def run(self, body, **more):
        return self.result(self.leave(body, **more))

    def audit(self):
        try:
            with open(os.path.join(self.base, "audit.log")) as f:
                return f.read()
        except FileNotFoundError:
            return ""


def house_of(f, **more):
    """Makes two qubes: `work` with our agent, and `old` without it."""
    conf = {"QVM_REMOTE_PROTOCOL": "both"}
    house = House(f, "work", conf=conf, **more)
    house.add("old", agent=False)
    house.restart()
    house.wait_for_agent("work")
    qubes = [Qube(house, name) for name in ("work", "old")]
    for q in qubes:
        eventually(lambda: q.has("results", ""), f"the queue of {q.name}")
    return house, qubes


@case
def fault_01_a_used_id_with_its_old_token_and_a_new_body_runs(f):
    house, qubes = house_of(f)
    for q in qubes:
        name = q.leave(b"echo first\n")
        equal(q.result(name)[1], b"first\n")
        for suffix in (".exit", ".out", ".err", ".meta"):
            os.unlink(q.path("results", name + suffix))
        made = os.path.join(f.path, "made")
        q.leave(f"touch {made}\n".encode(), name=name)
        eventually(lambda: q.has("results", name + ".exit"), "a result")
        with open(q.path("results", name + ".exit")) as code:
            equal(code.read(), "126")
        check(not os.path.exists(made), "it ran")


@case
def fault_02_without_a_key_file_everything_runs_unauthenticated(f):
    house, qubes = house_of(f)
    for name in ("work", "old"):
        os.unlink(os.path.join(f.root, "etc", "qubes", "remote.d", name + ".key"))
    f.daemon.send_signal(signal.SIGHUP)
    made = os.path.join(f.path, "made")
    for q in qubes:
        q.leave(f"touch {made}\n".encode(), key=None)
        q.leave(f"touch {made}\n".encode())
    # No qube has a key any more, so dom0 calls none, whatever is in its queue.
    eventually(lambda: not house.has_agent("work"), "the agent's end")
    eventually(lambda: not survivors("HOME=" + house.machine.home("old")), "the shell program's end")
    house.restart()
    time.sleep(0.5)
    check(not os.path.exists(made) and not house.has_agent("work"), "something ran")


@case
def fault_03_a_poll_between_a_command_and_its_token_rejects_a_good_command(f):
    house, qubes = house_of(f)
    for q in qubes:
        name = q.new_id()
        q.write("pending", name, b"echo pat")
        time.sleep(0.6)
        q.write("pending", name + ".auth", token(name)[:20].encode())
        q.write("pending", name, b"echo patience\n")
        time.sleep(0.6)
        check(q.has("pending", name) and not q.has("results", name + ".exit"), "taken too soon")
        q.write("pending", name + ".auth", token(name).encode())
        equal(q.result(name), (0, b"patience\n", b""))


@case
def fault_04_a_300_mb_command_is_read_before_its_size_is_looked_at(f):
    """memory.py measures the memory of the daemon."""
    house, qubes = house_of(f)
    for q in qubes:
        name = q.new_id()
        q.write("pending", name, b"")
        os.truncate(q.path("pending", name), 300_000_000)
        q.write("pending", name + ".auth", token(name).encode())
        code, out, err = q.result(name)
        check(code == 126 and out == b"" and b"exceeds" in err, (code, err))
        equal(q.run(b"echo on\n")[1], b"on\n")


@case
def fault_05_the_children_of_a_timed_out_command_keep_running(f):
    house, _ = house_of(f)
    mark = f"faults-{os.getpid()}-5"
    got = house.run("work", "-t", "1", f"export MARK={mark}; setsid sleep 1000 & sleep 1000")
    equal(got.returncode, 124)
    eventually(lambda: not survivors("MARK=" + mark), "the tree's end")


@case
def fault_06_text_of_a_qube_reaches_the_log_raw(f):
    house, qubes = house_of(f)
    nasty = "\x1b]0;owned\x07\x1b[2J\u202e\r"
    for q in qubes:
        q.leave(f"printf '%s' '{nasty}'\n".encode())
        q.run(f"printf '\\033[2J\\r\\007out'; printf '\\033[2J' >&2 # \x7f\u202e\n".encode())
        q.leave(b"true", name=q.new_id() + nasty.replace("/", "").replace("\0", "")[:6])
    house.run("work", f"printf '\\033[2J'; : {nasty}")
    with open(os.path.join(f.root, "var/log/qubes/qvm-remote.log"), "rb") as log:
        text = log.read()
    with open(os.path.join(f.root, "var/log/qvm-remote/audit.jsonl"), "rb") as audit:
        text += audit.read()
    check(b"stdout" in text, "no output in the log")
    bad = {c for c in text if (c < 0x20 and c != 0x0a) or c >= 0x7f}
    check(not bad, f"raw bytes: {bad}")


@case
def fault_07_names_and_ids_become_path_components_unchecked(f):
    house, qubes = house_of(f)
    before = sorted(p for p, _, _ in os.walk(f.root))
    for name in ("../../x", "a/b", "/etc/x", ".", "..", "-x", "a" * 32, "dom0", ""):
        for verb in ("authorize", "revoke", "connect", "disconnect"):
            got = f.dom0(verb, name, stdin=(KEY + "\n").encode())
            check(got.returncode == 1 and got.stderr.startswith(b"qvm-remote-dom0: "), (verb, name, got))
    equal(sorted(p for p, _, _ in os.walk(f.root)), before)
    for bad in ("../x", "a/b"):
        f.stop()
        got = f.dom0("--vm", bad, "--transport", "qvm-run", env=house.how)
        check(got.returncode == 1 and b"qvm-remote-dom0: " in got.stderr, got)
    house.start()
    for q in qubes:
        for junk in ("-x", ".x", "a b", "x" * 129, "e;id", "x.sh\n"):
            q.write("pending", junk, b"echo junk\n")
            q.write("pending", junk + ".auth", token(junk).encode())
        equal(q.run(b"echo on\n")[1], b"on\n")
        equal([n for n in os.listdir(q.path("results")) if "x" in n.split(".")[0]], [])


@case
def fault_08_twenty_mb_of_output_is_cut_with_exit_code_0(f):
    house, qubes = house_of(f)
    got = house.run("work", "head -c 20000000 /dev/zero")
    equal((got.returncode, len(got.stdout)), (0, 20_000_000))
    # With protocol 1 the output is cut and says so, and our client does not report success.
    code, out, _ = qubes[1].run(b"head -c 20000000 /dev/zero\n")
    check(out.endswith(b"\n[truncated at 10485760 bytes]\n"), "no mark")
    got = house.run("old", "head -c 20000000 /dev/zero")
    check(got.returncode == 255 and b"incomplete" in got.stderr, got.stderr)


@case
def fault_09_one_listed_vm_that_does_not_exist_stops_the_daemon_for_all(f):
    house = House(f, "work", conf={"QVM_REMOTE_PROTOCOL": "both"})
    equal(f.dom0("authorize", "nobody", stdin=(KEY + "\n").encode()).returncode, 0)
    f.stop()
    house.how["QVM_REMOTE_VMS"] = "nobody work"
    house.start()
    house.wait_for_agent("work")
    equal(house.run("work", "echo on").stdout, b"on\n")


@case
def fault_09_of_40_commands_sent_at_once_one_fails(f):
    house, qubes = house_of(f)
    clients = [house.popen("work", f"exit {n}", stdin=subprocess.DEVNULL) for n in range(40)]
    names = [(q, n, q.leave(f"exit {n}\n".encode())) for n in range(40) for q in qubes]
    equal([c.wait(HANG) for c in clients], list(range(40)))
    equal([q.result(name)[0] for q, n, name in names], [n for _, n, _ in names])


@case
def fault_10_key_digits_are_shown_as_a_fingerprint_and_keys_taken_on_the_command_line(f):
    house = House(f, "work").wait_for_agent("work")
    for got in (f.dom0("keys"), f.dom0("keys", "--json"), f.dom0("status"), house.run("work", "-v", "true"),
                house.run("work", "doctor"), f.dom0("authorize", "work", stdin=(KEY + "\n").encode())):
        check(KEY[:8].encode() not in got.stdout + got.stderr, got)
    check(b"SHA256:" in f.dom0("keys").stdout, "no fingerprint")
    # Old scripts do this, and get a warning.
    got = f.dom0("authorize", "work", KEY)
    check(got.returncode == 0 and b"qvm-remote-dom0: " in got.stderr, got)
    check(KEY[:8].encode() not in got.stdout + got.stderr, got)


@case
def fault_11_two_dashes_run_the_subcommand_and_not_the_command_of_dom0(f):
    house = House(f, "work").wait_for_agent("work")
    for word in ("log", "key", "ping", "status", "queue", "history"):
        got = house.run("work", "--", word, "--help")
        want = house.run("work", "bash -c '" + word + " --help'")
        equal((got.returncode, got.stdout), (want.returncode, want.stdout))
    start = [r for r in f.audit() if r["kind"] == "START"]
    equal(len(start), 12)


@case
def fault_12_neither_ctrl_c_nor_a_time_out_stops_the_command_in_dom0(f):
    house, qubes = house_of(f)
    for qube in ("work", "old"):
        for end in ("INT", "timeout"):
            mark = f"faults-{os.getpid()}-12-{qube}-{end}"
            words = ["-t", "2"] if end == "timeout" else []
            c = house.popen(qube, *words, f"export MARK={mark}; sleep 1000 & sleep 1000",
                            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if end == "INT":
                eventually(lambda: survivors("MARK=" + mark), "it runs")
                c.send_signal(signal.SIGINT)
            equal(c.wait(HANG), 130 if end == "INT" else 124)
            eventually(lambda: not survivors("MARK=" + mark), f"the tree's end: {qube} {end}")


@case
def fault_13_a_failed_move_or_removal_runs_the_entry_again(f):
    house, qubes = house_of(f)
    for q in qubes:
        ran = os.path.join(f.path, "ran-" + q.name)
        # A name in running/ that a file cannot replace.
        stuck = q.new_id()
        os.makedirs(q.path("running", stuck, "in the way"))
        q.leave(f"echo >>{ran}\n".encode(), name=stuck)
        # And a directory from which nothing can be removed after a result has come.
        equal(q.run(b"echo on\n")[1], b"on\n")
        kept = q.leave(f"echo >>{ran}; chmod 500 {q.path('running')} {q.path('pending')}\n".encode())
        eventually(lambda: q.has("results", kept + ".exit"), "a result")
        time.sleep(1)
    house.restart()
    house.wait_for_agent("work")
    for q in qubes:
        for part in ("running", "pending"):
            os.chmod(q.path(part), 0o700)
        eventually(lambda: q.run(b"echo on\n")[1] == b"on\n", "work goes on")
        with open(os.path.join(f.path, "ran-" + q.name)) as lines:
            equal(lines.read(), "\n")


@case
def fault_14_failed_writes_of_results_give_cut_output_and_exit_0(f):
    house, qubes = house_of(f)
    for q in qubes:
        for suffix in (".out", ".err", ".meta"):
            name = q.new_id()
            os.makedirs(q.path("results", "." + name + suffix, "in the way"))
            q.leave(b"echo out; echo err >&2\n", name=name)
            eventually(lambda: q.has("results", name + ".exit"), "a result")
            with open(q.path("results", name + ".exit")) as code:
                equal(code.read(), "255")
        equal(q.run(b"echo on\n")[1], b"on\n")
    check("write-failed" in f.log(), "nothing in the log")


@case
def fault_15_one_shared_temporary_file_loses_lines_of_audit_log(f):
    house, qubes = house_of(f)
    clients = [house.popen("work", f": {n}", stdin=subprocess.DEVNULL) for n in range(20)]
    names = {q: [q.leave(f": {n}\n".encode()) for n in range(20)] for q in qubes}
    equal([c.wait(HANG) for c in clients], [0] * 20)
    for q in qubes:
        for name in names[q]:
            q.result(name)
        lines = q.audit().splitlines()
        for name in names[q]:
            equal(len([x for x in lines if f" id={name} exit=0 " in x]), 1)
        check(all(x.startswith("[2") for x in lines), "a torn line")
    equal(len([x for x in lines_of(qubes[0]) if "] SUBMIT id=" in x]), 20)
    equal(len([x for x in lines_of(qubes[0]) if "] DONE id=" in x]), 20)


def lines_of(q):
    return q.audit().splitlines()


@case
def fault_16_keys_with_a_prefix_a_sign_underscores_or_other_digits_pass_the_check(f):
    house = House(f, "work").wait_for_agent("work")
    for bad in ("0x" + KEY[2:], "+" + KEY[1:], "-" + KEY[1:], KEY[:31] + "_" + KEY[32:],
                "\u0661" + KEY[1:], "\uff11" + KEY[1:], KEY[:63], KEY + "0", KEY[:32] + " " + KEY[33:], ""):
        got = f.dom0("authorize", "work", stdin=(bad + "\n").encode())
        check(got.returncode == 1 and b"64" in got.stderr, (bad, got))
        got = subprocess.run([CLIENT, "key", "import"], env=house.env("work"),
                             input=(bad + "\n").encode(), capture_output=True, timeout=HANG)
        check(got.returncode == 1 and b"64" in got.stderr, (bad, got))
    equal(house.run("work", "echo on").stdout, b"on\n")


main()
