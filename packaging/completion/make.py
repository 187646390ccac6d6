#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a program's completion for bash, zsh and fish from what its --help prints.

    make.py PROGRAM HELP BASH ZSH FISH

HELP is a file with that text; the last three are written. tools/common/cli.hpp describes the grammar of
the subcommands' arguments. A kind of value that KINDS does not know is an error.

All three scripts work alike. They walk over the words before the cursor, and so find the place of the
word that is typed: "SUBCOMMAND OPTION" for the value of an option, and else "SUBCOMMAND:COUNT:VERB", with
the number of words after the subcommand and the first of them. A table says what belongs there.
"""
import re
import sys

FILES, DIRECTORIES, NOTHING = "files", "directories", "nothing"


class Run(str):
    """Text for sh that prints the candidates. Its arguments are the words `--root DIR`, if they were typed."""


# What each kind of value completes to. Before the kind may stand a subcommand or a program: then the
# entry is for that one only.
KINDS = {
    "FILE": FILES,
    "DIR": DIRECTORIES,
    "VM": Run("qvm-ls --raw-list"),
    # Only root can read the keys; others are offered nothing.
    "revoke VM": Run('qvm-remote-dom0 "$@" keys | sed "s/ .*//"'),
    "rotate VM": Run('qvm-remote-dom0 "$@" keys | sed "s/ .*//"'),
    "disconnect VM": Run('qvm-remote-dom0 "$@" keys | sed "s/ .*//"'),
    "approvals SERIAL": Run('qvm-remote-dom0 "$@" approvals | sed -n "s/^serial  *[.] \\([0-9]*\\),.*/\\1/p"'),
    "SERIAL": NOTHING,
    "jobs ID": Run('qvm-remote-dom0 "$@" jobs | sed -n "s/^[^ ]*  *\\([0-9][^ ]*\\) .*/\\1/p"'),
    "ID": Run('cd ~/.qvm-remote/history && printf "%s\\n" */*/ | sed -n "s,^[^/]*/\\([^/]*\\)/$,\\1,p"'),
    "LEVEL": "deny monitor read-only manage full",
    "TRANSPORT": "qvm-run qrexec mock",
    "qvm-remote-dom0 TRANSPORT": "qvm-run qrexec both mock",
    "CHAR": "none",
    **dict.fromkeys(("DIGEST", "KEY", "MIN", "N", "SEC", "TIME"), NOTHING),
}
# With these the words after the options are a command and its arguments, not a subcommand.
BEFORE_COMMANDS = ("--detach", "--exec", "--script", "--shell", "--tty")


class Place:
    """What can stand at one place: words, what a text for sh prints, and files or directories."""

    def __init__(self):
        self.words, self.run, self.paths = [], "", ""

    def add(self, choices, program, subcommand):
        """Choices are words of the grammar, joined by "|"."""
        for one in choices.split("|"):
            if not re.fullmatch("[A-Z]+", one):
                self.words.append(one)
                continue
            names = [f"{subcommand} {one}", f"{program} {one}", one]
            found = next((KINDS[name] for name in names if name in KINDS), None)
            if found is None:
                sys.exit(f"{program}: KINDS in packaging/completion/make.py does not say what {one} completes to")
            if isinstance(found, Run):
                self.run = found
            elif found in (FILES, DIRECTORIES):
                self.paths = found
            elif found != NOTHING:
                self.words += found.split()

    def settings(self):
        """The variables of the scripts that say it."""
        values = {"list": " ".join(self.words), "run": self.run, "paths": self.paths}
        return {name: value for name, value in values.items() if value}


class Program:
    """The places of a program, from its help."""

    def __init__(self, name, text):
        self.name = name
        self.about = {}  # option or subcommand: its line of the help
        self.places = {}  # place, which may end in "*": Place
        self.options = {}  # pattern of places: names of options
        self.valued = []  # "SUBCOMMAND OPTION" where a value follows
        self.ends = []  # "SUBCOMMAND --" where a command follows
        self.takes_command = bool(re.search(r"^(?:Usage:|  +)[^\n]* COMMAND\b", text.split("\n\n")[0], re.M))
        for left, words in rows(text, "Options"):
            left, _, choice = left.removesuffix("]").partition("[=")  # --name[=WORD]
            names, _, kind = left.partition(" ") if left.startswith("--") else left.replace(", ", ",").partition(" ")
            for option in names.split(","):
                self.about[option] = words
                self.option("", option, kind)
            if choice:
                self.about[f"{left}={choice}"] = words
        if self.takes_command:
            self.ends.append(" --")
        self.options[":0:"] = list(self.about)
        if self.takes_command:
            self.options["remote"] = self.options[":0:"]
        self.before_commands = [o for o in BEFORE_COMMANDS if o in self.about] if self.takes_command else []
        self.subcommands = []
        for left, words in rows(text, "Subcommands"):
            subcommand, _, arguments = left.partition(" ")
            self.subcommands.append(subcommand)
            self.about[subcommand] = words
            self.place(":0:").words.append(subcommand)
            for way in ways(arguments):
                self.way(subcommand, way)
            if "--json" in self.about:  # each subcommand takes it too
                for key, options in self.options.items():
                    if key.startswith(f"{subcommand}:*") and "--json" not in options:
                        options.append("--json")
                self.options.setdefault(f"{subcommand}:*", ["--json"])
        # The first pattern that fits counts, so those of a verb stand before those of all verbs.
        self.options = dict(sorted(self.options.items(), key=lambda item: item[0].endswith(":*")))
        if not self.options[":0:"] or not self.subcommands:
            sys.exit(f"{name}: its help has no options or no subcommands")

    def other_word(self):
        """The place of a word that is no subcommand, and of those after it."""
        return "command" if self.takes_command else "unknown"

    def place(self, name):
        return self.places.setdefault(name, Place())

    def option(self, subcommand, option, choices):
        if choices:
            key = f"{subcommand} {option}"
            self.valued.append(key)
            self.place(key).add(choices, self.name, subcommand)

    def way(self, subcommand, tokens):
        """One way to call a subcommand: its words by position, and its options."""
        words, options = [], []
        while tokens:
            token = tokens.pop(0)
            if token == "--":
                self.ends.append(f"{subcommand} --")
                options.append(token)
                break
            if token.startswith("-"):
                value = tokens.pop(0) if tokens and tokens[0] not in ("[", "]", "|") else ""
                for option in token.split("|"):
                    options.append(option)
                    self.option(subcommand, option, value)
            elif token not in ("[", "]", "|"):
                words.append(token)
        verbs = words[0].split("|") if words and words[0].islower() else ["*"]
        for at, choices in enumerate(words):
            for verb in verbs if at > 0 else [""]:
                self.place(f"{subcommand}:{at}:{verb}").add(choices, self.name, subcommand)
        if options:
            for verb in verbs:
                self.options.setdefault(f"{subcommand}:*" + (f":{verb}" if verb != "*" else ""), []).extend(options)


def ways(arguments):
    """The tokens of each way to call a subcommand; those in brackets belong to one way."""
    found, depth = [[]], 0
    for token in re.findall(r"[\[\]]|[^\s\[\]]+", arguments):
        depth += {"[": 1, "]": -1}.get(token, 0)
        if token == "|" and depth == 0:
            found.append([])
        else:
            found[-1].append(token)
    return found


def rows(text, heading):
    """The rows of a part of the help; a long left side has its words on the next line."""
    found = []
    for line in text.partition(f"\n{heading}:\n")[2].split("\n\n")[0].splitlines():
        left, _, words = line.strip().partition("  ")
        if line.startswith(" " * 20):
            found[-1][1] = line.strip()
        else:
            found.append([left, words.strip()])
    return found


# --- bash and zsh ------------------------------------------------------------------------------


def quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


def pattern(text):
    """Literal but for its stars."""
    return "*".join(quoted(part) if part else "" for part in text.split("*"))


def arms(groups, indent):
    """Arms of a case, from (patterns, commands)."""
    return "\n".join(f"{indent}{' | '.join(pattern(p) for p in patterns)}) {commands} ;;" for patterns, commands in groups)


def grouped(pairs):
    """(keys, value) for each value."""
    out = {}
    for key, value in pairs:
        out.setdefault(value, []).append(key)
    return [(keys, value) for value, keys in out.items()]


def place_settings(program, assign):
    return grouped((name, "; ".join(assign(variable, value) for variable, value in place.settings().items()))
                   for name, place in program.places.items() if place.settings())


def walk(program, typed, cursor, begin):
    """The part that bash and zsh share: `place`, and what belongs there."""
    def assign(variable, value):
        return f"{variable}={quoted(value)}"
    root = """
        [[ $word != --root ]] || root=(--root "${%s[i + 1]}")""" % typed if "--root" in program.about else ""
    remote = [f" {o}" for o in program.before_commands]
    valued = [v for v in program.valued if v not in remote]
    out = f"""for ((i = {begin}; i < {cursor}; ++i)); do
    word=${{{typed}[i]}}
    case "$subcommand $word" in
"""
    for one in remote:
        rest = f"; ((++i)); ((i != {cursor})) || place=\"$subcommand $word\"" if one in program.valued else ""
        out += arms([([one], "remote=1" + rest)], "    ") + "\n"
    out += f"""    {' | '.join(pattern(v) for v in valued)}){root}
        ((++i))
        ((i != {cursor})) || place="$subcommand $word"
        ;;
"""
    if program.ends:
        out += arms([(program.ends, "place=command; break")], "    ") + "\n"
    out += """    *' -'*) ;;
    *)
        if [[ -n $subcommand ]]; then
            ((count++)) || verb=$word
        elif [[ -z $remote && ' %s ' == *" $word "* ]]; then
            subcommand=$word
        else
            place=%s
            break
        fi
        ;;
    esac
done
[[ -n $place || -z $remote ]] || place=remote
[[ -n $place ]] || place="$subcommand:$count:$verb"
case $place in
%s
command | remote) paths=files ;;
esac
case $place in
%s
esac
# Options are offered after a dash, or where nothing else is known.
if [[ -n $options && ($current == -* || -z $list$run$paths) ]]; then
    list=$options run='' paths=''
fi
""" % (" ".join(program.subcommands), program.other_word(), arms(place_settings(program, assign), ""),
       arms(grouped((key, assign("options", " ".join(names))) for key, names in program.options.items()), ""))
    return out


# What a program printed becomes part of a command line, so only plain words of it are taken.
PLAIN = "2>/dev/null | LC_ALL=C grep -Ex '[A-Za-z0-9_][A-Za-z0-9._-]*'"
MADE = "# Completion of {0}, made by packaging/completion/make.py from what `{0} --help` prints.\n"
LICENSE = "# SPDX-License-Identifier: GPL-2.0-or-later\n"


def bash(program):
    function = "_" + program.name.replace("-", "_")
    body = walk(program, "COMP_WORDS", "COMP_CWORD", 1)
    return LICENSE + MADE.format(program.name) + function + """() {
    local current=${COMP_WORDS[COMP_CWORD]} subcommand='' verb='' remote='' place='' word='' options='' list='' run='' paths=''
    local i count=0 IFS=$' \\t\\n'
    local -a root=()
    COMPREPLY=()
""" + "".join(f"    {line}\n" for line in body.splitlines()) + f"""    [[ -z $run ]] || list+=" $(sh -c "$run" sh "${{root[@]}}" {PLAIN})"
    for word in $list; do
        [[ $word != "$current"* ]] || COMPREPLY+=("$word")
    done
    [[ -n $paths ]] || return 0
    compopt -o filenames 2>/dev/null
    [[ $paths == files ]] && word=-f || word=-d
    while IFS= read -r i; do
        COMPREPLY+=("$i")
    done < <(compgen "$word" -- "$current")
}}
complete -F {function} {program.name}
"""


def zsh(program):
    about = "\n".join(f"    {quoted(name)} {quoted(words)}" for name, words in program.about.items())
    return f"#compdef {program.name}\n" + LICENSE + MADE.format(program.name) + f"""local current=${{words[CURRENT]}} subcommand='' verb='' remote='' place='' word='' options='' list='' run='' paths=''
integer i count=0 found=1
local -a root described
local -A about
about=(
{about}
)
""" + walk(program, "words", "CURRENT", 2) + f"""[[ -z $run ]] || list+=" $(sh -c "$run" sh "${{root[@]}}" {PLAIN})"
for word in ${{=list}}; do
    if [[ ($place == :0: || $place == remote) && -n ${{about[$word]}} ]]; then
        described+=("$word:${{about[$word]}}")
    else
        described+=("$word")
    fi
done
((${{#described}})) && _describe {quoted(program.name)} described && found=0
[[ $paths == files ]] && _files && found=0
[[ $paths == directories ]] && _files -/ && found=0
return found
"""


# --- fish --------------------------------------------------------------------------------------


def fish_quoted(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def fish_cases(groups, indent):
    return "".join(f"{indent}case {' '.join(fish_quoted(p) for p in patterns)}\n" +
                   "".join(f"{indent}    {line}\n" for line in lines.split("\n")) for patterns, lines in groups)


def fish(program):
    function = "__" + program.name.replace("-", "_")

    def assign(variable, value):
        return f"set {variable} {fish_quoted(value)}"
    take_value = "set i (math $i + 1)\ntest $i -le (count $typed); or set place \"$subcommand $word\""
    if "--root" in program.about:
        take_value = "test $word != --root; or set root --root $typed[(math $i + 1)]\n" + take_value
    remote = [f" {o}" for o in program.before_commands]
    groups = [([one], "set remote 1" + ("\n" + take_value if one in program.valued else "")) for one in remote]
    groups.append(([v for v in program.valued if v not in remote], take_value))
    if program.ends:
        groups.append((program.ends, "set place command\nbreak"))
    places = [(keys, settings.replace("; set ", "\nset ")) for keys, settings in place_settings(program, assign)]
    options = grouped((key, assign("options", " ".join(names))) for key, names in program.options.items())
    about = "".join(f"        case {fish_quoted(name)}\n            echo {fish_quoted(words)}\n"
                    for name, words in program.about.items())
    return LICENSE + MADE.format(program.name) + f"""
function {function}_about
    switch $argv[1]
{about}    end
end

function {function}_candidates
    set -l typed (commandline -opc)
    set -l current (commandline -ct)
    set -l subcommand ''
    set -l verb ''
    set -l remote ''
    set -l place ''
    set -l options ''
    set -l list ''
    set -l run ''
    set -l paths ''
    set -l root
    set -l count 0
    set -l i 2
    while test $i -le (count $typed)
        set -l word $typed[$i]
        switch "$subcommand $word"
{fish_cases(groups, ' ' * 12)}            case '* -*'
            case '*'
                if test -n "$subcommand"
                    test $count -gt 0; or set verb $word
                    set count (math $count + 1)
                else if test -z "$remote"; and contains -- $word {' '.join(program.subcommands)}
                    set subcommand $word
                else
                    set place {program.other_word()}
                    break
                end
        end
        set i (math $i + 1)
    end
    test -n "$place"; or test -z "$remote"; or set place remote
    test -n "$place"; or set place "$subcommand:$count:$verb"
    switch $place
{fish_cases(places, ' ' * 8)}        case command remote
            set paths files
    end
    switch $place
{fish_cases(options, ' ' * 8)}    end
    # Options are offered after a dash, or where nothing else is known.
    if test -n "$options"; and begin; string match -q -- '-*' "$current"; or test -z "$list$run$paths"; end
        set list $options
        set run ''
        set paths ''
    end
    for word in (string split -n ' ' -- $list)
        set -l about
        if contains -- $place :0: remote
            set about ({function}_about $word)
        end
        printf '%s\\t%s\\n' $word "$about"
    end
    if test -n "$run"
        sh -c $run sh $root {PLAIN}
    end
    if test "$paths" = files
        __fish_complete_path $current
    else if test "$paths" = directories
        __fish_complete_directories $current ''
    end
end

complete -c {program.name} -f -a '({function}_candidates)'
"""


def main():
    name, help_file, *outputs = sys.argv[1:]
    with open(help_file, encoding="utf-8") as f:
        program = Program(name, f.read())
    for make, output in zip((bash, zsh, fish), outputs):
        with open(output, "w", encoding="utf-8") as f:
            f.write(make(program))


if __name__ == "__main__":
    main()
