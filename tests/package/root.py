# SPDX-License-Identifier: GPL-2.0-or-later
"""Roots of Debian: a clean one, kept between runs, copies of it, apt inside them, and containers in which
they boot with a systemd of their own.

All of it is for root, and nothing outlives the program: a copy is a temporary directory, a container has
its cgroups, and both go however the program ends.
"""

import contextlib
import ctypes
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import time

HANG = 120  # seconds; nothing takes this long unless it hangs
INCLUDED = "systemd,systemd-sysv,dbus"
# Of a script that runs in somebody's terminal, nothing is to reach what is tested.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8",
               "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}
NAME = f"qvm-remote-{os.getpid()}"
# nspawn's directory for its containers, where /run is no tmpfs: it does not remove it, and says so.
NSPAWN_SAYS = "Attempted to remove disk file system under"
LIBC = ctypes.CDLL(None)
# Meson asks a test that takes too long to end: what stands in `finally` is done then.
signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))


def output(*words, **kw):
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, **kw).stdout


def sources():
    """(mirror for debootstrap, suite, lines of sources.list), as this machine's apt has them."""
    with open("/etc/os-release", encoding="utf-8") as f:
        suite = re.search(r"^VERSION_CODENAME=(\w+)$", f.read(), re.M)[1]
    rows = [row.split() for row in
            output("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages",
                   "Origin: Debian").splitlines()]
    lines = [f"deb {uri} {release} {component}" for uri, release, component in rows if release.startswith(suite)]
    mirrors = [uri for uri, release, component in rows if (release, component) == (suite, "main")]
    if not mirrors:
        raise RuntimeError(f"apt knows no mirror of {suite}: is `apt-get update` done?")
    return mirrors[0], suite, lines


def apt_options():
    """What this machine's apt was told of reaching its mirror."""
    wanted = re.compile(r"^Acquire::(Check-|Retries|https?::(Proxy|Timeout|No-Cache))")
    return [line for line in output("apt-config", "dump").splitlines() if wanted.match(line)]


def package(build, name):
    [path] = glob.glob(f"{build}/dist/deb/{name}_*.deb")
    return path


def newer(path, scratch, name="newer"):
    """The same package with a higher version, as NAME.deb."""
    tree = os.path.join(scratch, name)
    output("dpkg-deb", "-R", path, tree)
    version = output("dpkg-deb", "-f", path, "Version").strip()
    with open(tree + "/DEBIAN/control", encoding="utf-8") as f:
        text = f.read()
    with open(tree + "/DEBIAN/control", "w", encoding="utf-8") as f:
        f.write(text.replace(f"Version: {version}\n", f"Version: {version}.1\n"))
    output("dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, tree + ".deb")
    return tree + ".deb"


class Root:
    """A directory that holds a system."""

    def __init__(self, path):
        self.path = path

    def file(self, *names):
        return os.path.join(self.path, *(name.lstrip("/") for name in names))

    def write(self, name, text, mode=0o644):
        os.makedirs(os.path.dirname(self.file(name)), exist_ok=True)
        with open(self.file(name), "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(self.file(name), mode)

    def read(self, name):
        with open(self.file(name), encoding="utf-8") as f:
            return f.read()

    def run(self, *words, check=True):
        """In a container that nothing was booted in, on this machine's network. All that it prints, and without
        `check` the exit code before it."""
        groups = Groups()
        try:
            done = subprocess.run(
                ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--resolv-conf=copy-host", "--pipe",
                 *(f"--setenv={k}={v}" for k, v in ENVIRONMENT.items()), "-M", NAME, "-D", self.path, *words],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=10 * HANG, check=False, preexec_fn=groups.enter)
        finally:
            groups.remove()
        said = re.sub(rf"^{NSPAWN_SAYS}.*\n\n?", "", done.stdout, flags=re.M)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}\n{said}")
        return said if check else (done.returncode, said)

    def copy(self, path):
        output("cp", "-a", "--reflink=auto", self.path, path)
        return Root(path)

    def put(self, *packages):
        """The packages as files in the root, and their names there."""
        for path in packages:
            shutil.copy(path, self.file("srv"))
        return ["/srv/" + os.path.basename(path) for path in packages]

    def install(self, *packages):
        """With apt alone, as a person would: what they need comes from the mirror."""
        return self.run("apt-get", "-q", "install", "-y", "--no-install-recommends", *self.put(*packages))


def clean(cache):
    """A clean Debian of this machine's release. It is made once; its lists are brought up to date each time."""
    mirror, suite, lines = sources()
    root = Root(os.path.join(cache, "root-" + suite))
    stamp = root.path + ".made"
    said = f"{mirror} {suite} {INCLUDED}\n"
    if not os.path.exists(stamp) or open(stamp, encoding="utf-8").read() != said:
        shutil.rmtree(root.path, ignore_errors=True)
        os.makedirs(cache, exist_ok=True)
        environment = dict(os.environ)
        for line in apt_options():
            if found := re.match(r'Acquire::(https?)::Proxy "(.+)"', line):
                environment.setdefault(found[1] + "_proxy", found[2])
        output("debootstrap", "--variant=minbase", "--include=" + INCLUDED, suite, root.path, mirror, env=environment)
        root.write("/etc/dpkg/dpkg.cfg.d/fast", "force-unsafe-io\n")
        with open(stamp, "w", encoding="utf-8") as f:
            f.write(said)
    root.write("/etc/apt/sources.list", "\n".join(lines) + "\n")
    root.write("/etc/apt/apt.conf.d/90test", "\n".join(
        [*apt_options(), 'Acquire::Languages "none";', 'Binary::apt::APT::Keep-Downloaded-Packages "true";',
         'APT::Keep-Downloaded-Packages "true";', 'APT::Sandbox::User "root";']) + "\n")
    root.run("apt-get", "-q", "update")
    return root


class Groups:
    """A cgroup for the container in each hierarchy that systemd uses: two containers that are started from
    the same one would share theirs."""

    def __init__(self):
        top = "/sys/fs/cgroup"
        places = [top] if os.path.exists(top + "/cgroup.procs") else [top + "/systemd", top + "/unified"]
        self.paths = [os.path.join(place, NAME) for place in places if os.path.exists(place + "/cgroup.procs")]
        for path in self.paths:
            os.makedirs(path, exist_ok=True)

    def enter(self):
        """In a child to be. It ends with this program, however that ends."""
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        for path in self.paths:
            with open(path + "/cgroup.procs", "w", encoding="ascii") as f:
                f.write("0")

    def remove(self):
        end = time.monotonic() + 30
        for path in self.paths:
            # Of a container that was killed, somebody may still be in there.
            while os.path.exists(path) and time.monotonic() < end:
                for place, _, _ in os.walk(path, topdown=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(place)
                time.sleep(0.01)
        with contextlib.suppress(OSError):
            os.rmdir("/run/systemd/nspawn/propagate/" + NAME)


class Container:
    """A root that is booted. It has no network."""

    def __init__(self, root):
        self.root = root
        self.groups = Groups()
        self.log = open(root.path + ".console", "ab")
        self.process = None
        self.leader = 0

    def boot(self):
        self.process = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe",
             "-M", NAME, "-D", self.root.path, "--boot"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
            env={**ENVIRONMENT, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}, preexec_fn=self.groups.enter)
        end = time.monotonic() + HANG
        while not self.is_up():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the container does not boot\n" + self.console())
            time.sleep(0.1)

    def is_up(self):
        try:
            with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as f:
                children = f.read().split()
        except FileNotFoundError:
            return False
        if len(children) != 1:
            return False
        self.leader = int(children[0])
        # `starting` until all jobs of the boot are done; a unit of Debian's that failed here is not ours.
        code, state = self.run("systemctl", "is-system-running", check=False)
        return state.strip() in ("running", "degraded")

    def console(self):
        with open(self.root.path + ".console", encoding="utf-8", errors="replace") as f:
            return f.read()[-4000:]

    def run(self, *words, typed=None, check=True):
        """Both streams together; without `check` the exit code too. Nothing typed is no standard input."""
        given = {"stdin": subprocess.DEVNULL} if typed is None else {"input": typed}
        done = subprocess.run(["nsenter", "--target", str(self.leader), "--all", *words], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=HANG, env=ENVIRONMENT, check=False, **given)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout if check else (done.returncode, done.stdout)

    def shut_down(self):
        """As a person does it, so that all services end in order."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(HANG)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.leader, signal.SIGKILL)
                self.process.kill()
                self.process.wait(HANG)
                raise RuntimeError("the container does not shut down\n" + self.console()) from None
        self.process = None

    def reboot(self):
        self.shut_down()
        self.boot()

    def close(self):
        try:
            self.shut_down()
        finally:
            self.log.close()
            self.groups.remove()
