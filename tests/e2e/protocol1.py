#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Our client with a script that plays the Python daemon step by step (COMPAT-V1.md), and its change from
protocol 1 to 2. Usage: protocol1.py BUILD-DIRECTORY [CASE...]
"""

import os
import signal
import socket
import subprocess
import threading
import time

from fixture import CLIENT, HANG, KEY, case, check, equal, eventually, main
from house import House


class Qube:
    """A HOME with a key, and the steps of the Python daemon in it."""

    def __init__(self, f, key=KEY):
        self.home = os.path.join(f.path, "home1")
        self.base = os.path.join(self.home, ".qvm-remote")
        os.makedirs(self.base, 0o700)
        with open(os.open(os.path.join(self.base, "auth.key"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as k:
            k.write(key + "\n")
        self.env = f.env(HOME=self.home, QVM_REMOTE_TRANSPORT=None, QVM_REMOTE_PLUGIN_DIR=None,
                         QVM_REMOTE_MOCK_SOCKET=None)

    def path(self, *names):
        return os.path.join(self.base, "queue", *names)

    def start(self, *words, **more):
        return subprocess.Popen([CLIENT, *words], env=dict(self.env, **more), stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def end(self, client):
        out, err = client.communicate(timeout=HANG)
        return client.returncode, out, err

    def entries(self, part="pending"):
        try:
            names = os.listdir(self.path(part))
        except FileNotFoundError:
            return []
        return [n for n in names if not n.startswith(".") and not n.endswith((".auth", ".cmd"))]

    def take(self):
        """Takes the next command like the Python daemon: list, read, check the token, move."""
        eventually(self.entries, "an entry")
        name = self.entries()[0]
        with open(self.path("pending", name), "rb") as f:
            body = f.read()
        with open(self.path("pending", name + ".auth")) as f:
            token = f.read().strip()
        said = subprocess.run(["openssl", "dgst", "-sha256", "-hmac", KEY], input=name.encode(),
                              stdout=subprocess.PIPE, check=True).stdout.split()[-1].decode()
        equal(token, said)
        os.rename(self.path("pending", name), self.path("running", name))
        os.unlink(self.path("pending", name + ".auth"))
        return name, body

    def answer(self, name, out=b"", err=b"", code="0", pause=0.0, meta=True):
        """Writes a result in the order of the Python daemon, with a pause after each step."""
        for suffix, data in ((".out", out), (".err", err), (".exit", code.encode())):
            with open(self.path("results", name + suffix), "wb", buffering=0) as f:
                half = (len(data) + 1) // 2
                f.write(data[:half])
                time.sleep(pause)
                f.write(data[half:])
        time.sleep(pause)
        if meta:
            with open(self.path("results", name + ".meta"), "w") as f:
                f.write(f"id={name}\nstarted=2026-01-01T00:00:00\nduration_ms=1\nexit_code={code}\n")
        os.unlink(self.path("running", name))

    def nothing_is_left(self):
        for part in ("pending", "running", "results"):
            equal(os.listdir(self.path(part)), [])

    def audit(self):
        with open(os.path.join(self.base, "audit.log")) as f:
            return f.read()


@case
def a_python_daemon_serves_us(f):
    q = Qube(f)
    c = q.start("echo", "a b;", "exit 127")
    name, body = q.take()
    equal(body, b"echo a b; exit 127\n")
    with open(q.path("pending", name + ".cmd"), "rb") as copy:
        equal(copy.read(), body)
    q.answer(name, b"out\n", b"err\n", "127", pause=0.1)
    equal(q.end(c), (127, b"out\n", b"err\n"))
    q.nothing_is_left()
    day = os.listdir(os.path.join(q.base, "history"))[0]
    entry = os.path.join(q.base, "history", day, name)
    kept = {n: open(os.path.join(entry, n), "rb").read() for n in os.listdir(entry)}
    equal((kept["out"], kept["err"], kept["exit"]), (b"out\n", b"err\n", b"127"))
    check(b"exit_code=127" in kept["meta"] and kept["command"].startswith(b"echo a b"), kept)
    check(f"SUBMIT id={name}" in q.audit() and f"DONE id={name} exit=127" in q.audit(), q.audit())


@case
def a_script_on_standard_input_is_the_entry(f):
    q = Qube(f)
    c = subprocess.Popen([CLIENT], env=q.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
    c.stdin.write(b"x=1\necho $x\n")
    c.stdin.close()
    name, body = q.take()
    equal(body, b"x=1\necho $x\n")
    q.answer(name, b"1\n")
    equal((c.stdout.read(), c.wait(HANG)), (b"1\n", 0))
    # A script of the largest size has no room for a newline, so it is sent unchanged.
    largest = b"echo 1;#" + b"x" * (2**20 - 8)
    c = subprocess.Popen([CLIENT], env=q.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
    c.stdin.write(largest)
    c.stdin.close()
    name, body = q.take()
    check(body == largest, "another body")
    q.answer(name, b"1\n")
    equal((c.stdout.read(), c.wait(HANG)), (b"1\n", 0))


@case
def a_client_that_can_watch_nothing_looks_now_and_then(f):
    q = Qube(f)
    env = dict(q.env, ASAN_OPTIONS=q.env.get("ASAN_OPTIONS", "") + ":detect_leaks=0")
    c = subprocess.Popen(["strace", "-fqqo/dev/null", "-e", "trace=inotify_init1", "-e",
                          "inject=inotify_init1:error=EMFILE", CLIENT, "echo x"], env=env,
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    name, body = q.take()
    equal(body, b"echo x\n")
    q.answer(name, b"x\n")
    equal((c.communicate(timeout=HANG), c.returncode), ((b"x\n", b""), 0))


@case
def a_command_that_was_killed_by_a_signal(f):
    q = Qube(f)
    c = q.start("true")
    name, _ = q.take()
    q.answer(name, code="-9")
    code, _, err = q.end(c)
    equal(code, 137)
    check(b"killed by signal 9" in err, err)


@case
def a_cut_output_is_no_success(f):
    q = Qube(f)
    c = q.start("big")
    name, _ = q.take()
    q.answer(name, b"x" * 10485760 + b"\n[truncated at 10485760 bytes]\n")
    out, err = c.communicate(timeout=HANG)
    equal((c.returncode, len(out)), (255, 10485760 + 31))
    check(b"incomplete" in err, err)


@case
def output_that_only_looks_cut_is_whole(f):
    q = Qube(f)
    c = q.start("tail")
    name, _ = q.take()
    q.answer(name, b"x\n[truncated at 10485760 bytes]\n")
    equal(q.end(c)[0], 0)


@case
def a_daemon_that_cannot_store_the_output_is_no_success(f):
    q = Qube(f)
    c = q.start("true")
    name, _ = q.take()
    with open(q.path("results", name + ".exit"), "w") as e:
        e.write("0")
    os.unlink(q.path("running", name))
    code, _, err = q.end(c)
    check(code == 255 and b"room" in err, (code, err))


@case
def an_entry_that_is_thrown_away_is_a_refusal(f):
    q = Qube(f)
    c = q.start("true")
    eventually(q.entries, "an entry")
    name = q.entries()[0]
    for suffix in ("", ".auth"):
        os.unlink(q.path("pending", name + suffix))
    code, out, err = q.end(c)
    check(code == 126 and b"authorized" in err and out == b"", (code, err))
    q.nothing_is_left()


@case
def a_time_out_withdraws_the_entry(f):
    q = Qube(f)
    code, _, err = q.end(q.start("-t", "1", "true"))
    check(code == 124 and b"never took" in err, (code, err))
    q.nothing_is_left()
    check("TIMEOUT" in q.audit(), q.audit())
    c = q.start("-t", "1", "true")
    q.take()
    code, _, err = q.end(c)
    check(code == 124 and b"may go on" in err, (code, err))
    q.nothing_is_left()


@case
def a_signal_withdraws_the_entry(f):
    q = Qube(f)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        c = q.start("true")
        eventually(q.entries, "an entry")
        c.send_signal(number)
        got, _, err = q.end(c)
        check(got == code and b"was not started" in err, (got, err))
        q.nothing_is_left()
    c = q.start("true")
    q.take()
    c.send_signal(signal.SIGHUP)
    got, _, err = q.end(c)
    check(got == 129 and b"may go on in dom0: protocol 1 does not confirm" in err, (got, err))
    q.nothing_is_left()


@case
def an_entry_is_never_seen_without_its_token(f):
    """Fault 3: a poll between the command and its token rejected a good command."""
    q = Qube(f)
    stop, bad, seen = threading.Event(), [], set()

    def poll():
        while not stop.is_set():
            for name in q.entries():
                if name in seen:
                    continue
                seen.add(name)
                try:
                    with open(q.path("pending", name + ".auth")) as a:
                        token = a.read()
                    with open(q.path("pending", name)) as b:
                        body = b.read()
                except FileNotFoundError:
                    token, body = "", ""
                if len(token) != 64 or body != "true\n":
                    bad.append((name, token, body))
    watcher = threading.Thread(target=poll)
    watcher.start()
    clients = [q.start("-t", "2", "true") for _ in range(30)]
    for c in clients:
        equal(q.end(c)[0], 124)
    stop.set()
    watcher.join()
    equal((len(seen), bad), (30, []))


@case
def forty_at_once_by_protocol_1(f):
    q = Qube(f)
    clients = [q.start(f"echo {n}") for n in range(40)]
    for _ in range(40):
        name, body = q.take()
        q.answer(name, body.split()[1] + b"\n")
    for n, c in enumerate(clients):
        equal(q.end(c)[:2], (0, f"{n}\n".encode()))
    q.nothing_is_left()


@case
def ping_and_status(f):
    q = Qube(f)
    for word in ("ping", "status"):
        c = q.start(word)
        eventually(q.entries, "an entry")
        check(not os.path.exists(q.path("pending", q.entries()[0] + ".cmd")), "a copy of a ping")
        name, body = q.take()
        check(name.startswith("ping-"), name)
        equal(body, b"true\n")
        q.answer(name)
        code, out, _ = q.end(c)
        check(code == 0 and b"protocol 1" in out, (code, out))
        q.nothing_is_left()
    check(not os.path.exists(os.path.join(q.base, "history")), "a ping was archived")


@case
def what_protocol_1_cannot_carry_is_refused_before_anything_is_left(f):
    q = Qube(f)
    for words, stdin in ((["--exec", "true"], None), (["--script", CLIENT], None), (["--dry-run", "true"], None),
                         (["cat"], b"data"), (["a\x01b"], None)):
        given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        got = subprocess.run([CLIENT, *words], env=q.env, capture_output=True, timeout=HANG, **given)
        check(got.returncode == 1 and got.stderr.startswith(b"qvm-remote: "), (words, got))
        equal(q.entries(), [])
    c = q.start("-n", "cat")
    name, _ = q.take()
    q.answer(name)
    equal(q.end(c)[0], 0)


@case
def an_agent_that_appears_gets_the_command(f):
    """The client withdraws the entry of protocol 1; otherwise a daemon that refuses entries would return 126."""
    house = House(f, "work", conf={"QVM_REMOTE_PROTOCOL": "2"})
    house.wait_for_agent("work")
    base = os.path.join(house.machine.home("work"), ".qvm-remote")
    pending = os.path.join(base, "queue", "pending")
    pin = os.path.join(base, "protocol2")

    def try_once(is_late):
        """Returns whether the client had time to withdraw its entry, and its output and exit code."""
        f.stop()
        eventually(lambda: not house.has_agent("work"), "the agent's end")
        if os.path.exists(pin):
            os.unlink(pin)  # otherwise the client would wait for an agent
        c = house.popen("work", "echo via agent", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE)
        eventually(lambda: sum(not n.startswith(".") for n in os.listdir(pending)) == 3, "an entry")
        # Stop the client, so that it sees the agent late, as on a busy machine.
        c.send_signal(signal.SIGSTOP)
        name = next(n for n in os.listdir(pending) if "." not in n)
        if is_late:
            os.rename(os.path.join(pending, name), os.path.join(pending, "." + name))
        house.start()
        eventually(lambda: house.has_agent("work"), "an agent")
        appeared = os.stat(os.path.join(base, "agent.sock")).st_mtime
        if is_late:
            os.rename(os.path.join(pending, "." + name), os.path.join(pending, name))
        time.sleep(0.05)
        c.send_signal(signal.SIGCONT)
        gone = os.path.join(pending, name)
        while os.path.exists(gone) and time.time() < appeared + HANG:
            time.sleep(0.005)
        # For half a second the agent leaves the entry to the client. A try that was delayed for
        # longer proves nothing.
        is_in_time = time.time() < appeared + 0.4
        return is_in_time, (c.communicate(timeout=HANG)[0], c.returncode)

    for is_late in (False, True):
        is_in_time, got = next((t for t in (try_once(is_late) for _ in range(30)) if t[0]), (False, None))
        check(is_in_time, "each try was late")
        equal(got, (b"via agent\n", 0))
        equal(os.listdir(pending), [])


@case
def an_entry_that_dom0_has_taken_stays_with_protocol_1(f):
    q = Qube(f)
    c = q.start("true")
    name, _ = q.take()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.join(q.base, "agent.sock"))
    listener.listen()
    time.sleep(0.3)
    q.answer(name, b"late\n")
    equal(q.end(c)[:2], (0, b"late\n"))
    listener.close()


@case
def nobody_pushes_us_back_to_protocol_1(f):
    house = House(f, "work").wait_for_agent("work")
    base = os.path.join(house.machine.home("work"), ".qvm-remote")
    pin = os.path.join(base, "protocol2")
    check(not os.path.exists(pin), "pinned before an answer")
    equal(house.run("work", "true").returncode, 0)
    check(os.path.exists(pin), "not pinned by an answer")
    f.stop()
    eventually(lambda: not house.has_agent("work"), "the agent's end")
    c = house.popen("work", "true", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    time.sleep(0.5)
    check(c.poll() is None, "it did not wait for the agent")
    equal(os.listdir(os.path.join(base, "queue", "pending")), [])
    c.send_signal(signal.SIGINT)
    check(b"before a command was sent" in c.stderr.read(), "no word")
    equal(c.wait(HANG), 130)
    # When an agent comes back in time, nothing is lost.
    c = house.popen("work", "echo back", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    house.start()
    equal((c.stdout.read(), c.wait(HANG)), (b"back\n", 0))
    # No answer was verified with the new key, so protocol 1 is allowed with it.
    got = subprocess.run([CLIENT, "key", "import"], env=house.env("work"), input=(KEY + "\n").encode(),
                         capture_output=True, timeout=HANG)
    equal(got.returncode, 0)
    check(not os.path.exists(pin), "a new key is pinned")


@case
def the_protocol_can_be_chosen(f):
    q = Qube(f)
    got = subprocess.run([CLIENT, "true"], env=dict(q.env, QVM_REMOTE_PROTOCOL="3"), capture_output=True,
                         stdin=subprocess.DEVNULL, timeout=HANG)
    check(got.returncode == 1 and b"auto, 1 or 2" in got.stderr, got)
    c = q.start("true", QVM_REMOTE_PROTOCOL="2")
    time.sleep(0.3)
    equal(q.entries(), [])
    c.kill()
    c.communicate()
    with open(os.path.join(q.base, "protocol2"), "w"):
        pass
    c = q.start("true", QVM_REMOTE_PROTOCOL="1")
    name, _ = q.take()
    q.answer(name)
    equal(q.end(c)[0], 0)


main()
