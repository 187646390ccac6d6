#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The RPMs, by rpm itself: what is in them, and what installing, upgrading and removing them does.

    rpm.py DIRECTORY

DIRECTORY is what packaging/rpm/build made; roots are made beside it and go away. In a root there are
bash and the libraries that the programs need, and a systemctl that writes down what it is told. There
is no Python in it.
"""
import glob
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile

SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
BUILT = os.path.abspath(sys.argv[1])
KEY = "0123456789abcdef" * 4
SYSTEMCTL = "#!/bin/sh\necho \"$*\" >>/systemctl.log\n"

QUBE, DOM0, DEVEL = "qvm-remote", "qvm-remote-dom0", "qvm-remote-devel"
PLUGINS = {
    "/usr/lib64/qvm-remote": "drwxr-xr-x",
    "/usr/lib64/qvm-remote/qrexec.so": "-rwxr-xr-x",
    "/usr/lib64/qvm-remote/qvm-run.so": "-rwxr-xr-x",
    "/usr/lib/qvm-remote": "drwxr-xr-x",
}
FILES = {
    QUBE: {
        **PLUGINS,
        "/usr/bin/qvm-remote": "-rwxr-xr-x",
        "/usr/lib/qvm-remote/qvm-remote-agent": "-rwxr-xr-x",
        "/usr/lib/systemd/user/qvm-remote-agent.service": "-rw-r--r--",
        "/usr/share/qvm-remote": "drwxr-xr-x",
        "/usr/share/qvm-remote/install-dom0.sh": "-rwxr-xr-x",
        "/usr/share/qvm-remote/install-template.sh": "-rwxr-xr-x",
        "/usr/share/qvm-remote/upgrade-dom0.sh": "-rwxr-xr-x",
        "/usr/share/bash-completion/completions/qvm-remote": "-rw-r--r--",
        "/usr/share/fish/vendor_completions.d/qvm-remote.fish": "-rw-r--r--",
        "/usr/share/zsh/site-functions/_qvm-remote": "-rw-r--r--",
        "/usr/share/man/man1/qvm-remote.1.gz": "-rw-r--r-- d",
    },
    DOM0: {
        **PLUGINS,
        "/etc/qubes/policy.d/80-qvm-remote.policy": "-rw-r--r-- cn",
        "/etc/qubes/remote-policy.d": "drwxr-xr-x",
        "/etc/qubes/remote.conf": "-rw------- cn",
        "/etc/qubes/remote.d": "drwx------",
        "/etc/qubes/rpc-config/qvmremote.Exec": "-rw-r--r-- cn",
        "/usr/bin/qvm-remote-dom0": "-rwxr-xr-x",
        "/usr/lib/qvm-remote/qvmremote.Exec": "-rwxr-xr-x",
        "/usr/lib/systemd/system/qvm-remote-dom0.service": "-rw-r--r--",
        "/usr/lib/systemd/system/qvm-remote-jobs.service": "-rw-r--r--",
        "/usr/share/bash-completion/completions/qvm-remote-dom0": "-rw-r--r--",
        "/usr/share/fish/vendor_completions.d/qvm-remote-dom0.fish": "-rw-r--r--",
        "/usr/share/zsh/site-functions/_qvm-remote-dom0": "-rw-r--r--",
        "/usr/share/man/man8/qvm-remote-dom0.8.gz": "-rw-r--r-- d",
        "/var/lib/qvm-remote": "drwx------",
        "/var/log/qvm-remote": "drwx------",
    },
    DEVEL: {
        "/usr/include/qvmremote": "drwxr-xr-x",
        "/usr/lib/qvm-remote": "drwxr-xr-x",
        "/usr/lib/qvm-remote/qvm-remote-dom0": "-rwxr-xr-x",
        "/usr/lib64/pkgconfig/qvm-remote.pc": "-rw-r--r--",
        "/usr/lib64/qvm-remote": "drwxr-xr-x",
        "/usr/lib64/qvm-remote/mock.so": "-rwxr-xr-x",
    },
}
# Libraries, the shell of the scriptlets, and rpm's own abilities are found by rpm.
NEEDS = {QUBE: {"/bin/bash"}, DOM0: {"bash", "qubes-core-dom0", "systemd"},
         DEVEL: {"qvm-remote(x86-64)", "cmake(tl-expected)", "pkgconfig(libcrypto)"}}
FOUND = re.compile(r"(lib|ld-|rtld\()|rpmlib\(|/bin/sh$|/usr/bin/pkg-config$")


def run(*words, **kw):
    return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
                          stdin=subprocess.DEVNULL, **kw)


def must(*words, **kw):
    done = run(*words, **kw)
    if done.returncode != 0:
        sys.exit(f"FAILED: {words}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def check(holds, what):
    if not holds:
        sys.exit(f"FAILED: {what}")


def equal(got, want, what):
    check(got == want, f"{what}: got\n{got}\nand not\n{want}")


def write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as f:
        f.write(text)
    os.chmod(path, mode)


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def package(name):
    version, rel = (read(os.path.join(SOURCE, n)).strip() for n in ("version", "rel"))
    found = glob.glob(f"{BUILT}/RPMS/*/{name}-{version}-{rel}.*rpm")
    check(len(found) == 1, f"one package {name}-{version}-{rel}: {found}")
    return found[0]


def query(path, shape):
    return must("rpm", "-qp", "--qf", shape, path).splitlines()


class Root:
    """A directory that rpm takes for the whole system."""

    def __init__(self, scratch, name):
        self.top = os.path.join(scratch, name)
        for directory in ("dev", "proc", "tmp", "usr/bin", "etc", "home", "root"):
            os.makedirs(self.path("/" + directory))
        os.chmod(self.path("/tmp"), 0o1777)
        os.symlink("usr/bin", self.path("/bin"))
        os.mknod(self.path("/dev/null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chmod(self.path("/dev/null"), 0o666)
        self.take("/bin/bash")
        os.symlink("bash", self.path("/usr/bin/sh"))  # as on Fedora
        write(self.path("/usr/bin/systemctl"), SYSTEMCTL, 0o755)
        write(self.path("/etc/passwd"), "root:x:0:0::/root:/bin/bash\n")
        write(self.path("/etc/group"), "root:x:0:\n")
        must("rpm", *self.rpm_words(), "--initdb")

    def path(self, path):
        return self.top + path

    def take(self, program):
        """A program of this machine with its libraries."""
        shutil.copy(program, self.path(program))
        self.take_libraries(program)

    def take_libraries(self, program):
        for library in re.findall(r"(/\S+) \(0x", must("ldd", program)):
            if not os.path.exists(self.path(library)):
                os.makedirs(os.path.dirname(self.path(library)), exist_ok=True)
                shutil.copy(library, self.path(library))

    def rpm_words(self):
        return ("--root", self.top, "--dbpath", "/var/lib/rpm")

    def rpm(self, *words):
        """What the rest of Qubes brings is not here, so without dependencies; they are looked at apart."""
        out = must("rpm", *self.rpm_words(), "--nodeps", *words)
        check(not re.search(r"error|scriptlet failed", out), f"rpm {words}: {out}")
        return out

    def install(self, *names):
        for name in names:
            with tempfile.TemporaryDirectory() as place:
                archive = os.path.join(place, "cpio")
                with open(archive, "wb") as f:
                    subprocess.run(["rpm2cpio", package(name)], stdout=f, check=True, timeout=300)
                with open(archive, "rb") as f:
                    subprocess.run(["cpio", "-idm", "--quiet"], stdin=f, cwd=place, check=True, timeout=300)
                for directory, _, files in os.walk(place + "/usr"):
                    for path in (os.path.join(directory, f) for f in files):
                        with open(path, "rb") as f:
                            if f.read(4) == b"\x7fELF":
                                self.take_libraries(path)
        return self.rpm("-U", *(package(name) for name in names))

    def inside(self, *words):
        """(exit code, output) of a command in the root, with a /proc that goes away with it."""
        done = run("unshare", "--mount", "sh", "-c", 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"', self.top,
                   *words, env={"PATH": "/usr/bin:/usr/sbin:/bin:/sbin", "HOME": "/root", "LANG": "C.UTF-8"})
        return done.returncode, done.stdout

    def told(self):
        """What systemctl was told since the last time."""
        log = self.path("/systemctl.log")
        lines = read(log).splitlines() if os.path.exists(log) else []
        write(log, "")
        return lines

    def state(self, path):
        """{path: (type and mode, owner, content)} of all below it."""
        out = {}
        for directory, directories, files in os.walk(self.path(path)):
            for name in [os.path.join(directory, n) for n in directories + files]:
                st = os.lstat(name)
                content = read(name) if stat.S_ISREG(st.st_mode) else None
                out[name.removeprefix(self.top)] = (stat.filemode(st.st_mode), st.st_uid, content)
        return out

    def exists(self, path):
        return os.path.lexists(self.path(path))


def contents():
    for name, want in FILES.items():
        rows = query(package(name), "[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} "
                                    "%{FILEFLAGS:fflags}\n]")
        got = {}
        for row in rows:
            path, mode, owner, *flags = row.split(" ")
            equal(owner, "root:root", path)
            if name == DEVEL and path.startswith("/usr/include/qvmremote/"):
                equal(mode, "drwxr-xr-x" if "." not in os.path.basename(path) else "-rw-r--r--", path)
            elif not path.startswith(("/usr/share/doc/", "/usr/share/licenses/", "/usr/lib/.build-id")):
                got[path] = " ".join([mode] + [f for f in flags if f])
        equal(got, want, f"the files of {name}")
        schemas = {path.rsplit("/", 1)[1] for path in (row.split(" ")[0] for row in rows) if "/schema/" in path}
        equal(schemas, set() if name == DEVEL else set(os.listdir(os.path.join(SOURCE, "doc/schema"))), f"schemas in {name}")
        check(any(re.search(r"/LICENSE$", row.split(" ")[0]) for row in rows), f"{name} has the licence")
    headers = {p.split(" ")[0] for p in query(package(DEVEL), "[%{FILENAMES} \n]")}
    check({"/usr/include/qvmremote/qvmremote.hpp", "/usr/include/qvmremote/transport_abi.h",
           "/usr/include/qvmremote/host/client.hpp"} <= headers, "devel has the headers")
    for name in (QUBE, DOM0):
        check("mock.so" not in "".join(query(package(name), "[%{FILENAMES}\n]")), f"no mock transport in {name}")


def dependencies():
    for name, want in NEEDS.items():
        needs = {row for row in query(package(name), "[%{REQUIRENAME}\n]") if not FOUND.match(row)}
        equal(needs - {f"config({DOM0})"}, want, f"what {name} needs")
    equal(query(package(QUBE), "[%{OBSOLETENEVRS}\n]"), ["qubes-remote < 1.0.0"], "obsoleted in a qube")
    equal(query(package(DOM0), "[%{OBSOLETENEVRS}\n]"), ["qubes-remote-dom0 < 1.0.0"], "obsoleted in dom0")
    check(len(glob.glob(f"{BUILT}/SRPMS/qvm-remote-*.src.rpm")) == 1, "a source package")
    for name in (QUBE, DOM0, DEVEL):
        with open(package(name), "rb") as f:
            digest = hashlib.sha256(f.read()).hexdigest()
        with open(package(name) + ".sha256", encoding="ascii") as f:
            equal(f.read(), f"{digest}  {os.path.basename(package(name))}\n", "the digest lies beside the package")


def scriptlets():
    for name in (QUBE, DEVEL):
        equal(must("rpm", "-qp", "--scripts", package(name)), "", f"scriptlets of {name}")
    text = must("rpm", "-qp", "--scripts", package(DOM0))
    # Where systemctl is called: never to start or enable, and never so that rpm waits for the daemon,
    # which waits for its commands, of which rpm may be one.
    for line in re.findall(r"systemctl (.*?) >", text):
        check(line in ("daemon-reload", "--no-block stop qvm-remote-jobs.service") or re.fullmatch(
            r"--no-block (try-restart|disable --now) qvm-remote-dom0\.service", line), f"systemctl {line}")
    check("python" not in text, "no Python in scriptlets")


def lint():
    packages = sorted(glob.glob(f"{BUILT}/*RPMS/**/*.rpm", recursive=True))
    out = run("rpmlint", "-c", os.path.join(SOURCE, "packaging/rpm/rpmlint.toml"), *packages)
    check(out.returncode == 0 and re.search(r" 0 errors, 0 warnings", out.stdout), f"rpmlint\n{out.stdout}")


def fresh(scratch):
    root = Root(scratch, "fresh")
    root.install(DOM0)
    equal(root.told(), ["daemon-reload", "--no-block try-restart qvm-remote-dom0.service"], "systemctl")
    equal(must("rpm", *root.rpm_words(), "-V", "--nodeps", DOM0), "", "rpm finds all as it was packed")
    check(root.exists("/var/lib/qvm-remote/policy-migrated"), "from now on nothing is migrated")
    equal(root.state("/etc/qubes/remote-policy.d"), {}, "no policy by itself")
    code, out = root.inside("qvm-remote-dom0", "authorize", "--level", "monitor", "work", KEY)
    equal(code, 0, out)
    equal(root.inside("qvm-remote-dom0", "policy", "lint")[0], 0, "policy is in order")
    check("monitor" in root.inside("qvm-remote-dom0", "keys")[1], "the key is listed")

    # An upgrade keeps what was taken away, and what was changed.
    os.unlink(root.path("/etc/qubes/remote-policy.d/50-work.policy"))
    write(root.path("/etc/qubes/remote.conf"), "QVM_REMOTE_VMS=work\n", 0o600)
    kept = root.state("/etc/qubes")
    root.rpm("-U", "--replacepkgs", package(DOM0))
    equal(root.state("/etc/qubes"), kept, "an upgrade gives no qube anything, and keeps settings")
    equal(root.told(), ["daemon-reload", "--no-block try-restart qvm-remote-dom0.service"], "systemctl at an upgrade")

    # Removal leaves keys, and what the daemon wrote.
    audit = "/var/log/qvm-remote/audit.jsonl"
    write(root.path(audit), "{}\n", 0o600)
    root.rpm("-e", DOM0)
    equal(root.told(), ["--no-block disable --now qvm-remote-dom0.service",
                        "--no-block stop qvm-remote-jobs.service", "daemon-reload"],
          "systemctl at removal")
    for path in FILES[DOM0]:
        there = {"/etc/qubes/remote.d", "/var/lib/qvm-remote", "/var/log/qvm-remote"}
        check(root.exists(path) == (path in there), f"{path} after removal")
    equal(root.state("/etc/qubes/remote.d")["/etc/qubes/remote.d/work.key"], ("-rw-------", 0, KEY + "\n"), "the key")
    equal(root.state("/var/log/qvm-remote")[audit], ("-rw-------", 0, "{}\n"), "the audit log")
    equal(root.state("/etc/qubes")["/etc/qubes/remote.conf.rpmsave"], ("-rw-------", 0, "QVM_REMOTE_VMS=work\n"),
          "settings")


def qube(scratch):
    root = Root(scratch, "qube")
    root.install(QUBE)
    code, out = root.inside("qvm-remote", "--transport", "mock", "echo", "hello")
    check(code == 1 and out.count("\n") == 1 and "install qvm-remote-devel" in out,
          f"one line says what lacks: {out}")
    root.install(DEVEL)
    equal(root.inside("qvm-remote", "--transport", "mock", "echo hello, $QVM_REMOTE_PEER"), (0, "hello, mock\n"),
          "the private daemon")
    check(not root.exists("/usr/bin/qvm-remote-dom0"), "which is no command in a qube")
    # In dom0's packages' company nothing collides.
    root.install(DOM0)
    equal(must("rpm", *root.rpm_words(), "-V", "--nodeps", QUBE, DOM0, DEVEL), "", "all three together")
    root.rpm("-e", DOM0)
    equal(must("rpm", *root.rpm_words(), "-V", "--nodeps", QUBE, DEVEL), "", "what two packages own stays")
    root.rpm("-e", QUBE, DEVEL)
    for path in {**FILES[QUBE], **FILES[DEVEL]}:
        check(not root.exists(path), f"{path} after removal")


# What the programs before had in their packages. The unit was below /etc, and no configuration file.
OLD = """
Name: {name}
Version: {version}
Release: 1
Summary: The old one
License: GPL-2.0-or-later
BuildArch: noarch
%description
The old one.
%install
for file in {files}; do
    mkdir -p "%{{buildroot}}${{file%%/*}}"
    echo "old $file" >"%{{buildroot}}$file"
done
{scripts}
%files
{listed}
"""
OLD_SCRIPTS = """
%preun
[ $1 -ne 0 ] || systemctl --no-reload disable --now {name}.service
%postun
[ $1 -lt 1 ] || systemctl try-restart {name}.service
"""


def old_package(scratch, name, version, service):
    files = ["/usr/bin/" + name]
    listed = ["%attr(0755,root,root) /usr/bin/" + name]
    if service:
        files += [f"/etc/systemd/system/{name}.service", "/etc/qubes/remote.conf"]
        listed += [f"/etc/systemd/system/{name}.service",
                   "%attr(0600,root,root) %config(noreplace) /etc/qubes/remote.conf"]
    top = os.path.join(scratch, "old")
    spec = os.path.join(top, name + ".spec")
    write(spec, OLD.format(name=name, version=version, files=" ".join(files), listed="\n".join(listed),
                           scripts=OLD_SCRIPTS.format(name=name) if service else ""))
    must("rpmbuild", "--define", f"_topdir {top}", "-bb", spec)
    [path] = glob.glob(f"{top}/RPMS/noarch/{name}-{version}-1.*rpm")
    return path


def upgrade(scratch, names, version, changed):
    root = Root(scratch, f"upgrade-{version}-{'changed' if changed else 'as-shipped'}")
    qube_name, dom0_name = names
    root.rpm("-i", old_package(scratch, qube_name, version, False), old_package(scratch, dom0_name, version, True))
    # What its users have (COMPAT-V1.md), beside what its package brought.
    if changed:
        write(root.path("/etc/qubes/remote.conf"), 'QVM_REMOTE_VMS="work dev"\n', 0o600)
    write(root.path("/etc/qubes/remote.d/work.key"), KEY + "\n", 0o600)
    write(root.path("/etc/qubes/remote.d/dev.key"), KEY.upper() + "\n", 0o600)
    os.chmod(root.path("/etc/qubes/remote.d"), 0o700)
    write(root.path("/var/log/qubes/qvm-remote.log"), "[2026-02-18T10:11:12] INFO listening\n", 0o644)
    home = "/home/" + "user/.qvm-remote"
    write(root.path(home + "/auth.key"), KEY, 0o600)
    write(root.path(home + "/audit.log"), "[2026-02-18T10:11:12] SUBMIT id=x size=5B cmd=true\n", 0o600)
    for file in ("out", "err", "exit", "meta", "command"):
        write(root.path(f"{home}/history/2026-02-18/20260218-101112-7-01234567/{file}"), file)
    write(root.path(f"{home}/queue/pending/20260218-101113-7-01234567"), "true\n")
    wants = "/etc/systemd/system/multi-user.target.wants"
    os.makedirs(root.path(wants))
    os.symlink(f"/etc/systemd/system/{dom0_name}.service", root.path(f"{wants}/{dom0_name}.service"))
    data = {d: root.state(d) for d in ("/etc/qubes/remote.d", "/var/log/qubes", "/home")}

    out = root.install(QUBE, DOM0)
    told = root.told()
    for place, before in data.items():
        equal(root.state(place), before, f"{place} from {version}")
    mode, owner, text = root.state("/etc/qubes")["/etc/qubes/remote.conf"]
    equal((mode, owner), ("-rw-------", 0), "remote.conf")
    new = read(os.path.join(SOURCE, "packaging/qubes/remote.conf"))
    equal(text, 'QVM_REMOTE_VMS="work dev"\n' if changed else new, "remote.conf is theirs, or what is shipped now")
    for vm in ("work", "dev"):
        check(f"{vm} level:full allow" in read(root.path(f"/etc/qubes/remote-policy.d/50-{vm}.policy")),
              f"{vm} has what it had")
        check(re.search(rf"^{vm}: level full", out, re.M), f"and rpm's output says so: {out}")
    code, keys = root.inside("qvm-remote-dom0", "keys")
    check(code == 0 and keys.count(" full ") == 2, f"the new program reads the old keys: {keys}")
    check("Python" not in read_head(root.path("/usr/bin/qvm-remote-dom0")), "the programs are the new ones")
    check(not root.exists(f"/etc/systemd/system/{dom0_name}.service"), "the old unit no longer hides the new one")
    installed = must("rpm", *root.rpm_words(), "-qa", "--qf", "%{NAME}\n").split()
    equal(sorted(installed), sorted([QUBE, DOM0]), "the old packages are gone")
    check(not [line for line in told if re.search(r"\b(enable|start)\b", line.replace("try-restart", ""))],
          f"nothing is started: {told}")
    equal(told[-2:], ["daemon-reload", "--no-block try-restart qvm-remote-dom0.service"],
          "what runs goes over to the new program when the old files are gone")
    if dom0_name == DOM0:
        check(root.exists(f"{wants}/{dom0_name}.service"), "what was on stays on")


def read_head(path):
    with open(path, "rb") as f:
        return f.read(64).decode("latin-1")


def shadowed(scratch):
    """The old program, put there by hand, left its unit where it hides ours."""
    root = Root(scratch, "shadowed")
    write(root.path("/etc/systemd/system/qvm-remote-dom0.service"), "[Service]\n")
    out = root.install(DOM0)
    equal(out.count("hides the unit"), 1, f"one line says so: {out}")
    check(root.exists("/etc/systemd/system/qvm-remote-dom0.service"), "and the file is its owner's to remove")


def broken(scratch):
    """Policy that cannot be read: the transaction goes on, and a line says what is to be done."""
    root = Root(scratch, "broken")
    write(root.path("/etc/qubes/remote.d/work.key"), KEY + "\n", 0o600)
    os.chmod(root.path("/etc/qubes/remote.d"), 0o700)
    write(root.path("/etc/qubes/remote-policy.d/10-mine.policy"), "nonsense\n")
    out = root.install(DOM0)
    check("refused until: qvm-remote-dom0 migrate" in out, f"a line says so: {out}")
    check(not root.exists("/var/lib/qvm-remote/policy-migrated"), "and it is not taken for done")


def main():
    if os.geteuid() != 0:
        print("skipped: rpm installs below a root for root alone")
        return 77
    contents()
    dependencies()
    scriptlets()
    lint()
    with tempfile.TemporaryDirectory(prefix="root-", dir=BUILT) as scratch:
        os.chmod(scratch, 0o755)
        fresh(scratch)
        qube(scratch)
        upgrade(scratch, ("qvm-remote", "qvm-remote-dom0"), "1.1.0", True)
        upgrade(scratch, ("qvm-remote", "qvm-remote-dom0"), "1.1.1", False)
        upgrade(scratch, ("qubes-remote", "qubes-remote-dom0"), "0.9.0", True)
        shadowed(scratch)
        broken(scratch)
    print("ok")
    return 0


sys.exit(main())
