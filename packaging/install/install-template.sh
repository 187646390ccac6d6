#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Installs the client in a template, from a package in a running qube. Run it in dom0:
#
#     bash install-template.sh [--sha256 DIGEST [--yes]] TEMPLATE QUBE PACKAGE
#
# PACKAGE is the path of the .rpm, .deb or .pkg.tar.zst in the qube, absolute or from its user's home.
# PACKAGE.sha256, as sha256sum writes it, is in the same directory. The script shows the digest of what
# arrived; compare it with the digest that was published with the package. With --sha256 the script
# compares; with --yes, which needs --sha256, it asks nothing. A template that was off is started, and
# shut down again, whatever happens.
#
# What a qube sends is hostile until somebody has said yes to its digest. Until then its bytes are only
# counted and hashed. After the yes they go to the template, which checks the digest again. The code for
# dom0 is the same as in install-dom0.sh, because each script is copied into dom0 without the other.
set -euo pipefail
shopt -s inherit_errexit
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
export PATH LC_ALL=C
unset -v CDPATH TMPDIR

readonly package_kib=65536
readonly patience=300      # seconds for one call into the qube
readonly install_time=1800 # in the template, which may update its lists of packages

directory='' started=no relay='' class='' state='' told=no

complain() { printf 'install-template.sh: %s\n' "$1" >&2; }
fail() {
    complain "$1"
    told=yes
    exit 1
}

# The output of a program, for the end of a message: printable, one line, short.
words() {
    local untrusted_text=''
    IFS= read -r -N 300 untrusted_text <"$directory/untrusted_words" || true
    printf '%s' "${untrusted_text//[^ -~]/ }"
}

# Finds the class and the state of the template. An answer that is not a state does not count as "off".
look() {
    local all name of at
    class='' state=''
    all=$(qvm-ls --raw-data --fields NAME,CLASS,STATE "$template" 2>/dev/null </dev/null) || return 1
    while IFS='|' read -r name of at; do
        [ "$name" != "$template" ] || class=$of state=$at
    done <<<"$all"
    [ -n "$state" ]
}

shut_down_once() {
    qvm-shutdown --wait --timeout=120 "$template" >/dev/null 2>&1 </dev/null || true
    look && [ "$state" = Halted ]
}

shut_down() {
    started=no
    shut_down_once || shut_down_once # it may have taken its time
}

leave() {
    local code=$?
    trap - EXIT
    trap '' INT TERM HUP
    set +e
    if [ -n "$relay" ]; then
        kill "$relay" 2>/dev/null
        wait "$relay" 2>/dev/null
    fi
    [ "$code" -eq 0 ] || [ "$told" = yes ] || complain 'broken off'
    if [ "$started" = yes ] && ! shut_down; then
        complain "$template was off before and does not shut down: qvm-shutdown --wait $template"
    fi
    [ -z "$directory" ] || rm -rf -- "$directory" || complain "cannot remove $directory"
    exit "$code"
}

# fetch PATH FILE KIB: a file of the qube, at most KIB large. The limit is on the writes of the relay
# itself: if only its reader stopped, the relay would run for as long as the qube sends.
fetch() {
    local code=0 size
    (
        ulimit -c 0 -f "$3"
        exec timeout --kill-after=10 "$patience" \
            qvm-run --pass-io --no-gui --no-autostart "$qube" "cat -- '$1'" \
            </dev/null >"$2" 2>"$directory/untrusted_words"
    ) &
    relay=$!
    wait "$relay" 2>/dev/null || code=$? # which a signal to us ends, unlike a program in the foreground
    relay=''
    size=$(stat -c %s "$2") || fail "cannot look at what $qube sent"
    [ "$size" -lt $(($3 * 1024)) ] || fail "$1 in $qube is larger than $(($3 - 1)) KiB"
    [ "$code" -ne 124 ] || fail "$1 was not there within $patience s"
    [ "$code" -eq 0 ] || fail "cannot read $1 in $qube: $(words)"
}

# What runs in the template, as root, with the package on its standard input: one compound command, as
# bash there reads it from where the package then comes from. Where the client was not installed before,
# a failure leaves none behind. Its last line says that it came to its end.
IFS= read -r -d '' in_template <<'TEXT' || true
stop() { echo "$1" >&2; exit 1; }
d=$(mktemp -d /var/tmp/qvm-remote.XXXXXXXXXX) || stop 'no directory to be had'
trap 'rm -rf "$d"' EXIT
trap 'exit 1' HUP INT TERM
p=$d/qvm-remote.$kind
cat >"$p" || stop 'cannot write the package'
said=$(sha256sum <"$p") && [ "$said" = "$digest  -" ] || stop 'the package was damaged on its way'
case $kind in
rpm)
    named() { rpm -qp --queryformat '%{NAME}' "$p"; }
    there() { rpm -q qvm-remote; }
    add() { rpm -U --define '_pkgverify_level digest' "$p"; }
    drop() { rpm -e qvm-remote; } ;;
deb)
    named() { dpkg-deb -f "$p" Package; }
    there() { dpkg -s qvm-remote; }
    add() { apt-get --yes --no-install-recommends install "$p"; }
    drop() { dpkg --purge --force-remove-reinstreq qvm-remote; } ;;
*)
    named() { set -- $(pacman -Qp "$p"); echo "$1"; }
    there() { pacman -Q qvm-remote; }
    add() { pacman --noconfirm -U "$p"; }
    drop() { pacman --noconfirm -R qvm-remote; } ;;
esac
said=$(named </dev/null) && [ "$said" = qvm-remote ] || stop 'that is a package of something else than qvm-remote'
there >/dev/null 2>&1 </dev/null && had=yes || had=no
add </dev/null >"$d/said" 2>&1 || {
    tail -n 5 "$d/said" >&2
    [ "$had" = yes ] || ! there >/dev/null 2>&1 </dev/null || drop >/dev/null 2>&1 </dev/null
    exit 1
}
echo "installed $digest"
}
TEXT
readonly in_template

usage='usage: install-template.sh [--sha256 DIGEST [--yes]] TEMPLATE QUBE PACKAGE'

main() {
    local yes=no wanted='' digest untrusted_digest size answer untrusted_answer given kind text code=0
    while [ $# -gt 0 ]; do
        case $1 in
        -y | --yes) yes=yes ;;
        --sha256)
            [[ ${2-} =~ ^[0-9a-f]{64}$ ]] || fail '--sha256 takes the 64 digits of a digest, 0-9 and a-f'
            wanted=$2
            shift
            ;;
        -h | --help)
            printf '%s\n' "$usage"
            exit 0
            ;;
        -*) fail "$usage" ;;
        *) break ;;
        esac
        shift
    done
    [ $# -eq 3 ] || fail "$usage"
    template=$1 qube=$2 given=$3
    [ "$yes" = no ] || [ -n "$wanted" ] ||
        fail '--yes needs --sha256: without a digest that somebody compared, the qube could install anything'
    [ -e /etc/qubes-release ] && [ ! -e /usr/share/qubes/marker-vm ] ||
        fail 'this is run in dom0 of Qubes OS'
    [ "$EUID" -eq 0 ] || [[ " $(id -nG) " == *' qubes '* ]] ||
        fail 'calling into qubes needs root or a member of group qubes'
    for each in "$template" "$qube"; do
        [[ $each =~ ^[A-Za-z][A-Za-z0-9_-]{0,30}$ ]] && [ "$each" != dom0 ] ||
            fail "'${each//[^ -~]/?}' is no name of a qube"
    done
    [[ $given =~ ^[A-Za-z0-9_./+~-]+\.(rpm|deb|pkg\.tar\.zst)$ ]] && [[ $given != -* ]] ||
        fail "the package's path in the qube ends in .rpm, .deb or .pkg.tar.zst and has letters, digits and _ . / + ~ - only"
    kind=${BASH_REMATCH[1]}
    for program in qvm-check qvm-ls qvm-run qvm-shutdown qvm-start sha256sum stat timeout; do
        command -v "$program" >/dev/null || fail "$program is missing here"
    done
    look || fail "there is no $template, or qvm-ls does not tell its state"
    case $class in
    TemplateVM | StandaloneVM) ;;
    *) fail "$template is no template: what is installed in it would be gone with its next start" ;;
    esac
    case $state in
    Running | Halted) ;;
    *) fail "$template is neither running nor off: $state" ;;
    esac
    qvm-check --quiet --running "$qube" >/dev/null 2>&1 </dev/null ||
        fail "$qube is not running, and only a template is started here"

    trap leave EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    directory=$(mktemp -d /var/tmp/qvm-remote.XXXXXXXXXX) || fail 'cannot make a directory in /var/tmp'

    fetch "$given.sha256" "$directory/untrusted_digest" 2
    IFS= read -r -N 64 untrusted_digest <"$directory/untrusted_digest" || true
    [[ $untrusted_digest =~ ^[0-9a-f]{64}$ ]] || fail "$given.sha256 does not begin with the 64 digits of a SHA-256"
    fetch "$given" "$directory/package" "$package_kib"
    digest=$(sha256sum <"$directory/package") || fail 'cannot compute the digest'
    digest=${digest%% *}
    [[ $digest =~ ^[0-9a-f]{64}$ ]] || fail 'sha256sum gave no digest'
    [ "$digest" = "$untrusted_digest" ] ||
        fail "$given is not what $given.sha256 is about: one is of another package, or was damaged"
    [ -z "$wanted" ] || [ "$digest" = "$wanted" ] || fail "the package has another digest: $digest"
    size=$(stat -c %s "$directory/package") || fail 'cannot look at the package'

    printf '%s\n' "From $qube: $given, $size bytes, SHA-256" "    $digest" \
        "Whoever made this package will own $template and every qube based on it. Is that the digest which" \
        "was published with it, as read out from somewhere that you trust more than $qube?"
    if [ "$yes" = no ]; then
        printf 'Type yes to install it: '
        IFS= read -r answer || answer=''
        [ "$answer" = yes ] || fail 'not confirmed; nothing was changed'
    fi

    look || fail 'qvm-ls does not tell the state any more'
    if [ "$state" = Halted ]; then
        started=yes
        qvm-start --quiet --skip-if-running "$template" >"$directory/untrusted_words" 2>&1 </dev/null ||
            fail "$template does not start: $(words)"
    fi
    text="{ kind=$kind digest=$digest
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive
${in_template%$'\n'}" # qvm-run ends it with "; exit"
    # A package manager that is broken off leaves a mess: from here on no signal does that.
    trap '' INT TERM HUP
    (
        ulimit -c 0 -f 1024
        exec timeout --kill-after=10 "$install_time" \
            qvm-run --pass-io --no-gui --no-autostart --user=root "$template" "$text" \
            <"$directory/package" >"$directory/untrusted_answer" 2>"$directory/untrusted_words"
    ) || code=$?
    IFS= read -r -N 74 untrusted_answer <"$directory/untrusted_answer" || true
    [ "$untrusted_answer" = "installed $digest" ] ||
        fail "$template does not say that it installed it (exit code $code): $(words)"
    if [ "$started" = yes ]; then
        shut_down || fail "it is installed, but $template does not shut down: qvm-shutdown --wait $template"
    fi
    printf '%s\n' "qvm-remote is installed in $template. Qubes based on it have it from their next start on."
}

main "$@"
exit
