#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the release tarball: dist.py OUT-DIRECTORY [NAME.tar.gz|NAME.tar.xz]. Prints where it is.

The same tree gives the same bytes, on any day and in any directory: names are sorted, owner and modes
are fixed, and every time is that of the last commit (SOURCE_DATE_EPOCH wins). What is not committed
is packed too, and said; so is what lies around where git is not.
"""
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))


def read(name):
    with open(os.path.join(ROOT, name), "rb") as f:
        return f.read()


def git(*words):
    done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, check=False)
    return done.stdout.decode() if done.returncode == 0 else None


def files():
    """(names, time). A release that was unpacked may lie below somebody else's git."""
    if os.path.exists(os.path.join(ROOT, ".git")):
        changed = git("status", "--porcelain")
        if changed is None:
            sys.exit("dist.py: git does not say what belongs to the tree")
        if changed:
            print("dist.py: the tree holds what is not committed, and so does the tarball", file=sys.stderr)
        names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        return names, int(git("log", "-1", "--format=%ct"))
    names = []
    for place, directories, found in os.walk(ROOT):
        if place == ROOT:
            directories[:] = [d for d in directories if not d.startswith("build")]
        directories[:] = [d for d in directories if d != "__pycache__"]
        names += [os.path.relpath(os.path.join(place, name), ROOT) for name in found]
    return names, int(os.path.getmtime(os.path.join(ROOT, "version")))


def main(out, archive=""):
    archive = archive or f"qvm-remote-{read('version').decode().strip()}.tar.xz"
    top, kind = archive.rsplit(".tar.", 1)
    names, when = files()
    when = int(os.environ.get("SOURCE_DATE_EPOCH", when))
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted({n for n in names if n and os.path.lexists(os.path.join(ROOT, n))}):
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.mtime = when
            if os.path.islink(os.path.join(ROOT, name)):
                entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(os.path.join(ROOT, name))
                tar.addfile(entry)
                continue
            data = read(name)
            entry.size = len(data)
            entry.mode = 0o755 if os.access(os.path.join(ROOT, name), os.X_OK) else 0o644
            tar.addfile(entry, io.BytesIO(data))
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, archive)
    compress = {"gz": lambda data: gzip.compress(data, mtime=when), "xz": lzma.compress}[kind]
    with open(path + ".new", "wb") as f:
        f.write(compress(raw.getvalue()))
    os.rename(path + ".new", path)
    print(path)


if len(sys.argv) not in (2, 3):
    sys.exit(__doc__.split("\n")[0])
main(*sys.argv[1:])
