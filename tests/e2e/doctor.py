#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""`doctor` at both ends. Each fault is injected alone, and one doctor names it with the row that stands here;
when nothing is wrong, neither names anything.
Usage: doctor.py BUILD-DIRECTORY --transport mock|qvm-run|qrexec [CASE...]
"""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time

import fixture
from fixture import BUILD, CLIENT, DAEMON, HANG, KEY, Fixture, case, check, equal, eventually
from house import HOUSES
from schema import validate

at = sys.argv.index("--transport")
Fixture.transport = sys.argv[at + 1]
del sys.argv[at : at + 2]

AGENT = os.path.join(BUILD, "tools/qvm-remote-agent/qvm-remote-agent")
CLOCK = os.path.join(BUILD, "tests/standin/clock-off.so")
VERSION = open(os.path.join(os.path.dirname(__file__), "../../version"), encoding="ascii").read().strip()
ANY = ("mock", "qvm-run", "qrexec")
DOCTORS = ("dom0", "qube")
CGROUP = None  # a cgroup that this test may divide


class Doctors:
    """A house that works, and the doctor at both ends."""

    def __init__(self, f):
        self.f = f
        if CGROUP:  # the daemon gets one of its own, as its unit has
            f.under = ["sh", "-c", 'mkdir "$0/d$$" && echo $$ >"$0/d$$/cgroup.procs" && exec "$@"', CGROUP]
        more = dict(events=True) if f.transport == "qvm-run" else {}
        self.house = HOUSES[f.transport](f, "work", **more).wait_for_agent("work")
        self.home = os.path.join(self.house.machine.home("work"), ".qvm-remote")
        self.root = f.root
        self.client, self.client_env, self.client_setup = CLIENT, {}, None
        self.plugins, self.dom0_env = None, {}

    def path(self, *names):
        return os.path.join(self.root, *names)

    def qube(self, *words, check_json=True):
        """The findings of qvm-remote doctor."""
        env = self.house.env("work", **self.client_env)
        words = ["doctor", *words, "--json"]
        got = subprocess.run([self.client, *words], env={k: v for k, v in env.items() if v is not None},
                             stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, preexec_fn=self.client_setup)
        return self.findings(got)

    def dom0_words(self):
        return ["--root", self.root, "--transport", self.f.transport, "--plugin-dir",
                self.plugins or os.path.join(BUILD, "plugins", self.f.transport)]

    def dom0(self, *words):
        """The findings of qvm-remote-dom0 doctor."""
        env = self.f.plain_env(QVM_REMOTE_MOCK_SOCKET=None, **{**self.house.how, **self.dom0_env})
        env.pop("QVM_REMOTE_TRANSPORT", None)
        got = subprocess.run([DAEMON, *self.dom0_words(), "doctor", *words, "--json"], env=env,
                             stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG)
        return self.findings(got)

    @staticmethod
    def findings(got):
        check(got.returncode in (0, 3), got)
        out = json.loads(got.stdout)
        validate("doctor", out)
        found = out["result"]["findings"]
        states = [one["state"] for one in found]
        worst = max(states, key=["ok", "warning", "broken"].index)
        equal((out["result"]["state"], out["exit_code"], got.returncode), (worst, *[3 if worst == "broken" else 0] * 2))
        return found

    def wrong(self, who):
        """What that doctor says is wrong, one text each."""
        return [text_of(one) for one in getattr(self, who)() if one["state"] != "ok" and (CGROUP or one["check"] != "cgroups")]

    def wait_until_well(self):
        last = []

        def well():
            last[:] = [one for who in DOCTORS for one in self.wrong(who)]
            return not last
        end = time.monotonic() + HANG
        while not well():
            check(time.monotonic() < end, f"something is wrong: {last}")
            time.sleep(0.1)

    def restart(self):
        self.house.restart()
        self.house.wait_for_agent("work")


def text_of(one):
    place = (one["qube"] + ": " if "qube" in one else "") + one["check"]
    return f"{one['state']} {place}: {one['cause']}" + (f"; {one['remedy']}" if one["remedy"] else "")


FAULTS = []


def fault(who, said, over=ANY):
    """A fault over these transports: the function injects it, yields, and takes it back. That doctor says this;
    `...` stands for anything."""
    def add(function):
        FAULTS.append((function.__name__, who, said, over, contextlib.contextmanager(function)))
        return function
    return add


@contextlib.contextmanager
def mode_of(path, mode):
    before = stat.S_IMODE(os.stat(path).st_mode)
    os.chmod(path, mode)
    yield
    os.chmod(path, before)


@contextlib.contextmanager
def written(path, text, mode=0o600):
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as f:
        f.write(text)
    yield
    os.unlink(path)


@contextlib.contextmanager
def moved(path):
    os.rename(path, path + "-moved")
    yield path + "-moved"
    os.rename(path + "-moved", path)


# --- in the qube ---


@fault("qube", "broken key: others have access to the key {home}/auth.key; chmod 600 {home}/auth.key")
def wrong_mode_of_the_key(d):
    with mode_of(d.home + "/auth.key", 0o640):
        yield


@fault("qube", "broken key: there is no key at {home}/auth.key; qvm-remote key gen; then, in dom0: qvm-remote-dom0 authorize")
def no_key(d):
    with moved(d.home + "/auth.key"):
        yield


@fault("qube", "broken key: the key file {home}/auth.key is a symbolic link; replace it by a file with the key")
def key_is_a_symbolic_link(d):
    with moved(d.home + "/auth.key") as there:
        os.symlink(there, d.home + "/auth.key")
        yield
        os.unlink(d.home + "/auth.key")


@fault("qube", "broken key: {home}/auth.key: this is not a key: it ends after 10 digits; a key is 64 digits of 0-9 and a-f, "
               "without 0x, sign or separators: remove the file, then `qvm-remote key import` or `qvm-remote key gen`; "
               "remove the file, then qvm-remote key gen")
def cut_key(d):
    with moved(d.home + "/auth.key"), written(d.home + "/auth.key", KEY[:10] + "\n"):
        yield


@fault("qube", "broken dom0: refused: token does not verify (not confirmed by dom0); is this qube authorized in dom0 with "
               "the key that `qvm-remote key show` prints?; in dom0: qvm-remote-dom0 doctor")
def foreign_key(d):
    with moved(d.home + "/auth.key"), written(d.home + "/auth.key", KEY[::-1] + "\n"):
        yield


@fault("dom0", "broken work: qube-key: the qube has another key than the one registered here; qvm-remote-dom0 authorize work "
               "--fetch, if that is right", over=("qvm-run",))
def foreign_key_seen_from_dom0(d):
    with moved(d.home + "/auth.key"), written(d.home + "/auth.key", KEY[::-1] + "\n"):
        yield


@fault("qube", "broken directory: others can write in {home}, so they can replace the key; chmod 700 {home}")
def home_writable_by_others(d):
    with mode_of(d.home, 0o777):
        yield


@fault("qube", "broken disk: cannot write a file in {home}: File too large; make room there, or see who changed its mode")
def nothing_can_be_written(d):
    d.client_setup = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    yield
    d.client_setup = None


@fault("qube", "broken disk: cannot ... a file in {home}: No space left on device; make room there, or see who changed its mode",
       over=("mock",))
def full_disk(d):
    # In a mount namespace, ~/.qvm-remote is a file system without room. Files of root look foreign there, so more
    # than the disk is wrong.
    script = os.path.join(d.f.path, "full")
    with open(script, "w", encoding="ascii") as f:
        f.write(f"""#!/bin/sh
exec unshare --user --map-root-user --mount sh -c '
cp "$HOME/.qvm-remote/auth.key" "$HOME/key" && mount -t tmpfs -o size=8k,mode=700 tmpfs "$HOME/.qvm-remote" &&
cp "$HOME/key" "$HOME/.qvm-remote/auth.key" && ! dd if=/dev/zero of="$HOME/.qvm-remote/rest" 2>/dev/null
exec {CLIENT} "$@"' sh "$@"
""")
    os.chmod(script, 0o700)
    d.client = script
    yield
    d.client = CLIENT


@fault("qube", "warning settings: warning: {home}/config: QVM_REMOTE_TRANPORT is not a setting and is ignored; did you mean "
               "QVM_REMOTE_TRANSPORT?; correct the name, or remove the line")
def misspelt_setting(d):
    with written(d.home + "/config", "QVM_REMOTE_TRANPORT=qrexec\n"):
        yield


@fault("qube", "broken settings: {home}/config:2: configuration line is not KEY=VALUE; correct it: no command runs before that")
def broken_settings(d):
    with written(d.home + "/config", "# ours\nnonsense\n"):
        yield


@fault("qube", "warning records: commands are not recorded: {home}/audit.log cannot be written; chmod u+rwX {home}/audit.log")
def record_that_cannot_be_written(d):
    equal(d.house.run("work", "true").returncode, 0)
    with mode_of(d.home + "/audit.log", 0o400):
        yield


@fault("qube", "warning records: others have access to {home}/audit.log; chmod go-rwx {home}/audit.log")
def record_that_others_can_read(d):
    equal(d.house.run("work", "true").returncode, 0)
    with mode_of(d.home + "/audit.log", 0o644):
        yield


def linked_queue(d):
    # A running agent would make the queue again before the link is there.
    d.f.stop()
    eventually(lambda: not d.house.has_agent("work"), "the agent's end")
    with moved(d.home + "/queue") as there:
        os.symlink(there, d.home + "/queue")
        yield
        os.unlink(d.home + "/queue")
    d.house.start()
    d.house.wait_for_agent("work")


@fault("qube", "broken queue: {home}/queue is a symbolic link; rm {home}/queue", over=("qvm-run",))
def queue_is_a_symbolic_link(d):
    yield from linked_queue(d)


@fault("dom0", "broken work: files: symbolic links in its ~/.qvm-remote: queue; remove them in the qube", over=("qvm-run",))
def queue_is_a_symbolic_link_seen_from_dom0(d):
    yield from linked_queue(d)


@fault("qube", "broken agent: no agent is installed here, and none listens at {home}/agent.sock; install the package "
               "qvm-remote in the template of this qube", over=("qvm-run",))
def no_agent(d):
    d.client = os.path.join(d.f.path, "qvm-remote")  # beside it in the build there is an agent
    shutil.copy(CLIENT, d.client)
    path = d.house.machine.read("qubes", "work", "path")
    d.house.machine.write("", "qubes", "work", "path")
    end_call(d)
    yield
    d.client = CLIENT
    d.house.machine.write(path, "qubes", "work", "path")
    end_call(d)
    d.house.wait_for_agent("work")


@fault("dom0", "warning work: agent: it has no agent, so it can use only protocol 1; install the package qvm-remote in its "
               "template", over=("qvm-run",))
def no_agent_seen_from_dom0(d):
    yield from no_agent(d)


def end_call(d):
    """Ends what runs in the qube for dom0's call; dom0 calls again within a second or two."""
    eventually(lambda: d.house.machine.running("work"), "a call")
    for _, process in d.house.machine.running("work"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    eventually(lambda: not d.house.has_agent("work"), "the agent's end")


def old_agent_in(d):
    """A directory with an agent that says an earlier version."""
    old = os.path.join(d.f.path, "old")
    os.makedirs(old, exist_ok=True)
    with open(AGENT, "rb") as f:
        program = f.read()
    wanted = b" %s\n" % VERSION.encode()
    check(program.count(wanted) == 1, "where the agent has its version")
    path = os.path.join(old, "qvm-remote-agent")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o755), "wb") as f:
        f.write(program.replace(wanted, b" 1.9.9\n"))
    return old


@fault("qube", "warning versions: the versions differ: qvm-remote {version}, the agent that runs 1.9.9, the installed agent "
               "{version}, qvm-remote-dom0 {version}; end process ... when no command runs: dom0 then starts the installed agent",
       over=("qvm-run",))
def old_agent(d):
    path = d.house.machine.read("qubes", "work", "path")
    d.house.machine.write(old_agent_in(d) + "\n", "qubes", "work", "path")
    end_call(d)
    d.house.wait_for_agent("work")
    yield
    d.house.machine.write(path, "qubes", "work", "path")
    end_call(d)
    d.house.wait_for_agent("work")


@fault("dom0", "warning work: agent: its agent is version 1.9.9, and dom0 has {version}; update qvm-remote where it is older",
       over=("qvm-run",))
def old_agent_seen_from_dom0(d):
    yield from old_agent(d)


@fault("qube", "warning clock: the clock of this qube is 3... s ahead of dom0's; dom0 refuses a command from 26 hours on; "
               "set it: sudo qvm-sync-clock")
def clock_off_by_an_hour(d):
    d.client_env = {"LD_PRELOAD": CLOCK, "ASAN_OPTIONS": "verify_asan_link_order=0"}
    yield
    d.client_env = {}


def loose_plugins(d):
    plugins = os.path.join(d.f.path, "plugins")
    shutil.copytree(os.path.join(BUILD, "plugins", d.f.transport), plugins, ignore=shutil.ignore_patterns("*.p"))
    os.chmod(os.path.join(plugins, d.f.transport + ".so"), 0o666)
    return plugins


@fault("qube", "broken transport: transport '{transport}' cannot be loaded: {path}/plugins/{transport}.so is not to be trusted: "
               "others can write to it; chmod go-w {path}/plugins/{transport}.so")
def plugin_writable_by_others(d):
    d.client_env = {"QVM_REMOTE_PLUGIN_DIR": loose_plugins(d)}
    yield
    shutil.rmtree(d.client_env["QVM_REMOTE_PLUGIN_DIR"])
    d.client_env = {}


@fault("dom0", "broken transport: transport '{transport}' cannot be loaded: {path}/plugins/{transport}.so is not to be trusted: "
               "others can write to it; chmod go-w {path}/plugins/{transport}.so")
def plugin_of_dom0_writable_by_others(d):
    d.plugins = loose_plugins(d)
    yield
    shutil.rmtree(d.plugins)
    d.plugins = None


@fault("qube", "broken transport: there is no /nowhere/qrexec-client-vm; the transport qrexec needs the packages of Qubes in "
               "this qube", over=("qrexec",))
def no_program_for_calls(d):
    d.client_env = {"QVM_REMOTE_QREXEC_CLIENT": "/nowhere/qrexec-client-vm"}
    yield
    d.client_env = {}


# --- between them ---


def stopped(d):
    d.f.stop()
    if d.f.transport == "qvm-run":
        eventually(lambda: not d.house.has_agent("work"), "the agent's end")
    yield
    d.house.start()
    d.house.wait_for_agent("work")


@fault("dom0", "broken daemon: no daemon listens at {root}/run/qvm-remote/control.sock: No such file or directory; "
               "systemctl start qvm-remote-dom0")
def daemon_not_running(d):
    yield from stopped(d)


@fault("qube", "broken agent: no agent listens at {home}/agent.sock: No such file or directory; dom0 starts the agent of a "
               "qube that it serves; in dom0: qvm-remote-dom0 doctor", over=("qvm-run",))
def daemon_not_running_seen_from_the_qube(d):
    yield from stopped(d)


@fault("qube", "broken dom0: ...", over=("mock", "qrexec"))
def daemon_not_running_seen_over_other_transports(d):
    yield from stopped(d)


@fault("dom0", "broken daemon: the daemon does not answer within 5 s; systemctl restart qvm-remote-dom0")
def daemon_that_hangs(d):
    os.kill(d.f.daemon.pid, signal.SIGSTOP)
    yield
    os.kill(d.f.daemon.pid, signal.SIGCONT)


@fault("dom0", "broken daemon: no daemon listens at {root}/run/qvm-remote/control.sock: No such file or directory; "
               "systemctl start qvm-remote-dom0")
def no_control_socket(d):
    os.unlink(d.path("run/qvm-remote/control.sock"))
    yield
    d.restart()


def authorize(d, level):
    got = d.f.dom0("authorize", "work", "--level", level, stdin=(KEY + "\n").encode())
    equal(got.returncode, 0)


@fault("qube", "broken policy: dom0's policy denies this qube everything; in dom0: qvm-remote-dom0 authorize work --level LEVEL")
def policy_that_denies(d):
    authorize(d, "deny")
    yield
    authorize(d, "full")


@fault("dom0", "warning work: policy: policy denies it everything; qvm-remote-dom0 authorize work --level LEVEL, or revoke it")
def policy_that_denies_seen_from_dom0(d):
    yield from policy_that_denies(d)


def broken_policy(d):
    with written(d.path("etc/qubes/remote-policy.d/30-bad.policy"), "work nonsense\n"):
        yield


@fault("dom0", "broken policy: {root}/etc/qubes/remote-policy.d/30-bad.policy:1:...; qvm-remote-dom0 policy lint lists all mistakes")
def policy_file_with_a_mistake(d):
    yield from broken_policy(d)


@fault("qube", "broken policy: dom0 refuses every command of this qube: dom0's policy is broken, or its remote.conf: see "
               "qvm-remote-dom0 status in dom0; in dom0: qvm-remote-dom0 doctor")
def policy_file_with_a_mistake_seen_from_the_qube(d):
    yield from broken_policy(d)


@fault("dom0", "broken policy: {root}/etc/qubes/remote-policy.d/30-loose.policy is not to be trusted: others can write to it; "
               "chmod go-w {root}/etc/qubes/remote-policy.d/30-loose.policy")
def policy_file_writable_by_others(d):
    path = d.path("etc/qubes/remote-policy.d/30-loose.policy")
    with written(path, "# empty\n"), mode_of(path, 0o666):
        yield


@fault("dom0", "broken work: policy: it has a key, and no rule allows it anything; qvm-remote-dom0 authorize work --level LEVEL")
def no_policy(d):
    with moved(d.path("etc/qubes/remote-policy.d/50-work.policy")):
        yield


# --- in dom0 ---


@fault("dom0", "broken settings: {root}/etc/qubes/remote.conf:1: configuration line is not KEY=VALUE; correct it: no request is "
               "let in before that")
def broken_remote_conf(d):
    with written(d.path("etc/qubes/remote.conf"), "nonsense\n"):
        yield


@fault("dom0", "broken other: key: it is listed and has no key; qvm-remote-dom0 authorize other")
def listed_without_a_key(d):
    with written(d.path("etc/qubes/remote.conf"), "QVM_REMOTE_VMS=\"work other\"\n"):
        yield


@fault("dom0", "warning more: served: it has a key and is not served: QVM_REMOTE_VMS does not list it; qvm-remote-dom0 connect "
               "or revoke more")
def key_that_is_not_listed(d):
    equal(d.f.dom0("authorize", "more", stdin=(KEY + "\n").encode()).returncode, 0)
    with written(d.path("etc/qubes/remote.conf"), "QVM_REMOTE_VMS=work\n"):
        yield
    equal(d.f.dom0("revoke", "more").returncode, 0)


@fault("dom0", "broken work: key: its key has expired; qvm-remote-dom0 authorize work")
def expired_key(d):
    with written(d.path("etc/qubes/remote.d/work.until"), "1\n"):
        yield


@fault("qube", "broken dom0: ...the key has expired...")
def expired_key_seen_from_the_qube(d):
    with written(d.path("etc/qubes/remote.d/work.until"), "1\n"):
        yield


@fault("dom0", "broken work: key: {root}/etc/qubes/remote.d/work.key is not to be trusted: it is a secret that others have access "
               "to; chmod 600 {root}/etc/qubes/remote.d/work.key")
def key_file_that_others_can_read(d):
    with mode_of(d.path("etc/qubes/remote.d/work.key"), 0o640):
        yield


@fault("dom0", "broken keys: {root}/etc/qubes/remote.d is not to be trusted: others can write to it; chmod go-w "
               "{root}/etc/qubes/remote.d")
def key_directory_writable_by_others(d):
    with mode_of(d.path("etc/qubes/remote.d"), 0o777):
        yield


@fault("dom0", "broken panic: nothing runs: panic is in force; qvm-remote-dom0 resume")
def panic(d):
    equal(d.f.dom0("panic").returncode, 0)
    yield
    equal(d.f.dom0("resume").returncode, 0)


@fault("dom0", "broken audit: cannot write to {root}/var/log/qvm-remote/audit.jsonl: Permission denied; nothing runs that is not "
               "recorded: see who changed it")
def audit_log_that_cannot_be_written(d):
    with mode_of(d.path("var/log/qvm-remote/audit.jsonl"), 0o400):
        yield


@fault("dom0", "broken audit: nothing can be recorded, so nothing runs: ...; make that possible again; the daemon then tries with "
               "the next request")
def audit_log_that_was_moved(d):
    with moved(d.path("var/log/qvm-remote/audit.jsonl")):
        yield


@fault("dom0", "warning log: cannot write to {root}/var/log/qubes/qvm-remote.log: Permission denied; see who changed it")
def log_that_cannot_be_written(d):
    with mode_of(d.path("var/log/qubes/qvm-remote.log"), 0o400):
        yield


@fault("dom0", "broken disk: cannot make a file in {root}/var/lib/qvm-remote: Permission denied; make room there, or see who "
               "changed its mode")
def state_that_cannot_be_written(d):
    with mode_of(d.path("var/lib/qvm-remote"), 0o500):
        yield


@fault("dom0", "warning cgroups: commands have no cgroups: ...; start the daemon by its unit, which has Delegate=yes")
def no_cgroup_was_delegated(d):
    under, d.f.under = d.f.under, []
    d.restart()
    yield
    d.f.under = under
    d.restart()


@fault("dom0", "warning clock: the clock of dom0 is ... s behind the last record of the audit log; set it: qvm-sync-clock")
def clock_that_went_back(d):
    path = d.path("var/log/qvm-remote/audit.jsonl")
    os.utime(path, (time.time() + 3600,) * 2)
    yield
    os.utime(path)


@fault("dom0", "broken qubesd: cannot connect to {machine}/qubesd.sock: Connection refused; systemctl status qubesd", over=("qvm-run",))
def dead_socket_of_qubesd(d):
    d.house.machine.qubesd.kill()
    d.house.machine.qubesd.wait()
    yield
    os.unlink(d.house.machine.file("qubesd.sock"))
    d.house.machine.start_qubesd()


@fault("dom0", "broken programs: these programs are missing or cannot be run: /nowhere/qvm-run; install the packages of Qubes that "
               "they belong to, or correct remote.conf", over=("qvm-run",))
def no_qvm_run(d):
    d.dom0_env = {"QVM_REMOTE_QVM_RUN_QVM_RUN": "/nowhere/qvm-run"}
    yield
    d.dom0_env = {}


@fault("dom0", "broken work: call: it runs and cannot be called: ...; qvm-run work true", over=("qvm-run",))
def qube_that_refuses_calls(d):
    d.house.machine.set_faults("work", "refuse")
    end_call(d)
    yield
    d.house.machine.set_faults("work", "")
    d.restart()


@fault("dom0", "broken transport: nobody listens for calls of qrexec: No such file or directory; systemctl restart qvm-remote-dom0",
       over=("qrexec",))
def no_socket_for_calls(d):
    os.unlink(d.path("run/qubes-rpc/qvmremote.Exec"))
    yield
    d.restart()


def pattern(d, said):
    text = said.format(home=d.home, root=d.root, path=d.f.path, machine=d.house.machine.path, transport=d.f.transport,
                       version=VERSION)
    return re.escape(text).replace(r"\.\.\.", ".*")


@case
def each_fault_is_named_and_nothing_else(f):
    d = Doctors(f)
    d.wait_until_well()
    failures, tried = [], 0
    for name, who, said, over, inject in FAULTS:
        if who not in DOCTORS or f.transport not in over or (name == "no_cgroup_was_delegated" and not CGROUP):
            continue
        if name == "full_disk" and subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"],
                                                  stderr=subprocess.DEVNULL, check=False).returncode != 0:
            continue
        tried += 1
        with inject(d):
            end = time.monotonic() + 20  # a daemon may notice a change only with its next call
            while True:
                got = d.wrong(who)
                if any(re.fullmatch(pattern(d, said), one) for one in got):
                    break
                if time.monotonic() > end:
                    failures.append(f"{name}: {who} says {got}, and not {said}")
                    break
                time.sleep(0.2)
        d.wait_until_well()
    print(f"{tried - len(failures)} of {tried} faults named over {f.transport}", flush=True)
    check(not failures, "\n".join(failures))


@case
def fixes_take_rights_away_and_make_directories(f):
    d = Doctors(f)
    d.wait_until_well()
    equal(d.house.run("work", "true").returncode, 0)
    os.chmod(d.home, 0o755)
    os.chmod(d.home + "/auth.key", 0o444)
    os.chmod(d.home + "/audit.log", 0o644)
    os.chmod(d.path("etc/qubes/remote.d"), 0o755)
    os.chmod(d.path("etc/qubes/remote.d/work.key"), 0o644)
    os.chmod(d.path("var/log/qvm-remote"), 0o711)
    expected = {"qube": {"directory", "key", "records"}, "dom0": {"keys", "key", "audit"}}
    if f.transport == "qvm-run":
        os.chmod(d.home + "/queue/pending", 0o755)
        expected["qube"].add("queue")
    for who in DOCTORS:
        equal({one["check"] for one in getattr(d, who)() if one["fixable"]}, expected[who])
    for who in DOCTORS:
        equal({one["check"] for one in getattr(d, who)("--fix") if one["fixed"]}, expected[who])
    for path, mode in ((d.home, 0o700), (d.home + "/auth.key", 0o400), (d.home + "/audit.log", 0o600),
                       (d.path("etc/qubes/remote.d"), 0o700), (d.path("etc/qubes/remote.d/work.key"), 0o600),
                       (d.path("var/log/qvm-remote"), 0o700)):
        equal((path, stat.S_IMODE(os.stat(path).st_mode)), (path, mode))
    d.wait_until_well()
    if f.transport == "qvm-run":
        equal(stat.S_IMODE(os.stat(d.home + "/queue/pending").st_mode), 0o700)
        f.stop()
        eventually(lambda: not d.house.has_agent("work"), "the agent's end")
        shutil.rmtree(d.home + "/queue")
        equal([one["check"] for one in d.qube("--fix") if one["fixed"]], ["queue"])
        equal(sorted(os.listdir(d.home + "/queue")), ["pending", "results", "running"])
        d.house.start()
        d.wait_until_well()
    # What others could have written to is theirs, perhaps: dom0's doctor leaves it.
    key = d.path("etc/qubes/remote.d/work.key")
    os.chmod(key, 0o666)
    found = [one for one in d.dom0("--fix") if one["check"] == "key"]
    equal([(one["state"], one["fixable"], one["fixed"]) for one in found], [("broken", False, False)])
    equal(stat.S_IMODE(os.stat(key).st_mode), 0o666)
    os.chmod(key, 0o600)
    if os.geteuid() != 0:
        # A file of somebody else is not touched.
        os.unlink(d.home + "/audit.log")
        os.symlink("/etc/passwd", d.home + "/audit.log")
        d.qube("--fix")
        equal(stat.S_IMODE(os.stat("/etc/passwd").st_mode), 0o644)


@case
def rows_say_what_the_json_says(f):
    d = Doctors(f)
    os.chmod(d.home + "/auth.key", 0o640)
    env = {k: v for k, v in d.house.env("work").items() if v is not None}
    got = subprocess.run([CLIENT, "doctor"], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False)
    equal(got.returncode, 3)
    rows = [re.split(r"  +| ", row, maxsplit=2) for row in got.stdout.decode().splitlines()]
    found = d.qube()
    equal([row[:2] for row in rows], [[one["state"], one["check"]] for one in found])
    text = next(row[2].strip() for row in rows if row[1] == "key")
    key = next(one for one in found if one["check"] == "key")
    equal(text, f"{key['cause']}; {key['remedy']} (doctor --fix does it)")
    for program, words in ((CLIENT, ("doctor", "--nonsense")), (DAEMON, ("--root", f.root, "doctor", "x"))):
        got = f.run(*words, program=program, env={"HOME": f.home})
        check(got.returncode == 1 and b"usage: " in got.stderr, got)


@case
def without_anything_set_up(f):
    found = {one["check"]: one for one in Doctors.findings(f.run("doctor", "--json", env=dict(QVM_REMOTE_MOCK_SOCKET=None)))}
    equal((found["dom0"]["state"], found["key"]["state"]), ("ok", "ok"))
    found = {one["check"]: one for one in Doctors.findings(
        f.run("doctor", "--json", env=dict(QVM_REMOTE_TRANSPORT=None, QVM_REMOTE_PLUGIN_DIR=None, QVM_REMOTE_MOCK_SOCKET=None)))}
    equal([found[name]["state"] for name in ("directory", "key", "agent")], ["broken", "broken", "broken"])
    check("dom0" not in found, found)


def mine(base):
    """Gives a cgroup to the user of the tests."""
    os.chown(base, 65534, 65534)
    for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(os.path.join(base, name), 65534, 65534)


def make_cgroup():
    """A cgroup for the daemons of this test, as systemd delegates one to its unit; nothing if that cannot be."""
    if os.geteuid() != 0:
        return None
    try:
        with open("/proc/self/mountinfo", encoding="utf-8") as f:
            point = next(line.split()[4] for line in f if " - cgroup2 " in line and line.split()[3] == "/")
        base = os.path.join(point, f"qvm-doctor-{os.getpid()}")
        for path in (base, os.path.join(base, "tests")):
            os.mkdir(path)
            mine(path)
        with open(os.path.join(base, "tests", "cgroup.procs"), "w", encoding="ascii") as f:
            f.write(str(os.getpid()))
        return base
    except (OSError, StopIteration) as why:
        print(f"no cgroup for the daemons: {why}", flush=True)
        return None


def remove_cgroup(base):
    for directory, _, _ in sorted(os.walk(base, topdown=False), reverse=False):
        with contextlib.suppress(OSError), open(os.path.join(directory, "cgroup.kill"), "w", encoding="ascii") as f:
            f.write("1")
    end = time.monotonic() + 30
    while os.path.isdir(base) and time.monotonic() < end:
        for directory, _, _ in os.walk(base, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        time.sleep(0.05)


if os.geteuid() == 0 and (child := os.fork()) != 0:
    # The child becomes an ordinary user, who cannot leave the cgroup; this process removes it.
    status = os.waitpid(child, 0)[1]
    for point in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        remove_cgroup(os.path.join(point, f"qvm-doctor-{child}"))
    sys.exit(os.waitstatus_to_exitcode(status))
CGROUP = make_cgroup()
fixture.main()
