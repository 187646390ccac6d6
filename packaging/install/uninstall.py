#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Removes what `make install-vm` or `make install-dom0` installed: uninstall.py BUILD qube|dom0 [DESTDIR]

Exactly the files that the build directory would install for that end, and the directories of ours
that are empty then. Nobody's data is among them: keys, policy, history and logs were not installed.
What both ends need stays while the other end's programs are there.
"""
import json
import os
import sys

OURS = ("qvm-remote",)  # names of directories that are ours alone


def installed(build, *tags):
    def read(name):
        with open(os.path.join(build, "meson-info", name), encoding="utf-8") as f:
            return json.load(f)

    places = {o["name"]: o["value"] for o in read("intro-buildoptions.json")}
    prefix = places["prefix"]
    out = set()
    for section in read("intro-install_plan.json").values():
        for item in section.values():
            if item["tag"] not in tags:
                continue
            path = item["destination"]
            for name, value in places.items():
                if name == "prefix" or name.endswith("dir"):
                    path = path.replace("{" + name + "}", str(value))
            if "{" in path:
                sys.exit(f"uninstall.py: cannot tell where {item['destination']} was installed")
            out.add(os.path.join(prefix, path))
    return out


def main(build, end, destdir=""):
    other = {"qube": "dom0", "dom0": "qube"}[end]
    try:
        files = installed(build, end)
        shared = installed(build, "transport")
        others = installed(build, other)
    except FileNotFoundError:
        sys.exit(f"uninstall.py: {build} is not configured; `make build PREFIX=…` as it was installed")

    def real(path):
        return destdir + path if destdir else path

    if not any(os.path.lexists(real(path)) for path in others):
        files |= shared
    removed = 0
    for path in sorted(files):
        if os.path.lexists(real(path)):
            os.unlink(real(path))
            removed += 1
            print("removed", real(path))
        parent = os.path.dirname(path)
        if os.path.basename(parent) in OURS and os.path.isdir(real(parent)) and not os.listdir(real(parent)):
            os.rmdir(real(parent))
    print(f"{removed} files removed")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[2] not in ("qube", "dom0"):
        sys.exit(__doc__.split("\n")[0])
    main(*sys.argv[1:])
