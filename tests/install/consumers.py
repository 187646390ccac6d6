#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples against an installed copy: by pkg-config and the compiler, by Meson, and run.

    consumers.py SOURCE-DIRECTORY BUILD-DIRECTORY COMPILER [WORD...]

Installs into a scratch directory (DESTDIR), and nothing outside of that is written.
"""
import glob
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

SOURCE, BUILD = (os.path.abspath(p) for p in sys.argv[1:3])
COMPILER = sys.argv[3:]
KEY = "0123456789abcdef" * 4
STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]


def run(*words, **kw):
    return subprocess.run(words, timeout=300, **kw)


def must(*words, **kw):
    print("$", shlex.join(words), flush=True)
    done = run(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def check(holds, what):
    if not holds:
        sys.exit(f"FAILED: {what}")


def vectors(name):
    """NAME = HEX lines, as text or as they stand."""
    with open(os.path.join(SOURCE, "tests/vectors", name), encoding="utf-8") as f:
        rows = dict(line.rstrip("\n").split(" = ") for line in f if " = " in line)
    return rows, lambda row: bytes.fromhex(rows[row]).decode()


class Installed:
    """A copy below `top`, and how a stranger's build finds it."""

    def __init__(self, scratch):
        self.top = os.path.join(scratch, "installed")
        must("meson", "install", "-C", BUILD, "--no-rebuild", "--quiet", "--destdir", self.top)
        [pc] = glob.glob(self.top + "/**/pkgconfig/qvm-remote.pc", recursive=True)
        self.env = {**os.environ, "PKG_CONFIG_PATH": os.path.dirname(pc), "PKG_CONFIG_SYSROOT_DIR": self.top,
                    # /usr/include is no system directory when it lies below a sysroot.
                    "PKG_CONFIG_ALLOW_SYSTEM_CFLAGS": "1"}
        for tree_variable in ("CPPFLAGS", "CXXFLAGS", "CFLAGS", "CPLUS_INCLUDE_PATH", "CPATH"):
            self.env.pop(tree_variable, None)
        self.flags = shlex.split(self.pkg_config("--cflags", "--libs"))
        check("-lcrypto" in self.flags, f"pkg-config names libcrypto: {self.flags}")
        check(not any(SOURCE in word for word in self.flags), f"nothing of the source tree: {self.flags}")
        plugins = self.pkg_config("--variable=plugindir").strip()
        self.plugins = plugins if plugins.startswith(self.top) else self.top + plugins
        check(os.path.isfile(self.plugins + "/mock.so"), f"plugindir holds mock.so: {self.plugins}")
        [self.daemon] = glob.glob(self.top + "/**/bin/qvm-remote-dom0", recursive=True)

    def pkg_config(self, *words):
        return must("pkg-config", *words, "qvm-remote", env=self.env)


def build_by_hand(installed, work):
    """The one line that each example shows."""
    out = os.path.join(work, "by-hand")
    os.mkdir(out)
    for name in ("embed_client", "verify_token"):
        must(*COMPILER, "-std=c++20", *STRICT, f"{work}/{name}/{name}.cpp", *installed.flags,
             "-o", f"{out}/{name}", env=installed.env)
    # The contract of plug-ins is C's.
    must("cc", "-std=c11", *STRICT, "-shared", "-fPIC", f"{work}/custom_transport/uid.c",
         *shlex.split(installed.pkg_config("--cflags")), "-o", f"{out}/uid.so", env=installed.env)
    return {name: f"{out}/{name}" for name in ("embed_client", "verify_token", "uid.so")}


def build_by_meson(installed, work):
    made = {}
    for name, files in (("embed_client", ["embed_client"]), ("verify_token", ["verify_token"]),
                        ("custom_transport", ["uid.so"])):
        must("meson", "setup", f"{work}/{name}/build", f"{work}/{name}", "-Dwerror=true", "--wrap-mode=nodownload",
             env={**installed.env, "CXX": shlex.join(COMPILER)})
        must("meson", "compile", "-C", f"{work}/{name}/build")
        made.update((f, f"{work}/{name}/build/{f}") for f in files)
    return made


def run_verify_token(program):
    def verify(key, *words):
        done = run(program, *words, input=key, capture_output=True, text=True)
        return done.returncode, done.stdout

    _, text = vectors("protocol1.txt")
    key, name, token = text("key.lower"), text("id.usual"), text("token.lower.usual")
    check(verify(key, "1", name, token) == (0, f"verified: {name}\n"), "a token of protocol 1 verifies")
    for at in (0, 31, 63):
        damaged = token[:at] + ("0" if token[at] != "0" else "1") + token[at + 1:]
        check(verify(key, "1", name, damaged)[0] == 126, f"a token damaged at {at} is refused")
    check(verify(key, "1", name, token[:-1])[0] == 126, "a token cut short is refused")
    check(verify(text("key.upper"), "1", name, token)[0] == 126, "another key is refused")
    check(verify(key, "1", text("id.ping"), token)[0] == 126, "another command's token is refused")

    rows, text = vectors("protocol2.txt")
    key, hello, fresh = text("key"), rows["hello"], rows["challenge"]
    request = rows["token.exec"] + rows["envelope.exec"]
    code, out = verify(key, "2", hello, fresh, request)
    check(code == 0 and "argument: qvm-prefs\n" in out, "a request of protocol 2 verifies, and is read")
    for at in (0, 63, 64, len(request) // 2, len(request) - 1):
        damaged = request[:at] + ("0" if request[at] != "0" else "1") + request[at + 1:]
        check(verify(key, "2", hello, fresh, damaged) == (126, ""), f"a request damaged at digit {at} is refused")
    check(verify(key, "2", hello, fresh[:-1] + "0", request)[0] == 126, "another challenge is refused")
    check(verify("f" * 64, "2", hello, fresh, request)[0] == 126, "another key is refused")


class Daemon:
    """The installed qvm-remote-dom0 below a scratch root, ready when the block begins."""

    def __init__(self, installed, scratch, plugins, transport, peer, **env):
        self.root = os.path.join(scratch, "dom0-" + transport)
        os.mkdir(self.root, 0o700)
        must(installed.daemon, "--root", self.root, "authorize", peer, input=KEY + "\n")
        self.words = [installed.daemon, "--root", self.root, "--transport", transport, "--plugin-dir", plugins]
        self.env = {**installed.env, **env}

    def __enter__(self):
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(self.root + "/notify")
        notify.settimeout(30)
        self.process = subprocess.Popen(self.words, stdin=subprocess.DEVNULL,
                                        env={**self.env, "NOTIFY_SOCKET": self.root + "/notify"})
        check(b"READY=1" in notify.recv(4096), "the daemon comes up")
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        check(self.process.wait(30) == 0, "the daemon ends well")


def run_embed_client(program, plugins, transport, key_file, option, peer):
    done = run(program, plugins, transport, key_file, option, capture_output=True, text=True)
    want = (f"$ echo hello from $QVM_REMOTE_PEER\nhello from {peer}\nexit code 0\n"
            "$ echo and a complaint >&2; exit 3\nexit code 3\n")
    check((done.returncode, done.stdout, done.stderr) == (0, want, "and a complaint\n"), f"two commands on one connection: {done}")


def main():
    with tempfile.TemporaryDirectory(prefix="qvm-remote-install-", dir="/tmp") as scratch:
        installed = Installed(scratch)
        work = os.path.join(scratch, "examples")
        shutil.copytree(os.path.join(SOURCE, "examples"), work,
                        ignore=lambda _, names: [n for n in names if n.startswith("build")])
        key_file = os.path.join(scratch, "key")
        with open(os.open(key_file, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="ascii") as f:
            f.write(KEY + "\n")

        for made in (build_by_hand(installed, work), build_by_meson(installed, work)):
            run_verify_token(made["verify_token"])
            with tempfile.TemporaryDirectory(dir=scratch) as place:
                mock = os.path.join(place, "mock")
                os.mkdir(mock, 0o700)
                with Daemon(installed, place, installed.plugins, "mock", "work",
                            QVM_REMOTE_MOCK_DIR=mock, QVM_REMOTE_MOCK_PEERS="work"):
                    run_embed_client(made["embed_client"], installed.plugins, "mock", key_file,
                                     f"socket={mock}/work.sock", "work")
                # A transport of one's own, loaded by both ends from a directory of its own.
                own = os.path.join(place, "plugins")
                os.mkdir(own, 0o755)
                shutil.copy(made["uid.so"], own + "/uid.so")
                address, peer = f"qvm-remote-install-{os.getpid()}", f"uid-{os.getuid()}"
                with Daemon(installed, place, own, "uid", peer, QVM_REMOTE_UID_ADDRESS=address):
                    run_embed_client(made["embed_client"], own, "uid", key_file, f"address={address}", peer)
    print("all three examples, both ways")


main()
