#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents say what the programs do: check.py BUILD-DIRECTORY README-PROGRAM. Prints each lie, one a line.

- the tables of options and subcommands, --help and the man pages name the same ones, and help and man page
  say them with the words of the table; completion.py does the same for the completions
- exit codes read alike in doc/tour.md and man page
- paths, links, test cases and qualified names that the texts mention exist
- README's program is the one that is compiled here, and runs
- each `$ ` line of a `console` block runs on the mock transport, in order, in a home of its own, with the
  output that the block shows; `...` there stands for anything on a line
"""
import glob
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(sys.argv[1])
README_PROGRAM = os.path.abspath(sys.argv[2])
PLUGINS = os.path.join(BUILD, "plugins", "mock")
MAN = {"qvm-remote": "packaging/man/qvm-remote.1.md", "qvm-remote-dom0": "packaging/man/qvm-remote-dom0.8.md"}
SOURCES = {"qvm-remote": ("main.cpp", "arguments.cpp"),
           "qvm-remote-dom0": ("main.cpp", "serve/daemon_options.cpp")}
HANG = 120
NO_WARNING = ("CONTRIBUTING.md", "doc/PROTOCOL.md", "doc/benchmarks.md", "doc/campaigns.md")

problems = []


def problem(where, what):
    problems.append(f"{where}: {what}")


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def same(where, what, got, wanted):
    for one in wanted:
        if one not in got:
            problem(where, f"lacks {what} {one}")
    for one in got:
        if one not in wanted:
            problem(where, f"has {what} {one}, which the program does not know")


def plain(markdown):
    """Words of Markdown without its signs, on one line."""
    text = re.sub(r"(?<!\\)[*_`](?!_)|(?<!\\)\*\*", "", markdown)
    return " ".join(re.sub(r"\\(.)", r"\1", text).split())


# --- options and subcommands --------------------------------------------------------------------


def tables(program):
    """(options, subcommands) as the sources have them: left side as the help prints it, and the words."""
    source = "".join(read(f"tools/{program}/{name}") for name in SOURCES[program])
    source = re.sub(r'"\n\s*"', "", source)  # a text over two lines is one
    string = r'"((?:[^"\\]|\\.)*)"'

    def unquote(text):
        return re.sub(r"\\(.)", r"\1", text)

    def block(name):
        return re.search(r"\b" + name + r"\[\] = \{\n(.*?)\n\};", source, re.S).group(1)

    options = {}
    for key, name, argument, words in re.findall(
            r"\{('.'|(?:cli::)?opt_\w+),\s*" + string + r',\s*(nullptr|"[^"]*"),\s*' + string + r"\}", block("options")):
        left = (f"-{key[1]}, " if key[0] == "'" else "") + "--" + name
        value = "" if argument == "nullptr" else argument.strip('"')
        options[left + (" " if value and not value.startswith("[=") else "") + value] = unquote(words)
    subcommands = {}
    for name, arguments, words in re.findall(
            r"\{" + string + r",\s*" + string + r",\s*" + string + r",\s*\w+\}", block("subcommands")):
        subcommands[(name + " " + arguments).strip()] = unquote(words)
    if len(options) < 5 or len(subcommands) < 5:
        sys.exit(f"{program}: the tables were not found")
    return options, subcommands


def help_part(text, heading):
    """The rows after a heading; a long left side has its words on the next line."""
    rows = {}
    for line in text.split(heading + ":\n")[1].split("\n\n")[0].splitlines():
        left, _, words = line.strip().partition("  ")
        if line.startswith(" " * 29):
            rows[list(rows)[-1]] = line.strip()
        else:
            rows[left] = words.strip()
    return rows


def man_section(text, heading):
    body = re.search(rf"^# {heading}\n(.*?)(?=^# |\Z)", text, re.M | re.S)
    return body.group(1) if body else ""


def definitions(section):
    """Terms and what is said of each."""
    return {plain(term): plain(words) for term, words in
            re.findall(r"^(\*\*.*)\n:   (.*(?:\n(?:    .*|(?=\n    )))*)", section, re.M)}


def check_tables(program):
    options, subcommands = tables(program)
    printed = subprocess.run([os.path.join(BUILD, "tools", program, program), "--help"], capture_output=True, text=True,
                             timeout=HANG, check=True).stdout
    man = read(MAN[program])
    for heading, what, table in (("Options", "option", options), ("Subcommands", "subcommand", subcommands)):
        shown = help_part(printed, heading)
        same(f"{program} --help", what, shown, table)
        terms = definitions(man_section(man, heading.upper()))
        same(MAN[program], what, terms, table)
        for left, words in table.items():
            if shown.get(left, words) != words:
                problem(f"{program} --help", f"'{left}' says '{shown[left]}', not '{words}'")
            if left in terms and not terms[left].startswith(plain(words)):
                problem(MAN[program], f"'{left}' does not begin with '{words}'")


def check_exit_codes():
    rows = re.findall(r"^\| ([^|]+) \| (.*) \|$", read("doc/tour.md").split("## Exit codes\n")[1].split("\n#")[0], re.M)
    tour = {code.strip(): plain(words) for code, words in rows if code.strip() not in ("code", "---")}
    man = definitions(man_section(read(MAN["qvm-remote"]), "EXIT STATUS"))
    if len(tour) < 8:
        problem("doc/tour.md", "has no table of exit codes")
    for code in {**tour, **man}:
        if tour.get(code) != man.get(code):
            problem("exit code " + code, f"doc/tour.md says '{tour.get(code)}', the man page '{man.get(code)}'")


# --- what the texts mention ---------------------------------------------------------------------


def expand(path):
    """a/{b,c}.hpp as the shell reads it."""
    found = re.search(r"\{([^}]*)\}", path)
    if not found:
        return [path]
    return [p for one in found.group(1).split(",")
            for p in expand(path[:found.start()] + one + path[found.end():])]


def anchors(path):
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", read(path), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


def check_mentions(path):
    text = re.sub(r"^```.*?^```", "", read(path), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+://", target):
            continue
        name, _, anchor = target.partition("#")
        there = os.path.normpath(os.path.join(os.path.dirname(path), name)) if name else path
        if not os.path.exists(os.path.join(ROOT, there)):
            problem(path, f"links to {target}, which is not there")
        elif anchor and anchor not in anchors(there):
            problem(path, f"links to {target}, and there is no such heading")
    for token in re.findall(r"[`*]([^`*\n]+)[`*]", text):
        if "/x." in token:  # any file of that kind
            continue
        if re.match(r"(doc|tests|tools|include|plugins|packaging|examples|\.ci)/[^\s…]+$", token):
            for one in expand(token):
                if not glob.glob(os.path.join(ROOT, one)):
                    problem(path, f"names {one}, which is not there")
    sources = "\n".join(read(os.path.relpath(f, ROOT)) for d in ("include", "tools", "plugins")
                        for f in glob.glob(os.path.join(ROOT, d, "**", "*.[hc]*"), recursive=True))
    for token in re.findall(r"`(\w+(?:::\w+)+)`", text):
        for word in token.split("::"):
            if not re.search(rf"\b{word}\b", sources):
                problem(path, f"names {token}, and no source has {word}")
    scripts = "".join(read(os.path.relpath(p, ROOT)) for p in glob.glob(os.path.join(ROOT, "tests/e2e/*.py")))
    cases = re.findall(r"^def (\w+)\(f\)", scripts, re.M)
    for paragraph in re.findall(r"^Tests: (.*?)\n\n", text, re.M | re.S):
        for token in re.findall(r"`([a-z]\w*)`", paragraph):
            if token not in cases and not re.search(rf"\b{token}\b", sources):
                problem(path, f"names the test {token}, which is nowhere")
        for names, file in re.findall(r"((?:`\w+`(?:,\s+|\s+and\s+)?)+)\s+in\s+`(tests/[\w./-]+)`", paragraph):
            for name in re.findall(r"`(\w+)`", names):
                if not re.search(rf"\b{name}\b", read(file)):
                    problem(path, f"names the test {name}, which is not in {file}")


# --- examples -----------------------------------------------------------------------------------


def clean_environment(home):
    return {"HOME": home, "TMPDIR": home, "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


def check_console(path):
    lines = [line for block in re.findall(r"^```console\n(.*?)^```", read(path), re.M | re.S)
             for line in block.splitlines()]
    steps = []  # command, lines of output
    for line in lines:
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif steps:
            steps[-1][1].append(line)
        else:
            problem(path, f"'{line}' stands before any command")
    if not steps:
        return 0
    script = "shopt -s expand_aliases\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n"
    for command, _ in steps:
        script += "printf '\\036'\n" + command.replace("$PWD/build", BUILD) + "\n"
        if command.endswith("&"):
            script += "for _ in $(seq 600); do [ -S ~/dom0/run/qvm-remote/control.sock ] && break; sleep 0.05; done\n"
    with tempfile.TemporaryDirectory(prefix="qvm-doc-", dir="/tmp") as home:
        done = subprocess.run(["bash", "-c", script], env=clean_environment(home), cwd=home, timeout=HANG,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              check=False)
    got = done.stdout.decode(errors="backslashreplace").split("\036")[1:]
    for (command, wanted), output in zip(steps, got):
        text = "".join(line + "\n" for line in wanted)
        if not re.fullmatch(re.escape(text).replace(r"\.\.\.", "[^\n]*"), output):
            problem(path, f"'$ {command}' prints {output!r}, not {text!r}")
    if len(got) != len(steps):
        problem(path, f"only {len(got)} of {len(steps)} commands ran")
    return len(steps)


def check_readme_program():
    shown = re.search(r"^```cpp\n(.*?)^```", read("README.md"), re.M | re.S).group(1)
    if read("tests/doc/readme.cpp").split("\n", 1)[1] != shown:
        problem("README.md", "shows another program than tests/doc/readme.cpp")
    script = """set -e
qvm-remote key gen >/dev/null
mkdir -m 700 dom0
qvm-remote key show | qvm-remote-dom0 --root ~/dom0 authorize work >/dev/null 2>&1
QVM_REMOTE_MOCK_DIR=~/dom0 qvm-remote-dom0 --root ~/dom0 --transport mock --plugin-dir "$1" --once &
for _ in $(seq 600); do [ -S ~/dom0/run/qvm-remote/control.sock ] && break; sleep 0.05; done
code=0
"$2" "$1" ~/.qvm-remote/auth.key ~/dom0/work.sock 'echo from $QVM_REMOTE_PEER; exit 9' || code=$?
wait
echo $code
"""
    with tempfile.TemporaryDirectory(prefix="qvm-doc-", dir="/tmp") as home:
        env = clean_environment(home)
        env["PATH"] = f"{BUILD}/tools/qvm-remote:{BUILD}/tools/qvm-remote-dom0:" + env["PATH"]
        done = subprocess.run(["bash", "-c", script, "bash", PLUGINS, README_PROGRAM], env=env, cwd=home,
                              timeout=HANG, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.stdout != "from work\n9\n":
        problem("tests/doc/readme.cpp", f"prints {done.stdout!r} {done.stderr!r}")


for name in MAN:
    check_tables(name)
check_exit_codes()
documents = ["README.md", "CONTRIBUTING.md", *MAN.values()] + sorted(
    os.path.relpath(p, ROOT) for p in glob.glob(os.path.join(ROOT, "doc", "*.md")))
ran = 0
for document in documents:
    check_mentions(document)
    if document not in NO_WARNING and not re.search(r"\b(IS|is) dom0\b", plain(read(document))):
        problem(document, "does not warn that a qube with full access is dom0")
    ran += check_console(document)
check_readme_program()
for line in problems:
    print(line)
print(f"{len(documents)} documents, {ran} example commands, {len(problems)} problems")
sys.exit(1 if problems else 0)
