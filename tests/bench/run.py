#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Speed and size against their bars (SPEC §5): a Markdown table, JSON, and exit code 1 for a miss.

    run.py BUILD-DIRECTORY [--quick] [--json FILE] [--only WORD]

The daemon and the client are the shipped ones over the mock transport, with history, log and audit
on, below a scratch directory in the build directory: a real disk. ssh is the installed client and an
sshd unpacked into the build directory, with a user of its own in a private mount namespace when this
runs as root, else as the current user. Nothing outside the build directory and /tmp is written.
"""

import argparse
import contextlib
import glob
import hashlib
import json
import os
import platform
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
KEY = "0123456789abcdef" * 4
QUBES = [f"q{n}" for n in range(10)]
GIB = 1 << 30
HANG = 600

parser = argparse.ArgumentParser()
parser.add_argument("build")
parser.add_argument("--quick", action="store_true", help="fewer rounds and less data: a first look")
parser.add_argument("--json", metavar="FILE")
parser.add_argument("--only", metavar="WORD", help="the parts whose name holds this")
args = parser.parse_args()

BUILD = os.path.abspath(args.build)
CLIENT = os.path.join(BUILD, "qvm-remote")
DAEMON = os.path.join(BUILD, "qvm-remote-dom0")
PLUGINS = os.path.join(BUILD, "plugins", "mock")
PROGRAMS = os.path.join(BUILD, "tests", "bench")
SCRATCH = os.path.join(BUILD, "bench-scratch")
ROUNDS = 60 if args.quick else 200

rows = []


def row(what, value, unit, bar=None, ok=None, note=""):
    """`bar` is words; `ok` is None where there is none."""
    rows.append({"what": what, "value": value, "unit": unit, "bar": bar, "ok": ok, "note": note})
    print(f"  {what}: {value:.4g} {unit}" + (f" (bar {bar})" if bar else "") +
          ("" if ok is None else " ok" if ok else " MISSED"), file=sys.stderr, flush=True)


def ratio_row(what, ours, theirs, bar, note="", extra_us=0.0):
    """A ratio of medians that must not exceed `bar`; `extra_us` may be added to what it allows."""
    allowed = bar * theirs + extra_us
    row(what, ours / theirs, "×", f"≤ {bar}", ours <= allowed,
        f"{ours / 1000:.2f} ms / {theirs / 1000:.2f} ms" + ("; " + note if note else ""))


def program(name):
    return os.path.join(PROGRAMS, "bench-" + name)


def launch(*words, env=None):
    """Runs the launcher, which starts everything that is measured."""
    done = subprocess.run([program("launch"), *map(str, words)], env=env, stdout=subprocess.PIPE,
                          check=True, timeout=HANG)
    return json.loads(done.stdout)


def good(result):
    return all(r["failed"] == 0 for r in result["rows"])


class House:
    """A daemon's root and a user's HOME."""

    def __init__(self, name):
        self.path = os.path.join(SCRATCH, name)
        self.home = os.path.join(self.path, "home")
        self.root = os.path.join(self.path, "d")
        os.makedirs(os.path.join(self.home, ".qvm-remote"), 0o700)
        os.makedirs(os.path.join(self.root, "etc", "qubes", "remote.d"), 0o700)
        rules = os.path.join(self.root, "etc", "qubes", "remote-policy.d")
        os.mkdir(rules, 0o700)
        with open(os.open(os.path.join(rules, "50-bench.policy"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
            f.writelines(f"{q} level:full allow\n" for q in QUBES)
        for path, mode in ((self.root, 0o700), (os.path.join(self.root, "etc"), 0o700)):
            os.chmod(path, mode)
        self.key = os.path.join(self.home, ".qvm-remote", "auth.key")
        for path in [self.key] + [os.path.join(self.root, "etc/qubes/remote.d", q + ".key")
                                  for q in QUBES]:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
                f.write(KEY + "\n")
        # A socket's path is short: below /tmp, beside nothing else.
        self.sockets = os.path.join("/tmp", f"qvm-remote-bench-{os.getpid()}-{name}")
        os.mkdir(self.sockets, 0o700)
        self.daemon = None

    def env(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("QVM_", "QUBES_", "NOTIFY"))}
        env.update(HOME=self.home, LANG="C.UTF-8", QVM_REMOTE_PLUGIN_DIR=PLUGINS,
                   QVM_REMOTE_TRANSPORT="mock", QVM_REMOTE_MOCK_SOCKET=self.socket(QUBES[0]))
        return env

    def socket(self, qube):
        return os.path.join(self.sockets, qube + ".sock")

    def client(self, *words, stdin=None):
        """Words for the launcher: this house's client."""
        return [f"HOME={self.home}", f"QVM_REMOTE_MOCK_SOCKET={self.socket(QUBES[0])}", CLIENT,
                *words]

    def daemon_words(self, sockets=None):
        return [f"QVM_REMOTE_MOCK_DIR={sockets or self.sockets}",
                "QVM_REMOTE_MOCK_PEERS=" + " ".join(QUBES), DAEMON, "--root", self.root,
                "--transport", "mock", "--plugin-dir", PLUGINS]

    def start(self):
        notify = os.path.join(self.sockets, "notify")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(notify)
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ready.bind(notify)
        ready.settimeout(HANG)
        env = self.env()
        del env["QVM_REMOTE_MOCK_SOCKET"]
        env.update(NOTIFY_SOCKET=notify, QVM_REMOTE_MOCK_DIR=self.sockets,
                   QVM_REMOTE_MOCK_PEERS=" ".join(QUBES))
        self.daemon = subprocess.Popen([DAEMON, "--root", self.root, "--transport", "mock",
                                        "--plugin-dir", PLUGINS], env=env,
                                       stdin=subprocess.DEVNULL)
        ready.recv(64)
        ready.close()
        return self

    def stop(self):
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait(HANG)
            self.daemon = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def peak_kib(self):
        """The largest VmHWM of the daemon and of what it started that is still there."""
        pids, peak = [self.daemon.pid], 0
        for pid in pids:
            with contextlib.suppress(OSError):
                for children in glob.glob(f"/proc/{pid}/task/*/children"):
                    with open(children) as f:
                        pids += f.read().split()
                with open(f"/proc/{pid}/status") as f:
                    peak = max([peak] + [int(line.split()[1]) for line in f
                                         if line.startswith("VmHWM")])
        return peak


class Ssh:
    """sshd on loopback, and a master connection; `why` says why there is none."""

    ACCOUNT = "qvmbench"

    def __init__(self):
        self.why = self.note = None
        self.path = os.path.join(SCRATCH, "ssh")
        self.daemon = None
        try:
            self.unpack()
            self.start()
        except Exception as e:
            self.why = str(e) or type(e).__name__
            self.stop()

    def unpack(self):
        os.makedirs(self.path, 0o755, exist_ok=True)
        self.tree = os.path.join(BUILD, "bench-sshd")
        self.sshd = os.path.join(self.tree, "usr/sbin/sshd")
        if shutil.which("sshd"):
            self.sshd = shutil.which("sshd")
        elif not os.path.exists(self.sshd):
            os.makedirs(self.tree, exist_ok=True)
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": 120}
            subprocess.run(["apt-get", "download", "openssh-server", "libwrap0"], cwd=self.tree,
                           check=True, **quiet)
            for package in glob.glob(os.path.join(self.tree, "*.deb")):
                subprocess.run(["dpkg", "-x", package, self.tree], check=True, **quiet)

    def start(self):
        for name in ("host", "user"):
            key = os.path.join(self.path, name)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = os.path.join(self.path, "sshd_config")
        keys = os.path.join(self.path, "authorized_keys")
        shutil.copyfile(os.path.join(self.path, "user.pub"), keys)
        with open(config, "w") as f:
            f.write(f"Port {port}\nListenAddress 127.0.0.1\nHostKey {self.path}/host\n"
                    f"AuthorizedKeysFile {keys}\nPidFile none\nUsePAM no\nStrictModes no\n"
                    "UseDNS no\nMaxSessions 100\n")
        libraries = ":".join(glob.glob(os.path.join(self.tree, "usr/lib/*-linux-gnu")))
        env = dict(os.environ, LD_LIBRARY_PATH=libraries)
        words = [self.sshd, "-D", "-e", "-f", config]
        account = pwd.getpwuid(os.getuid()).pw_name
        own = os.geteuid() == 0 and subprocess.run(
            ["unshare", "-m", "true"], stderr=subprocess.DEVNULL).returncode == 0
        if own:
            # A user of its own that only sshd's mount namespace knows.
            account = self.ACCOUNT
            home = os.path.join("/tmp", os.path.basename(SCRATCH) + f"-{os.getpid()}-home")
            with open("/etc/passwd") as f, open(os.path.join(self.path, "passwd"), "w") as out:
                out.write("".join(line for line in f if not line.startswith("sshd:")))
                out.write("sshd:x:64998:65534::/run/sshd:/usr/sbin/nologin\n"
                          f"{account}:*:64999:65534::{home}:/bin/sh\n")
            script = ('mount --bind "$1" /etc/passwd && mount -t tmpfs none /run && '
                      'mkdir -m 755 /run/sshd && mount -t tmpfs none /tmp && '
                      'mkdir -m 700 "$2" && chown 64999:65534 "$2" && shift 2 && exec "$@"')
            # Outside /tmp everything stays as it is; sshd needs nothing from there.
            if SCRATCH.startswith("/tmp/"):
                script = script.replace("mount -t tmpfs none /tmp && ", "") \
                               .replace('mkdir -m 700 "$2"', 'mkdir -p "$2"')
                self.home = home
            words = ["unshare", "-m", "sh", "-ec", script, "sh",
                     os.path.join(self.path, "passwd"), home, *words]
            self.note = "sshd with a user of its own"
        else:
            self.note = "sshd as the current user"
        self.log = os.path.join(self.path, "sshd.log")
        with open(self.log, "w") as log:
            self.daemon = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=log,
                                           stderr=log)
        self.control = os.path.join("/tmp", f"qvm-remote-bench-{os.getpid()}.ctl")
        self.words = ["ssh", "-F", "/dev/null", "-o", f"ControlPath={self.control}"]
        self.target = f"{account}@127.0.0.1"
        master = self.words + ["-o", "ControlMaster=yes", "-o", "StrictHostKeyChecking=no",
                               "-o", f"UserKnownHostsFile={self.path}/known", "-o", "BatchMode=yes",
                               "-o", "LogLevel=ERROR", "-i", os.path.join(self.path, "user"),
                               "-p", str(port), "-fN", self.target]
        for attempt in range(50):
            time.sleep(0.1)
            if subprocess.run(master, stderr=subprocess.DEVNULL, timeout=60).returncode == 0:
                return
            if self.daemon.poll() is not None:
                break
        with open(self.log) as f:
            raise RuntimeError("ssh: " + (f.read().strip().splitlines() or ["no answer"])[-1])

    def command(self, *words):
        return [*self.words, self.target, *words]

    def stop(self):
        if self.why is None and self.daemon:
            subprocess.run(self.words + ["-O", "exit", self.target], stderr=subprocess.DEVNULL)
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait()
        self.daemon = None
        if getattr(self, "home", None):
            shutil.rmtree(self.home, ignore_errors=True)


def ms(result):
    return result["median_us"] / 1000


def bench_protocol(_):
    seconds = "0.3" if args.quick else "1"
    done = subprocess.run([program("protocol"), seconds], stdout=subprocess.PIPE, check=True,
                          timeout=HANG)
    for name, value in json.loads(done.stdout).items():
        if "64 KiB" in name:
            row(name, value["mb_s"], "MB/s")
        else:
            row(name, value["per_s"], "/s", note=f"{1e6 / value['per_s']:.2f} µs each")


def bench_start(state):
    sync = launch("--fdatasync", os.path.join(SCRATCH, "sync"), "--count", ROUNDS)
    row("fdatasync on the audit's disk", ms(sync), "ms",
        note="what one durable START costs at least")
    allowance = sync["median_us"] if ms(sync) > 0.3 else 0.0
    house, ssh = state["house"], state["ssh"]
    spot = os.path.join(house.path, "files")
    os.mkdir(spot)
    created = launch("--create", spot, "--count", 50)
    row("creating a file where the history is", ms(created), "ms",
        note="a command's record takes six" + (
            "; slow: ext4 passes over what was deleted there in the last minutes, and looks at each"
            if ms(created) > 0.1 else ""))
    words = ["--count", ROUNDS, "--warmup", 10, "--", "bash", "-c", "true",
             "--", *house.client("--version"), "--", *house.client("true")]
    if not ssh.why:
        words += ["--", *ssh.command("true")]
    done = launch(*words, env=house.env())
    bash, version, whole = (r["median_us"] for r in done["rows"][:3])
    row("bash -c true", bash / 1000, "ms", note=f"{ROUNDS} interleaved")
    ratio_row("qvm-remote --version / bash", version, bash, 2.0)
    note = f"aim 3.0; quartiles {done['rows'][2]['q1_us'] / 1000:.2f}–" \
           f"{done['rows'][2]['q3_us'] / 1000:.2f} ms"
    if allowance:
        note += "; one fdatasync allowed"
    ratio_row("qvm-remote true / bash", whole, bash, 3.5, note, allowance)
    if ssh.why:
        row("qvm-remote true / kept ssh", 0.0, "×", "≤ 0.7", False, ssh.why)
    else:
        ratio_row("qvm-remote true / kept ssh", whole, done["rows"][3]["median_us"], 0.7,
                  "aim 0.6; " + ssh.note, allowance)
    if not good(done):
        row("commands that failed", sum(r["failed"] for r in done["rows"]), "", "0", False)


def bench_embedded(state):
    house = state["house"]
    count = 200 if args.quick else 1000
    done = subprocess.run([program("embedded"), house.socket(QUBES[0]), house.key, str(count)],
                          stdout=subprocess.PIPE, check=True, env=house.env(), timeout=HANG)
    result = json.loads(done.stdout)
    sync = launch("--fdatasync", os.path.join(SCRATCH, "sync"), "--count", ROUNDS)
    allowance = sync["median_us"] if ms(sync) > 0.3 else 0.0
    ratio_row("embedded client, session kept / bash", result["ours"]["median_us"],
              result["bash"]["median_us"], 2.0, f"{count} in a row", allowance)
    if result["failed"]:
        row("commands that failed", result["failed"], "", "0", False)


def bench_many(state):
    house = state["house"]
    clients = []
    for qube in QUBES:
        clients += ["--", f"QVM_REMOTE_MOCK_SOCKET={house.socket(qube)}", CLIENT, "true"]
    took = []
    failed = 0
    for _ in range(3 if args.quick else 9):
        done = launch("--parallel", 40, "--count", 40, *clients, env=house.env())
        took.append(done["wall_us"])
        failed += sum(r["failed"] for r in done["rows"])
    took.sort()
    wall = took[len(took) // 2] / 1e6
    row("40 clients at once", wall, "s", "≤ 0.2", wall <= 0.2 and failed == 0,
        f"median of {len(took)}; {failed} failed")
    count = 300 if args.quick else 1000
    done = launch("--parallel", 10, "--count", count, *clients, env=house.env())
    bash = launch("--parallel", 10, "--count", count, "--", "bash", "-c", "true")
    rate = count / done["wall_us"] * 1e6
    row(f"{count} clients, 10 qubes, 10 in parallel", rate, "/s", "≥ 300", rate >= 300 and good(done),
        f"bash the same way: {count / bash['wall_us'] * 1e6:.0f}/s")


def bench_bulk(state):
    house, ssh = state["house"], state["ssh"]
    size = GIB // 8 if args.quick else GIB
    runs = 3 if args.quick else 5
    source = ["head", "-c", str(size), "/dev/zero"]
    sink = ["cat"]
    for name, ours, theirs in (
            ("stdout", [*house.client(" ".join(source)), "|", *sink],
             lambda: [*ssh.command(*source), "|", *sink]),
            ("stdin", [*source, "|", *house.client("cat >/dev/null")],
             lambda: [*source, "|", *ssh.command("cat >/dev/null")])):
        words = ["--count", runs, "--warmup", 1, "--", *ours]
        if not ssh.why:
            words += ["--", *theirs()]
        done = launch(*words, env=house.env())
        rate = size / done["rows"][0]["median_us"]
        client_peak = done["rows"][0]["peak_kib"][0 if name == "stdout" else 1] / 1024
        if ssh.why:
            row(f"1 GiB of {name}, of ssh's rate", 0.0, "×", "≥ 1.5", False,
                f"{rate:.0f} MB/s; {ssh.why}")
        else:
            other = size / done["rows"][1]["median_us"]
            row(f"1 GiB of {name}, of ssh's rate", rate / other, "×", "≥ 1.5",
                rate / other >= 1.5 and good(done), f"{rate:.0f} / {other:.0f} MB/s; {ssh.note}")
        daemon_peak = house.peak_kib() / 1024
        row(f"peak memory, {name}: client", client_peak, "MiB", "≤ 32", client_peak <= 32)
        row(f"peak memory, {name}: daemon", daemon_peak, "MiB", "≤ 32", daemon_peak <= 32)


def fill_history(house, days):
    """`days` days of 1000 commands each, in audit.log and in history/."""
    base = os.path.join(house.home, ".qvm-remote")
    entries = os.path.join(base, "history")
    os.mkdir(entries, 0o700)
    names = {"command": "true", "out": "", "err": "", "exit": "0",
             "meta": "id=x\nstarted=2026-01-01T00:00:00\nduration_ms=3\nexit_code=0\n"}
    per_day = min(1000, max(1, days * 1000))
    with open(os.open(os.path.join(base, "audit.log"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as log:
        for day in range(days):
            date = time.strftime("%Y-%m-%d", time.gmtime(1767225600 + day * 86400))
            where = os.path.join(entries, date)
            os.mkdir(where, 0o700)
            for name, text in names.items():
                with open(os.path.join(where, "." + name), "w") as f:
                    f.write(text)
            for n in range(per_day):
                id_ = f"{date.replace('-', '')}-000000-1-{n:08x}"
                log.write(f"[{date}T00:00:00] SUBMIT id={id_} size=4B cmd=true\n"
                          f"[{date}T00:00:00] DONE id={id_} exit=0\n")
                entry = os.path.join(where, id_)
                os.mkdir(entry, 0o700)
                for name in names:  # one inode for a day: the disk is not what is measured
                    os.link(os.path.join(where, "." + name), os.path.join(entry, name))


def fill_ids(house, count):
    """`count` remembered IDs: their START lines, and the index as the daemon would have it."""
    house.start()  # makes the tables
    house.stop()
    audit = os.path.join(house.root, "var/log/qvm-remote/audit.jsonl")
    subprocess.run([program("protocol"), "--audit", audit, str(count)], check=True)
    index = sqlite3.connect(os.path.join(house.root, "var/lib/qvm-remote/ids.sqlite"))
    expires = int(time.time()) + 72 * 3600
    hashes = sorted(hashlib.sha256(b"work\0" + b"20260102-030405-77-%08x" % n).digest()[:16]
                    for n in range(count))
    index.execute("DELETE FROM ids")
    index.executemany("INSERT INTO ids VALUES(?, ?)", ((h, expires) for h in hashes))
    index.execute("INSERT OR REPLACE INTO upto VALUES(1, ?, ?)",
                  (os.stat(audit).st_ino, os.path.getsize(audit)))
    index.commit()
    index.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    index.close()


def bench_history(_):
    days, ids = (10, 100_000) if args.quick else (100, 1_000_000)
    small, large = House("small"), House("large")
    for house, commands, used in ((small, 10, 10), (large, days * 1000, ids)):
        if commands == 10:
            fill_history(house, 0)
            with open(os.path.join(house.home, ".qvm-remote/audit.log"), "w") as log:
                for n in range(10):
                    log.write(f"[2026-01-01T00:00:00] SUBMIT id=20260101-000000-1-{n:08x} size=4B "
                              f"cmd=true\n[2026-01-01T00:00:00] DONE id=20260101-000000-1-{n:08x} "
                              "exit=0\n")
        else:
            fill_history(house, days)
        fill_ids(house, used)
    label = f"{days * 1000} in the history and {ids} IDs, to 10 of each: "
    rounds = ROUNDS // 4
    started = launch("--ready", "--count", rounds, "--warmup", 2, "--", *small.daemon_words(), "--",
                     *large.daemon_words(), env={k: v for k, v in small.env().items()
                                                if k != "QVM_REMOTE_MOCK_SOCKET"})
    with small, large:
        done = launch("--count", ROUNDS, "--warmup", 10, "--", *small.client("true"), "--",
                      *large.client("true"), env=small.env())
        listed = launch("--count", ROUNDS, "--warmup", 10, "--", *small.client("history", "10"),
                        "--", *large.client("history", "10"), env=small.env())
        peak = large.peak_kib() / 1024
    for what, result in (("client", done), ("daemon start", started), ("history 10", listed)):
        ratio_row(label + what, result["rows"][1]["median_us"], result["rows"][0]["median_us"], 1.2)
        if not good(result):
            row("commands that failed", sum(r["failed"] for r in result["rows"]), "", "0", False)
    row("peak memory with as many: daemon", peak, "MiB", "≤ 32", peak <= 32)


PARTS = {"protocol": bench_protocol, "start": bench_start, "embedded": bench_embedded,
         "many": bench_many, "bulk": bench_bulk, "history": bench_history}


def version_of(*words):
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout.strip().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


def machine():
    model = "unknown"
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")),
                     model)
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(),
            "disk": version_of("stat", "-f", "-c", "%T", BUILD), "load": os.getloadavg()[0],
            "openssl": version_of("openssl", "version"), "ssh": version_of("ssh", "-V"),
            "bash": version_of("bash", "--version"),
            "qvm-remote": version_of(CLIENT, "--version"),
            "commit": version_of("git", "-C", HERE, "rev-parse", "--short", "HEAD")}


def table():
    lines = ["| what | measured | bar | | |", "|---|---|---|---|---|"]
    for r in rows:
        mark = {None: "", True: "ok", False: "**missed**"}[r["ok"]]
        number = f"{r['value']:.0f}" if r["value"] >= 100 else f"{r['value']:.2f}"
        lines.append(f"| {r['what']} | {number} {r['unit']} | {r['bar'] or ''} | {mark} | {r['note']} |")
    return "\n".join(lines)


def main():
    if os.path.exists(os.path.join(BUILD, "build.ninja")):
        subprocess.run(["meson", "compile", "-C", BUILD, "bench-programs"], check=True,
                       stdout=sys.stderr)
    shutil.rmtree(SCRATCH, ignore_errors=True)
    os.makedirs(SCRATCH, 0o755)
    # ext4 does not use an inode again for minutes after it was freed, and looks at each such one for
    # every new file: 0.5 ms instead of 0.02 where a build or a test has just cleaned up. With this
    # attribute it puts each house into a part of the disk of its own.
    with contextlib.suppress(OSError):
        subprocess.run(["chattr", "+T", SCRATCH], stderr=subprocess.DEVNULL)
    if version_of("stat", "-f", "-c", "%T", SCRATCH) == "tmpfs":
        print("bench: the build directory is on a tmpfs: its fdatasync costs nothing, so the rows "
              "with a durable write say too little", file=sys.stderr)
    about = machine()
    parts = {name: f for name, f in PARTS.items() if not args.only or args.only in name}
    state = {"ssh": None, "house": None}
    try:
        with contextlib.ExitStack() as stack:
            if {"start", "bulk"} & parts.keys():
                state["ssh"] = Ssh()
                stack.callback(state["ssh"].stop)
            for name, part in parts.items():
                print(f"{name}:", file=sys.stderr, flush=True)
                if name in ("start", "embedded", "many", "bulk"):
                    # A daemon for each part: its peak of memory is that part's.
                    with House(name) as state["house"]:
                        part(state)
                else:
                    part(state)
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)
    missed = [r for r in rows if r["ok"] is False]
    print("; ".join(f"{k} {v}" for k, v in about.items()) + "\n")
    print(table())
    if missed:
        print(f"\n{len(missed)} bar(s) missed: " + ", ".join(r["what"] for r in missed))
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"machine": about, "quick": args.quick, "rows": rows}, f, indent=1,
                      ensure_ascii=False)
            f.write("\n")
    return 1 if missed else 0


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
sys.exit(main())
