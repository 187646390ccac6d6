# SPDX-License-Identifier: GPL-2.0-or-later
"""A small virtual machine with a real systemd and every controller of cgroup v2: Debian's cloud kernel
and systemd's own files, taken from packages that are unpacked and not installed, and programs of this
machine with the libraries they need. All of it is one initramfs, so there is no disk, no module and
no partition to wait for, and nobody need be root to make it.
"""

import glob
import os
import re
import shutil
import stat
import subprocess
import tempfile

# What systemd's programs are linked with, where this machine may lack it.
PACKAGES = ["systemd", "libsystemd-shared"]
KERNEL = "linux-image-cloud-amd64"
PROGRAMS = ["bash", "cat", "chmod", "dbus-daemon", "dbus-monitor", "dbus-send", "grep", "head", "ln", "ls", "mkdir", "mkfifo", "rm",
            "sed", "setsid", "sh", "sleep", "tail", "true", "wc"]


def run(*words, **kw):
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
                          **kw).stdout


def depends(package):
    return re.findall(r"^ *\|?(?:Pre)?Depends: (\S+)$", run("apt-cache", "depends", package), re.M)


def unpacked(cache):
    """Where the packages lie unpacked; they are fetched once for each set of versions."""
    libraries = [p for p in depends("systemd") if p.startswith("lib") and p != "libc6"]
    kernel = next(p for p in depends(KERNEL) if p.startswith("linux-image-"))
    names = sorted({*PACKAGES, *libraries, kernel})
    versions = run("apt-cache", "show", "--no-all-versions", *names)
    said = " ".join(re.findall(r"^(?:Package|Version): (.*)$", versions, re.M))
    place = os.path.join(cache, "packages")
    stamp = os.path.join(place, "what")
    if os.path.exists(stamp) and open(stamp, encoding="utf-8").read() == said:
        return place
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(place)
    run("apt-get", "-q", "download", *names, cwd=place, stderr=subprocess.DEVNULL)
    for deb in glob.glob(os.path.join(place, "*.deb")):
        run("dpkg-deb", "-x", deb, place)
        os.unlink(deb)
    # Only the kernel itself is needed of the largest one.
    shutil.rmtree(os.path.join(place, "lib", "modules"), ignore_errors=True)
    with open(stamp, "w", encoding="utf-8") as f:
        f.write(said)
    return place


class Root:
    """The file system of the machine, as the archive that its kernel unpacks."""

    def __init__(self, packages):
        self.packages = packages
        self.entries = {}  # path -> (mode, content, device)
        self.programs = []
        for path in ("usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "dev", "proc", "sys",
                     "run", "tmp", "root", "var", "var/lib", "var/log", "srv"):
            self.directory(path)
        for link in ("bin", "sbin", "lib", "lib64"):
            self.link(link, "usr/" + link)
        self.device("dev/console", 5, 1)
        self.device("dev/null", 1, 3)

    def directory(self, path, mode=0o755):
        while path and path not in self.entries:
            self.entries[path] = (stat.S_IFDIR | mode, b"", (0, 0))
            path, mode = os.path.dirname(path), 0o755

    def link(self, path, to):
        self.directory(os.path.dirname(path))
        self.entries[path] = (stat.S_IFLNK | 0o777, to.encode(), (0, 0))

    def device(self, path, major, minor):
        self.entries[path] = (stat.S_IFCHR | 0o600, b"", (major, minor))

    def file(self, path, content, mode=0o644):
        """Of `/lib/…` its place is `/usr/lib/…`: the former is a link."""
        path = re.sub(r"^(bin|sbin|lib|lib64)/", r"usr/\1/", path.lstrip("/"))
        self.directory(os.path.dirname(path))
        content = content.encode() if isinstance(content, str) else content
        self.entries[path] = (stat.S_IFREG | mode, content, (0, 0))

    def program(self, path, source):
        """A program; the libraries that it is linked with come along."""
        with open(source, "rb") as f:
            self.file(path, f.read(), 0o755)
        self.programs.append(source)

    def add_libraries(self):
        """All in one call, since ldd is slow."""
        places = [os.path.join(self.packages, p) for p in
                  ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/systemd",
                   "lib/x86_64-linux-gnu/systemd", "lib/systemd")]
        text = run("ldd", *self.programs, env={**os.environ, "LD_LIBRARY_PATH": ":".join(places)})
        if "not found" in text:
            raise RuntimeError(f"libraries are missing:\n{text}")
        for found in set(re.findall(r"^\s*(?:\S+ => )?(/\S+) \(0x", text, re.M)):
            inside = found[len(self.packages):] if found.startswith(self.packages + "/") else found
            with open(found, "rb") as f:
                self.file(inside, f.read(), 0o755)

    def tree(self, path):
        """The files that the packages hold below a path."""
        for directory, _, names in os.walk(os.path.join(self.packages, path)):
            for name in names:
                source = os.path.join(directory, name)
                inside = os.path.relpath(source, self.packages)
                if os.path.islink(source):
                    self.link("usr/" + inside, os.readlink(source))
                else:
                    with open(source, "rb") as f:
                        self.file(inside, f.read())

    def write(self, path):
        """In the newc format of cpio: parents stand before what is in them."""
        self.add_libraries()
        with open(path, "wb") as out:
            for number, name in enumerate([*sorted(self.entries), "TRAILER!!!"], 1):
                mode, content, device = self.entries.get(name, (0, b"", (0, 0)))
                fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
                out.write(b"070701" + b"".join(b"%08X" % field for field in fields))
                for part in (name.encode() + b"\0", content):
                    out.write(part)
                    out.write(b"\0" * (-out.tell() % 4))


def kernel_of(packages):
    return glob.glob(os.path.join(packages, "boot", "vmlinuz-*"))[0]


EMULATOR = ["-accel", "tcg,thread=multi"]


def accelerators():
    """Options for qemu, the better ones first."""
    return [["-accel", "kvm"], EMULATOR] if os.path.exists("/dev/kvm") else [EMULATOR]


class Machine:
    """A machine that runs. `lines` yields what it prints on its console, until it ends."""

    def __init__(self, kernel, initrd, *words, memory_mib=1024, qemu="qemu-system-x86_64", choices=None):
        self.command = [qemu, "-cpu", "max", "-smp", "2", "-m", str(memory_mib), "-nodefaults", "-nographic",
                        "-no-reboot", "-serial", "stdio", "-kernel", kernel, "-initrd", initrd,
                        "-append", " ".join(["console=ttyS0", "quiet", "panic=-1", *words])]
        self.choices = list(accelerators() if choices is None else choices)
        self.killed = False
        self.start()

    def start(self):
        self.words = tempfile.TemporaryFile()  # of qemu itself; the guest's are on its standard output
        self.process = subprocess.Popen(self.command + self.choices.pop(0), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=self.words)

    def lines(self):
        """Where /dev/kvm opens and cannot run a guest, qemu aborts before the guest's first line, and
        naming a second accelerator beside kvm does not help (`failed to set MSR 0x10a`). So qemu is
        started again with the next accelerator when it ends before the guest has printed anything."""
        while True:
            spoke = False
            for line in self.process.stdout:
                spoke = True
                yield line
            self.process.wait()
            self.words.seek(0)
            yield from self.words.read().splitlines(keepends=True)
            self.words.close()
            if spoke or self.killed or not self.choices:
                return
            yield f"qemu ended before the guest spoke; again with {self.choices[0][-1]}\n".encode()
            self.start()

    def kill(self):
        self.killed = True
        self.process.kill()
