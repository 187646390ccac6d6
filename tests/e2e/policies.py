# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy files for tests."""

import os
import signal

from fixture import KEY, equal, eventually


def rules(f, text, name="30-test.policy", mode=0o600):
    """Writes a policy file, or removes it, and makes the daemon read it."""
    directory = os.path.join(f.root, "etc", "qubes", "remote-policy.d")
    os.makedirs(directory, 0o755, exist_ok=True)
    path = os.path.join(directory, name)
    if text is None:
        os.unlink(path)
    else:
        with open(path, "w") as p:
            p.write(text)
        os.chmod(path, mode)
    if f.daemon:
        before = f.log().count("read again") + f.log().count(directory)
        f.daemon.send_signal(signal.SIGHUP)
        eventually(lambda: f.log().count("read again") + f.log().count(directory) > before, "a reload")


def begin(f, text=None, **more):
    """Starts a daemon in which `work` has a key and, if `text` is given, only these rules."""
    f.write_key()
    equal(f.dom0("authorize", "work", stdin=KEY.encode()).returncode, 0)
    if text is not None:
        os.unlink(level_file(f))
        rules(f, text)
    f.spawn("mock", QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work dev", **more)
    return f


def level_file(f, qube="work"):
    return os.path.join(f.root, "etc/qubes/remote-policy.d", f"50-{qube}.policy")
