#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The completions offer what the programs take: completion.py BUILD-DIRECTORY. Prints each lie, one a line.

- in bash, the candidates of a table of typed lines
- in all three shells, each option and subcommand of the help is named, and the shell can read the script;
  where zsh or fish is not installed, a line says that its syntax was not checked
- a kind of value that make.py does not know ends the build
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(sys.argv[1])
MAKE = os.path.join(ROOT, "packaging/completion/make.py")
PROGRAMS = ("qvm-remote", "qvm-remote-dom0")
HANG = 120
LEVELS = "deny monitor read-only manage full"
PATHS = "a.txt directory two words"  # what the working directory holds

# What the programs that a script calls print. "evil" is never offered: only plain words are.
STAND_INS = {
    "qvm-ls": "printf '%s\\n' work vault '$(evil)' '-evil'",
    "qvm-remote-dom0": """case "$*" in
keys) echo 'keyed     SHA256:x full 2 never' ;;
'--root /r keys') echo 'rooted    SHA256:x full 2 never' ;;
approvals) printf '%s\\n' 'serial      . 17, asked now' 'word        : "serial  . 99,"' ;;
esac""",
}

# A typed line, whose last word is completed; and the candidates.
LINES = [
    ("qvm-remote ", "key ping status job queue log history doctor"),
    ("qvm-remote doctor ", "--fix --json"),
    ("qvm-remote h", "history"),
    ("qvm-remote --tr", "--transport"),
    ("qvm-remote --", "--timeout --no-stdin --exec --script --tty --shell --escape --dry-run --no-wait --detach "
                      "--input --json --json=lines --transport --plugin-dir --verbose --quiet --help --version"),
    ("qvm-remote --transport q", "qvm-run qrexec"),
    ("qvm-remote --transport qrexec k", "key"),
    ("qvm-remote -t ", ""),
    ("qvm-remote -t 5 k", "key"),
    ("qvm-remote --escape n", "none"),
    ("qvm-remote --plugin-dir ", "directory"),
    ("qvm-remote --script ", PATHS),
    ("qvm-remote --script a.txt ", PATHS),
    ("qvm-remote --exec ", PATHS),
    ("qvm-remote --exec -", "-t --timeout -n --no-stdin --exec --script --tty --shell -e --escape --dry-run --no-wait "
                            "--detach --input --json --json=lines --transport --plugin-dir -v --verbose -q --quiet -h --help --version"),
    ("qvm-remote --exec cat a", "a.txt"),
    ("qvm-remote --exec key ", PATHS),
    ("qvm-remote --tty vi d", "directory"),
    ("qvm-remote -- ", PATHS),
    ("qvm-remote -- key ", PATHS),
    ("qvm-remote cat two", "two words"),
    ("qvm-remote cat -", ""),
    ("qvm-remote key ", "gen show import"),
    ("qvm-remote key import ", "--json"),
    ("qvm-remote --j", "--json --json=lines"),
    ("qvm-remote key gen -", "--json"),
    ("qvm-remote ping ", "--json"),
    ("qvm-remote job logs -", "-f --json"),
    ("qvm-remote queue c", "clean"),
    ("qvm-remote log ", "--json"),
    ("qvm-remote history ", "show"),
    ("qvm-remote history show ", "id-1 id_2"),
    ("qvm-remote history show id-", "id-1"),
    ("qvm-remote history show id-1 ", "--json"),
    ("qvm-remote-dom0 re", "revoke resume"),
    ("qvm-remote-dom0 --root ", "directory"),
    ("qvm-remote-dom0 --vm ", "work vault"),
    ("qvm-remote-dom0 --transport q", "qvm-run qrexec"),
    ("qvm-remote-dom0 --wait ", ""),
    ("qvm-remote-dom0 authorize ", "work vault"),
    ("qvm-remote-dom0 authorize x --level m", "monitor manage"),
    ("qvm-remote-dom0 authorize x -l ", LEVELS),
    ("qvm-remote-dom0 authorize --level full v", "vault"),
    ("qvm-remote-dom0 authorize x ", "-l --level -u --until -f --fetch --json"),
    ("qvm-remote-dom0 connect x --f", "--fetch"),
    ("qvm-remote-dom0 revoke ", "keyed"),
    ("qvm-remote-dom0 --root /r rotate ", "rooted"),
    ("qvm-remote-dom0 disconnect k", "keyed"),
    ("qvm-remote-dom0 keys ", "--json"),
    ("qvm-remote-dom0 approvals sh", "show"),
    ("qvm-remote-dom0 approvals ", "list watch show allow deny"),
    ("qvm-remote-dom0 approvals list ", "--json"),
    ("qvm-remote-dom0 approvals allow ", "17"),
    ("qvm-remote-dom0 approvals allow 17 ", "--for --json"),
    ("qvm-remote-dom0 --j", "--json"),
    ("qvm-remote-dom0 policy ", "check lint"),
    ("qvm-remote-dom0 policy check w", "work"),
    ("qvm-remote-dom0 policy check --", "--exec --script --tty --argument --json --"),
    ("qvm-remote-dom0 policy check --script a", "a.txt"),
    ("qvm-remote-dom0 policy check --argument f", "full"),
    ("qvm-remote-dom0 policy check work -- ", PATHS),
    ("qvm-remote-dom0 queue cl", "clean"),
    ("qvm-remote-dom0 queue clean w", "work"),
    ("qvm-remote-dom0 audit ", "verify show export rotate"),
    ("qvm-remote-dom0 audit show ", "--json"),
    ("qvm-remote-dom0 audit verify -", "--heads --json"),
    ("qvm-remote-dom0 audit verify --heads ", "- " + PATHS),
    ("qvm-remote-dom0 audit export --format ", "json text"),
    ("qvm-remote-dom0 status ", "--json"),
    ("qvm-remote-dom0 nonsense ", ""),
]
# Prints the candidates of each line, one a line, and "===" after them.
ASK = r"""
for script; do . "$script"; done
while IFS= read -r line; do
    read -ra COMP_WORDS <<<"$line"
    [[ $line != *' ' ]] || COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    "$(complete -p "${COMP_WORDS[0]}" | sed 's/.*-F \([^ ]*\).*/\1/')"
    printf '%s\n' "${COMPREPLY[@]}" ===
done
"""

problems = []


def script(shell, program):
    name = {"bash": program, "zsh": "_" + program, "fish": program + ".fish"}[shell]
    return os.path.join(BUILD, "packaging", "completion", name)


def run(*words, **more):
    return subprocess.run(words, capture_output=True, text=True, timeout=HANG, check=False, **more)


def check_lines():
    with tempfile.TemporaryDirectory(prefix="qvm-complete-", dir="/tmp") as home:
        for path in ("bin", "work/directory", ".qvm-remote/history/2026-12-01/id-1", ".qvm-remote/history/2026-12-02/id_2",
                     ".qvm-remote/history/2026-12-02/$(evil)"):
            os.makedirs(os.path.join(home, path))
        for path in ("work/a.txt", "work/two words"):
            with open(os.path.join(home, path), "w", encoding="utf-8"):
                pass
        for name, text in STAND_INS.items():
            with open(os.path.join(home, "bin", name), "w", encoding="utf-8") as f:
                f.write("#!/bin/sh\n" + text + "\n")
            os.chmod(f.name, 0o700)
        env = {"HOME": home, "PATH": f"{home}/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
        got = run("bash", "-c", ASK, "bash", *(script("bash", p) for p in PROGRAMS), env=env, cwd=home + "/work",
                  input="".join(line + "\n" for line, _ in LINES))
    if got.stderr:
        problems.append(f"bash says: {got.stderr.strip()}")
    answers = got.stdout.split("===\n")
    for (line, wanted), answer in zip(LINES, answers):
        found = " ".join(sorted(answer.split()))
        if found != " ".join(sorted(wanted.split())):
            problems.append(f"'{line}' offers '{found}', not '{wanted}'")
    if len(answers) != len(LINES) + 1:
        problems.append(f"{len(LINES)} lines, {len(answers) - 1} answers")


def check_names(program):
    text = run(os.path.join(BUILD, "tools", program, program), "--help").stdout
    options, subcommands = text.split("\nOptions:\n")[1].split("\nSubcommands:\n")
    wanted = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", "\n".join(line[:29] for line in options.splitlines()))
    wanted += re.findall(r"^  ([a-z]+)", subcommands, re.M)
    wanted += re.findall(r"--[a-z]+", "\n".join(line for line in subcommands.splitlines() if line[2:3].strip()))
    if len(wanted) < 20:
        problems.append(f"{program} --help names only {wanted}")
    for shell in ("bash", "zsh", "fish"):
        path = script(shell, program)
        with open(path, encoding="utf-8") as f:
            words = re.split(r"[\s'\"|]+", f.read())
        problems.extend(f"{path} lacks {one}" for one in wanted if one not in words)
        if not shutil.which(shell):
            print(f"{shell} is not installed: whether it can read {os.path.basename(path)} was not checked")
            continue
        read = run(shell, "-n", path)
        if read.returncode or read.stderr:
            problems.append(f"{path}: {read.stderr.strip()}")


def check_unknown_kind():
    text = run(os.path.join(BUILD, "tools/qvm-remote/qvm-remote"), "--help").stdout
    with tempfile.TemporaryDirectory(prefix="qvm-complete-", dir="/tmp") as directory:
        with open(os.path.join(directory, "help"), "w", encoding="utf-8") as f:
            f.write(text.replace("show ID", "show NONSENSE"))
        outputs = [os.path.join(directory, shell) for shell in ("bash", "zsh", "fish")]
        made = run(sys.executable, MAKE, "qvm-remote", f.name, *outputs)
    if made.returncode == 0 or "does not say what NONSENSE completes to" not in made.stderr:
        problems.append(f"make.py takes a kind that it does not know: {made.returncode} {made.stderr.strip()}")


check_lines()
for name in PROGRAMS:
    check_names(name)
check_unknown_kind()
for problem in problems:
    print(problem)
print(f"{len(LINES)} lines, {len(problems)} problems")
sys.exit(1 if problems else 0)
