#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian packages: what is in them, and what they do to what was there before.

    deb.py SOURCE-DIRECTORY BUILD-DIRECTORY

They are those that `make deb` left in BUILD-DIRECTORY/dist/deb; they are installed into a copy of the clean
Debian in BUILD-DIRECTORY/package, over packages that stand for the programs before them.
"""

import glob
import os
import subprocess
import sys
import tempfile

import root

SOURCE, BUILD = (os.path.abspath(p) for p in sys.argv[1:3])
CACHE = os.path.join(BUILD, "package")
sys.path.insert(0, os.path.join(SOURCE, "packaging/install"))
from uninstall import installed  # pylint: disable=wrong-import-position

TAGS = {"qvm-remote": ("qube", "transport"), "qvm-remote-dom0": ("dom0", "transport"), "qvm-remote-dev": ("devel",)}
CONFFILES = {"/etc/qubes/policy.d/80-qvm-remote.policy", "/etc/qubes/rpc-config/qvmremote.Exec"}
KEY = "0123456789abcdef" * 4 + "\n"


def check(ok, what):
    if not ok:
        raise AssertionError(what)


def package(name):
    return root.package(BUILD, name)


def documents(name):
    """What tells programs how to read --json."""
    if name == "qvm-remote-dev":
        return set()
    schemas = ["schema/" + path for path in os.listdir(os.path.join(SOURCE, "doc/schema"))]
    return {f"/usr/share/doc/{name}/{path}" for path in ("JSON.md", *schemas)}


def contents():
    for name, tags in TAGS.items():
        files = {}
        for line in root.output("dpkg-deb", "-c", package(name)).splitlines():
            mode, owner, _, _, _, path = line.split(maxsplit=5)
            check(owner == "root/root", line)
            if mode.startswith("d"):
                check(mode == "drwxr-xr-x", line)
            else:
                files[path[1:]] = mode
        # Debian's zsh looks in a directory of its own for what packages bring.
        ours = {path.removesuffix(".gz").replace("/zsh/vendor-completions/", "/zsh/site-functions/") for path in files
                if not path.startswith(("/usr/share/doc/", "/usr/share/lintian/"))}
        check(ours == installed(BUILD, *tags), f"{name} differs from Meson by {sorted(ours ^ installed(BUILD, *tags))}")
        got = {path for path in files if "/JSON" in path or "/schema/" in path}
        check(got == documents(name), f"{name}: documents differ by {sorted(got ^ documents(name))}")
        for path, mode in files.items():
            is_program = "/bin/" in path or path.startswith("/usr/lib/qvm-remote/") or path.endswith(".sh")
            check(mode == ("-rwxr-xr-x" if is_program else "-rw-r--r--"), f"{path} has {mode}")
        listed = subprocess.run(["dpkg-deb", "-I", package(name), "conffiles"], capture_output=True, text=True,
                                check=False).stdout.split()
        check(set(listed) == (CONFFILES if name == "qvm-remote-dom0" else set()), f"{name}: conffiles {listed}")
        check("python" not in root.output("dpkg-deb", "-f", package(name), "Depends"), f"{name} needs a Python")


def clean_by_lintian():
    [changes] = glob.glob(f"{BUILD}/dist/deb/*_amd64.changes")
    done = subprocess.run(["lintian", "--allow-root", "--fail-on", "error,warning", changes], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)
    check(done.returncode == 0, f"lintian: exit code {done.returncode}\n{done.stdout}")


def before(scratch, name, version, files):
    """A package of that name and version with these files."""
    tree = os.path.join(scratch, f"{name}-{version}")
    for path, text in {"/DEBIAN/control": f"Package: {name}\nVersion: {version}\nArchitecture: all\n"
                       "Maintainer: nobody <nobody@example.org>\nDescription: stands for a package before this one\n",
                       **files}.items():
        os.makedirs(os.path.dirname(tree + path), exist_ok=True)
        with open(tree + path, "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(tree + path, 0o755 if "/bin/" in path else 0o644)
    root.output("dpkg-deb", "--root-owner-group", "-b", tree, tree + ".deb")
    return tree + ".deb"


class Dom0:
    """Data of an installation that is in use."""

    policy = "/etc/qubes/remote-policy.d/50-work.policy"

    def __init__(self, where):
        self.where = where
        self.data = {"/etc/qubes/remote.d/work.key": KEY, "/etc/qubes/remote.conf": "QVM_REMOTE_VMS=work\n",
                     "/etc/qubes/policy.d/30-user.policy": "# somebody's\n",
                     "/var/log/qubes/qvm-remote.log": "[...] INFO\n", "/var/log/qubes/qvm-remote.log.1": "[...] INFO\n"}
        for path, text in self.data.items():
            where.write(path, text, 0o600)
        os.chmod(where.file("/etc/qubes/remote.d"), 0o700)

    def is_there(self, path):
        return os.path.lexists(self.where.file(path))

    def check_kept(self, when):
        for path, text in self.data.items():
            check(self.is_there(path) and self.where.read(path) == text, f"{when}: {path} stays")
            check(os.stat(self.where.file(path)).st_mode & 0o777 == 0o600, f"{when}: {path} stays 0600")

    def is_elf(self):
        with open(self.where.file("/usr/bin/qvm-remote-dom0"), "rb") as f:
            return f.read(4) == b"\x7fELF"


def dom0(where, scratch):
    files = {"/usr/bin/qvm-remote-dom0": "#!/usr/bin/python3\n", "/usr/lib/qvm-remote/old.py": "\n",
             "/usr/lib/systemd/system/qvm-remote-dom0.service": "[Service]\nExecStart=/usr/bin/qvm-remote-dom0\n"}
    where.install(before(scratch, "qvm-remote-dom0", "1.4.0", files))
    had = Dom0(where)
    said = where.install(package("qvm-remote-dom0"))
    check("work: level full" in said, f"who had all is told of: {said}")
    check(had.is_elf() and not had.is_there("/usr/lib/qvm-remote/old.py"), "the program before it is gone")
    check("level:full" in where.read(had.policy), "and has all")
    had.check_kept("upgrade from 1.x")
    check(not glob.glob(where.file("/etc/systemd/system/*/qvm-remote*")), "not enabled")

    os.unlink(where.file(had.policy))
    where.install(root.newer(package("qvm-remote-dom0"), scratch))
    check(not had.is_there(had.policy), "what somebody took away does not come back with an upgrade")
    had.check_kept("upgrade")

    where.run("systemctl", "enable", "qvm-remote-dom0")
    where.run("apt-get", "-q", "remove", "-y", "qvm-remote-dom0")
    had.check_kept("removal")
    check(not glob.glob(where.file("/etc/systemd/system/*/qvm-remote*")), "removed, and no longer enabled")
    where.install(package("qvm-remote-dom0"))
    check(not had.is_there(had.policy), "nor with a new installation")
    had.check_kept("installed again")

    where.run("apt-get", "-q", "purge", "-y", "qvm-remote-dom0")
    left = where.run("find", "/etc/qubes", "/var/lib/qvm-remote", "/var/log/qubes", "/var/log/qvm-remote", "-type", "f",
                     check=False)[1].split("\n")
    check([line for line in left if line.startswith("/") and "No such" not in line] == ["/etc/qubes/policy.d/30-user.policy"],
          f"purged, all but what is not ours: {left}")

    # The oldest one had another name.
    where.install(before(scratch, "qubes-remote-dom0", "0.9.0", {"/usr/bin/qvm-remote-dom0": "#!/bin/bash\n"}))
    had = Dom0(where)
    said = where.install(package("qvm-remote-dom0"))
    check("work: level full" in said and had.is_elf(), said)
    code, said = where.run("dpkg-query", "-W", "-f", "${db:Status-Status}", "qubes-remote-dom0", check=False)
    check(code != 0 or "installed" not in said.replace("not-installed", ""), f"the old package is {said}")
    had.check_kept("upgrade from 0.x")

    # Files that others can write are nobody's word: nothing is let in, and the package is installed all the same.
    where.run("apt-get", "-q", "purge", "-y", "qvm-remote-dom0")
    had = Dom0(where)
    os.chmod(where.file("/etc/qubes/remote.d"), 0o777)
    said = where.install(package("qvm-remote-dom0"))
    check("no qube is let in until" in said and not had.is_there(had.policy), said)
    where.run("apt-get", "-q", "purge", "-y", "qvm-remote-dom0")


def qube(where, scratch):
    where.install(before(scratch, "qubes-remote", "0.9.0", {"/usr/bin/qvm-remote": "#!/bin/bash\n"}))
    key, entry = "/srv/user/.qvm-remote/auth.key", "/srv/user/.qvm-remote/history/2026-02-18/one/exit"
    where.run("useradd", "--create-home", "--home-dir", "/srv/user", "--shell", "/bin/bash", "user")
    where.write(key, KEY, 0o600)
    where.write(entry, "0", 0o600)
    where.run("chown", "-R", "user:user", "/srv/user")
    where.install(package("qvm-remote"))
    said = where.run("runuser", "-u", "user", "--", "qvm-remote", "key", "show")
    check(said.startswith(KEY.strip()), f"the key is read: {said}")
    check(where.read(entry) == "0", "the history stays")

    mock = ["runuser", "-l", "user", "-c", "qvm-remote --transport mock 'echo hello, $QVM_REMOTE_PEER'"]
    code, said = where.run(*mock, check=False)
    check(code == 1 and "\n" not in said.strip() and "qvm-remote-dev" in said, f"without the mock, one line says so: {said}")
    where.install(package("qvm-remote-dev"))
    check(where.run(*mock) == "hello, mock\n", "and with it, it runs")
    check(not os.path.exists(where.file("/usr/bin/qvm-remote-dom0")), "without a daemon in the PATH")
    where.run("apt-get", "-q", "purge", "-y", "qvm-remote", "qvm-remote-dev")
    check(where.read(key) == KEY and where.read(entry) == "0", "a user's data stays, purged or not")


def main():
    contents()
    print("ok contents", flush=True)
    clean_by_lintian()
    print("ok clean_by_lintian", flush=True)
    if os.geteuid() != 0:
        sys.exit("deb.py: packages are installed by root")
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=CACHE) as scratch:
        where = root.clean(CACHE).copy(os.path.join(scratch, "root"))
        for case in (dom0, qube):
            case(where, scratch)
            print("ok", case.__name__, flush=True)


os.makedirs(CACHE, exist_ok=True)
main()
