# SPDX-License-Identifier: GPL-2.0-or-later
"""A root directory of a machine's own, in which the installers find stand-ins for all that they call.

Everything there is the test's but /usr, which is the host's, read-only when the test is root's. All is
mounted in a namespace of the test's own, which takes root or a user namespace.
"""
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = os.path.join(HERE, "..", "..", "packaging", "install")
HANG = 300
QUBES = ("qvm-run", "qvm-check", "qvm-ls", "qvm-start", "qvm-shutdown")
STANDINS = (*QUBES, "rpm", "apt-get", "dpkg", "dpkg-deb", "pacman", "systemctl", "systemd-run", "qvm-remote", "sleep")
# What the scripts call besides, but for rm and rmdir: a clean-up that fails cannot be cleaned up after.
# They are this machine's own where nobody counts their calls or makes one fail.
TOOLS = ("cat", "cp", "head", "id", "mkdir", "mktemp", "mv", "sha256sum", "stat", "tail", "timeout")

# Of a mount namespace, which takes the mounts away when the last process is gone.
MOUNT = r"""
set -eu
root=$1
mount --bind /usr "$root/usr"
[ "$2" = no ] || mount -o remount,ro,bind "$root/usr"
mount --bind "$root/local" "$root/usr/local"
mount --bind "$root/share" "$root/usr/share"
mount --rbind /dev "$root/dev"
mount --bind /proc "$root/proc"
"""
INSIDE = os.environ.get("QVMREMOTE_MACHINES", "").split()  # where they are, and whether root is root


def as_root():
    return INSIDE[1] == "root"


def with_machines(program):
    """Calls `program` with a directory for machines, in this process run again in a mount namespace. What
    removes the directory is outside, where nothing is mounted below it."""
    if INSIDE:
        return program(INSIDE[0])
    who, enter = "root", ["unshare", "--mount"]
    if os.geteuid() != 0:
        who, enter = "user", [*enter, "--user", "--map-root-user"]
    if (tried := subprocess.run([*enter, "true"], capture_output=True, check=False)).returncode != 0:
        print(f"it takes root or a user namespace to enter a root directory: {tried.stderr.decode()}")
        return 77
    # Meson asks a test that takes too long to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    with tempfile.TemporaryDirectory(prefix="qvm-remote-machines-", dir="/tmp") as scratch:
        return subprocess.run([*enter, sys.executable, *sys.argv], check=False,
                              env={**os.environ, "QVMREMOTE_MACHINES": f"{scratch} {who}"}).returncode


class Machine:
    def __init__(self, path):
        self.root = path
        for name in ("usr", "local/bin", "share", "dev", "proc", "etc", "var/lib", "root", "scripts", "standin/vms", "standin/home",
                     "standin/class", "standin/units", "standin/rpm/dom0"):
            os.makedirs(os.path.join(path, name))
        for name in ("tmp", "var/tmp"):
            os.makedirs(os.path.join(path, name))
            os.chmod(os.path.join(path, name), 0o1777)
        for name in ("bin", "sbin", "lib", "lib64", "lib32", "libx32"):
            if os.path.islink("/" + name):
                os.symlink("usr/" + name, os.path.join(path, name))
        for name in ("ld.so.cache", "passwd", "group"):
            shutil.copy("/etc/" + name, os.path.join(path, "etc", name))
        self.write("etc/qubes-release", "Qubes release 4.3 (R4.3)\n")
        shutil.copy(os.path.join(HERE, "standin", "standin"), os.path.join(path, "local/standin"))
        for name in STANDINS:
            os.symlink("../standin", os.path.join(path, "local/bin", name))
        for name in sorted(os.listdir(SCRIPTS)):
            if name.endswith(".sh"):
                shutil.copy(os.path.join(SCRIPTS, name), os.path.join(path, "scripts", name))
        subprocess.run(["/bin/sh", "-c", MOUNT, "mount", path, "yes" if as_root() else "no"], check=True)

    def file(self, name):
        return os.path.join(self.root, name)

    def write(self, name, text, mode=0o644):
        os.makedirs(os.path.dirname(self.file(name)), exist_ok=True)
        with open(self.file(name), "wb") as f:
            f.write(text if isinstance(text, bytes) else text.encode())
        os.chmod(self.file(name), mode)

    def read(self, name):
        with open(self.file(name), encoding="utf-8", errors="replace") as f:
            return f.read()

    def remove(self, name):
        os.unlink(self.file(name))

    def qube(self, name, state="running", kind="AppVM"):
        self.write("standin/vms/" + name, state + "\n")
        self.write("standin/class/" + name, kind + "\n")
        os.makedirs(self.file("standin/home/" + name), exist_ok=True)
        os.makedirs(self.file("standin/rpm/" + name), exist_ok=True)

    def run(self, *words, stdin="", fault="", count=(), uid=None):
        """bash WORDS in there, as root or as some user. `fault` is of the stand-ins, `count` are TOOLS whose calls
        are noted."""
        for name in TOOLS:
            path = self.file("local/bin/" + name)
            wanted = name in count or fault.startswith(name + " ")
            if wanted != os.path.lexists(path):
                os.symlink("../standin", path) if wanted else os.unlink(path)
        become = [] if uid is None else [f"--userspec={uid}:{uid}", "--groups="]
        return subprocess.run(
            ["chroot", *become, self.root, "/usr/bin/bash", *words], cwd="/",
            env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "FAULT": fault},
            input=stdin.encode(), capture_output=True, timeout=HANG)

    def wait_for_units(self):
        """Until a unit that was started beside the test has ended."""
        end = time.monotonic() + HANG
        while os.path.exists(self.file("standin/units/qvm-remote-upgrade.service")):
            if time.monotonic() > end:
                raise AssertionError("a unit does not end")
            time.sleep(0.02)

    def calls(self):
        return self.read("standin/calls").split()

    def violations(self):
        path = self.file("standin/violations")
        return self.read("standin/violations") if os.path.exists(path) else ""

    def forget_calls(self):
        for name in os.listdir(self.file("standin")):
            if name == "calls" or name.startswith("count."):
                self.remove("standin/" + name)

    def state(self):
        """All that an installer could change: path to mode and content."""
        out = {}
        for base in ("etc", "var", "tmp", "root", "scripts", "standin"):
            for folder, folders, files in os.walk(self.file(base)):
                for name in folders + files:
                    path = os.path.join(folder, name)
                    short = os.path.relpath(path, self.root)
                    if short == "standin/calls" or short.startswith("standin/count."):
                        continue
                    mode = os.lstat(path).st_mode
                    content = b""
                    if stat.S_ISREG(mode):
                        with open(path, "rb") as f:
                            content = f.read()
                    out[short] = (oct(mode), content)
        return out

    def restore(self, state):
        """Puts back what `state` holds, as far as stand-ins and installers change it."""
        for path in sorted(set(self.state()) - set(state), reverse=True):
            full = self.file(path)
            os.rmdir(full) if os.path.isdir(full) else os.unlink(full)
        for path, (mode, content) in sorted(state.items()):
            if stat.S_ISDIR(int(mode, 8)):
                os.makedirs(self.file(path), exist_ok=True)
                os.chmod(self.file(path), int(mode, 8) & 0o7777)
            else:
                self.write(path, content, int(mode, 8) & 0o7777)
