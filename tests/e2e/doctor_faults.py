# SPDX-License-Identifier: GPL-2.0-or-later
"""The faults that doctor.py injects, each with the row by which a doctor names it."""

import contextlib
import os
import resource
import shutil
import signal
import stat
import time

from fixture import BUILD, CLIENT, KEY, equal, check, eventually

AGENT = os.path.join(BUILD, "tools/qvm-remote-agent/qvm-remote-agent")
CLOCK = os.path.join(BUILD, "tests/standin/clock-off.so")
VERSION = open(os.path.join(os.path.dirname(__file__), "../../version"), encoding="ascii").read().strip()
ANY = ("mock", "qvm-run", "qrexec")

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
