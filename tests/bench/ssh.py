# SPDX-License-Identifier: GPL-2.0-or-later
"""sshd on loopback: the installed one, or one unpacked into the build directory. As root it has its own
user in a private mount namespace; otherwise it runs as the current user."""

import glob
import os
import pwd
import shutil
import socket
import subprocess
import time

from rows import BUILD, SCRATCH, SHORT


class Ssh:
    """sshd on loopback, and a master connection to it; `why` says why there is none."""

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
            # This user exists only in the mount namespace of sshd.
            account = self.ACCOUNT
            home = os.path.join("/tmp", os.path.basename(SCRATCH) + f"-{os.getpid()}-home")
            with open("/etc/passwd") as f, open(os.path.join(self.path, "passwd"), "w") as out:
                out.write("".join(line for line in f if not line.startswith("sshd:")))
                out.write("sshd:x:64998:65534::/run/sshd:/usr/sbin/nologin\n"
                          f"{account}:*:64999:65534::{home}:/bin/sh\n")
            script = ('mount --bind "$1" /etc/passwd && mount -t tmpfs none /run && '
                      'mkdir -m 755 /run/sshd && mount -t tmpfs none /tmp && '
                      'mkdir -m 700 "$2" && chown 64999:65534 "$2" && shift 2 && exec "$@"')
            # Keep /tmp visible if the scratch directory is there.
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
        self.control = os.path.join(SHORT, "ssh.ctl")
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
