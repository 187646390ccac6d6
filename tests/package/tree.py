#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What package builders read: versions, .qubesbuilder, the tarball, Arch's files, the unit.

    tree.py SOURCE-DIRECTORY BUILD-DIRECTORY

Nothing is built; what Arch's package would hold is what Meson installs from BUILD-DIRECTORY.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

import yaml

SOURCE, BUILD = (os.path.abspath(p) for p in sys.argv[1:3])
sys.path.insert(0, os.path.join(SOURCE, "packaging/install"))
from uninstall import installed  # pylint: disable=wrong-import-position

NOBODY = 65534


def read(*names):
    with open(os.path.join(SOURCE, *names), encoding="utf-8") as f:
        return f.read()


def check(ok, what):
    if not ok:
        sys.exit(f"FAILED: {what}")


def output(*words, **kw):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=300, check=False, **kw)
    check(done.returncode == 0, f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def versions(_):
    version, rel = read("version").strip(), read("rel").strip()
    check(re.fullmatch(r"\d+\.\d+\.\d+", version) and re.fullmatch(r"[1-9]\d*", rel), f"{version}-{rel} is no version")
    first = read("packaging/debian/changelog").split("\n", 1)[0]
    check(first.startswith(f"qvm-remote ({version}-{rel}) "), f"Debian's changelog begins with another version: {first}")


def builder(_):
    """Qubes Builder makes X.spec of X.spec.in, and PKGBUILD of PKGBUILD.in."""
    wanted = yaml.safe_load(read(".qubesbuilder"))
    check(set(wanted) == {"host", "vm"} and set(wanted["vm"]) == {"rpm", "deb", "archlinux"}, f"ends and kinds: {wanted}")
    for end in wanted.values():
        for kind, what in end.items():
            check(list(what) == ["build"] and what["build"], f"{kind} builds something: {what}")
            for name in what["build"]:
                files = {"rpm": [name + ".in"], "archlinux": [name + "/PKGBUILD.in"],
                         "deb": [f"{name}/{f}" for f in ("changelog", "control", "copyright", "rules", "source/format")]}
                for file in files[kind]:
                    check(os.path.isfile(os.path.join(SOURCE, file)), f".qubesbuilder names {name}, and there is no {file}")
    check(os.path.basename(wanted["vm"]["deb"]["build"][0]) == "debian", "the directory is copied under its own name")


def tarball(scratch):
    """Of one tree the same bytes: again, elsewhere, with other times and another umask, and of itself."""
    def make(tree, name, **kw):
        out = os.path.join(scratch, name)
        with open(output(sys.executable, os.path.join(tree, "packaging/dist.py"), out, **kw).strip(), "rb") as f:
            return f.read()

    first = make(SOURCE, "first")
    check(make(SOURCE, "second") == first, "a second time")
    archive = os.path.join(scratch, "first", f"qvm-remote-{read('version').strip()}.tar.xz")
    with tarfile.open(archive) as tar:
        when = tar.getmembers()[0].mtime
        check({(m.uid, m.gid, m.uname, m.mtime) for m in tar} == {(0, 0, "", when)}, "one owner and one time")
        check({m.mode for m in tar if m.isfile()} == {0o644, 0o755}, "two modes")
        check(all("/build/" not in m.name and "/.git/" not in m.name for m in tar), "what is made is not in it")
        tar.extractall(os.path.join(scratch, "itself"))
    [tree] = os.listdir(os.path.join(scratch, "itself"))
    tree = os.path.join(scratch, "itself", tree)
    check(make(tree, "third") == first, "of what was unpacked")
    for place, _, names in os.walk(tree):
        for name in names:
            os.utime(os.path.join(place, name), (1, 1))
    output("chmod", "-R", "g+w", tree)
    check(make(tree, "fourth", env={**os.environ, "SOURCE_DATE_EPOCH": str(when)}) == first, "with other times and modes")
    if os.path.exists(os.path.join(SOURCE, ".git")):
        with tarfile.open(archive) as tar:
            inside = {m.name.split("/", 1)[1] for m in tar}
        tracked = set(output("git", "-C", SOURCE, "ls-files", "-z").split("\0")) - {""}
        check(tracked <= inside, f"all that is committed is in it, not {sorted(tracked - inside)}")


def json_schemas():
    return ["schema/" + name for name in os.listdir(os.path.join(SOURCE, "doc/schema"))]


def arch(scratch):
    """makepkg reads it, and what its functions install is what belongs into a qube."""
    place = os.path.join(scratch, "arch")
    shutil.copytree(os.path.join(BUILD, "dist/arch"), place)
    for name in ("PKGBUILD", "packaging/arch/PKGBUILD.install"):
        output("bash", "-n", os.path.join(place, name))
    os.chmod(scratch, 0o755)
    os.chmod(place, 0o777)  # makepkg wants to write there, and not to be root
    as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    said = output("makepkg", "--printsrcinfo", cwd=place, **as_nobody,
                  env={**os.environ, "HOME": place, "PACMAN": "true"})  # it looks for a pacman
    version, rel = read("version").strip(), read("rel").strip()
    for line in (f"pkgver = {version}", f"pkgrel = {rel}", f"source = qvm-remote-{version}-{rel}.tar.gz",
                 "pkgname = qvm-remote", "pkgname = qvm-remote-devel", "install = packaging/arch/PKGBUILD.install"):
        check(line in said, f"makepkg finds no {line!r}:\n{said}")

    tree = f"qvm-remote-{version}-{rel}"
    with tarfile.open(os.path.join(place, tree + ".tar.gz")) as tar:
        check(f"{tree}/packaging/arch/PKGBUILD.install" in tar.getnames(), "its sources hold what it names")
    os.makedirs(os.path.join(place, "src", tree))
    os.symlink(BUILD, os.path.join(place, "src", tree, "build"))
    os.symlink(os.path.join(SOURCE, "doc"), os.path.join(place, "src", tree, "doc"))
    documents = {f"/usr/share/doc/qvm-remote/{name}" for name in ("JSON.md", *json_schemas())}
    for name, tags in (("qvm-remote", ("qube", "transport")), ("qvm-remote-devel", ("devel",))):
        into = os.path.join(place, "pkg", name)
        output("bash", "-euc", f"source ./PKGBUILD; srcdir=$PWD/src pkgdir=$PWD/pkg/{name}; package_{name}", cwd=place)
        got = {os.path.join("/", os.path.relpath(os.path.join(d, f), into)) for d, _, fs in os.walk(into) for f in fs}
        wanted = installed(BUILD, *tags) | (documents if name == "qvm-remote" else set())
        check(got == wanted, f"{name} holds {sorted(got ^ wanted)} too much or too little")
    # vercmp is pacman's; this one knows what is before 2.0.0.
    for before, words in (("1.4.0-1", 1), ("2.0.0-1", 0)):
        said = output("bash", "-euc", "vercmp() { [[ $1 < $2 ]] && echo -1 || echo 1; }; source ./PKGBUILD.install; "
                      f"post_upgrade 2.0.1-1 {before}", cwd=os.path.join(place, "packaging/arch"))
        check(said.count("\n") == words, f"upgrade from {before} says {said!r}")


def unit(_):
    """systemd finds nothing wrong, and each thing that it would have us lock down is set or has a reason."""
    name = "qvm-remote-dom0.service"
    path = os.path.join(BUILD, "packaging/systemd", name)
    with tempfile.TemporaryDirectory() as scratch:
        # As it stands but for the program, which is not installed here.
        with open(path, encoding="utf-8") as f:
            text = f.read()
        with open(os.path.join(scratch, name), "w", encoding="utf-8") as f:
            f.write(re.sub(r"^ExecStart=\S+", f"ExecStart={BUILD}/tools/qvm-remote-dom0/qvm-remote-dom0", text, flags=re.M))
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", os.path.join(scratch, name)], check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    # It reads this machine's units as well, and has its own opinion of them.
    ours = [line for line in done.stdout.splitlines() if name in line]
    check(done.returncode == 0 and not ours, f"systemd-analyze verify: exit code {done.returncode}\n{done.stdout}")
    rows = json.loads(output("systemd-analyze", "security", "--offline=true", "--json=short", path))
    check(len(rows) > 50, f"systemd-analyze security looks at {len(rows)} things")
    for row in rows:
        if row["set"] is False:
            for directive in re.findall(r"([A-Z]\w*?)(?:_\w+)?(?==|$)", re.sub(r"=[^/]*", "=", row["name"])):
                check(re.search(rf"\b{directive}\b", text), f"{row['name']} {row['description']}: the unit does not say why")


def main():
    with tempfile.TemporaryDirectory(prefix="qvm-remote-tree-", dir="/tmp") as scratch:
        for case in (versions, builder, tarball, arch, unit):
            case(scratch)
            print("ok", case.__name__, flush=True)


main()
