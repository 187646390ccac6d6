#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Installs qvm-remote-dom0 in dom0, from a package in a running qube:
#
#     sudo bash install-dom0.sh [--sha256 DIGEST [--yes]] QUBE PACKAGE
#
# PACKAGE is the path of the .rpm in the qube, absolute or from its user's home. PACKAGE.sha256, as
# sha256sum writes it, is in the same directory. Copy this script into dom0 with
#
#     qvm-run --pass-io QUBE 'cat /usr/share/qvm-remote/install-dom0.sh' >install-dom0.sh
#
# and read it before you run it. It shows the SHA-256 of what arrived. Compare that with the digest that
# was published with the package; if you do not trust the qube, read that digest in another place. With
# --sha256 this script compares; with --yes, which needs --sha256, it asks nothing.
#
# What a qube sends is hostile until somebody has said yes to its digest. Until then its bytes are only
# counted, hashed, and kept in a directory that only root can enter; rpm reads them afterwards. When a
# step fails, dom0 is as it was before.
set -euo pipefail
shopt -s inherit_errexit
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
export PATH LC_ALL=C
unset -v CDPATH TMPDIR

readonly name=qvm-remote-dom0
readonly state=/var/lib/qvm-remote # of the daemon, mode 0700
readonly kept=$state/installed.rpm # what upgrade-dom0.sh goes back to
readonly package_kib=65536
readonly patience=300 # seconds for one call into the qube

directory='' made_state=no before='' can_go_back=no touched=no relay='' told=no

complain() { printf 'install-dom0.sh: %s\n' "$1" >&2; }
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

# The installed version, or nothing if none is installed; fails when rpm cannot tell.
installed() { rpm -qa --queryformat '%{VERSION}-%{RELEASE}\n' "$name" </dev/null; }
version_of() { rpm -qp --queryformat '%{NAME} %{VERSION}-%{RELEASE}' "$1" </dev/null 2>"$directory/untrusted_words"; }

# The package need not be signed, since its digest was compared.
upgrade() { rpm -U --define '_pkgverify_level digest' "$@" </dev/null >"$directory/untrusted_words" 2>&1; }

# What rpm did before it failed, if anything.
undo() {
    [ "$touched" = yes ] && [ "$(installed)" != "$before" ] || return 0
    if [ -z "$before" ]; then
        rpm -e "$name" </dev/null >/dev/null 2>&1 || complain "and rpm -e $name does not take it away again"
    elif [ "$can_go_back" = no ] || ! upgrade --oldpackage --replacepkgs "$kept"; then
        complain "and $name $before is not kept here to go back to: install it again"
    fi
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
    if [ "$code" -ne 0 ]; then
        [ "$told" = yes ] || complain 'broken off; dom0 is as it was'
        [ -z "$directory" ] || undo
    fi
    [ -z "$directory" ] || rm -rf -- "$directory" || complain "cannot remove $directory"
    [ "$made_state" = no ] || [ "$code" -eq 0 ] || rmdir "$state" 2>/dev/null
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

usage='usage: install-dom0.sh [--sha256 DIGEST [--yes]] QUBE PACKAGE'

main() {
    local yes=no wanted='' digest untrusted_digest size answer given new was now
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
    [ $# -eq 2 ] || fail "$usage"
    qube=$1 given=$2
    [ "$yes" = no ] || [ -n "$wanted" ] ||
        fail '--yes needs --sha256: without a digest that somebody compared, the qube could install anything'
    [ -e /etc/qubes-release ] && [ ! -e /usr/share/qubes/marker-vm ] ||
        fail 'this installs into dom0 of Qubes OS, and is run there'
    [ "$EUID" -eq 0 ] || fail 'installing needs root: sudo bash install-dom0.sh ...'
    [[ $qube =~ ^[A-Za-z][A-Za-z0-9_-]{0,30}$ ]] && [ "$qube" != dom0 ] || fail "'${qube//[^ -~]/?}' is no name of a qube"
    [[ $given =~ ^[A-Za-z0-9_./+~-]+\.rpm$ ]] && [[ $given != -* ]] ||
        fail "the package's path in the qube ends in .rpm and has letters, digits and _ . / + ~ - only"
    for program in qvm-check qvm-run rpm sha256sum stat timeout; do
        command -v "$program" >/dev/null || fail "$program is missing here"
    done
    qvm-check --quiet --running "$qube" >/dev/null 2>&1 </dev/null ||
        fail "$qube is not running, and nothing here starts a qube"

    trap leave EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    if [ ! -d "$state" ]; then
        mkdir -m 0700 "$state" || fail "cannot make $state"
        made_state=yes
    fi
    directory=$(mktemp -d "$state/install.XXXXXXXXXX") || fail "cannot make a directory in $state"

    fetch "$given.sha256" "$directory/untrusted_digest" 2
    IFS= read -r -N 64 untrusted_digest <"$directory/untrusted_digest" || true
    [[ $untrusted_digest =~ ^[0-9a-f]{64}$ ]] || fail "$given.sha256 does not begin with the 64 digits of a SHA-256"
    fetch "$given" "$directory/package.rpm" "$package_kib"
    digest=$(sha256sum <"$directory/package.rpm") || fail 'cannot compute the digest'
    digest=${digest%% *}
    [[ $digest =~ ^[0-9a-f]{64}$ ]] || fail 'sha256sum gave no digest'
    [ "$digest" = "$untrusted_digest" ] ||
        fail "$given is not what $given.sha256 is about: one is of another package, or was damaged"
    [ -z "$wanted" ] || [ "$digest" = "$wanted" ] || fail "the package has another digest: $digest"
    size=$(stat -c %s "$directory/package.rpm") || fail 'cannot look at the package'

    printf '%s\n' "From $qube: $given, $size bytes, SHA-256" "    $digest" \
        'Whoever made this package will own dom0. Is that the digest which was published with it, as' \
        "read out from somewhere that you trust more than $qube?"
    if [ "$yes" = no ]; then
        printf 'Type yes to install it: '
        IFS= read -r answer || answer=''
        [ "$answer" = yes ] || fail 'not confirmed; nothing was changed'
    fi

    new=$(version_of "$directory/package.rpm") || fail "rpm cannot read the package: $(words)"
    [[ $new =~ ^$name\ [A-Za-z0-9._+~^-]+$ ]] || fail "that is a package of something else than $name"
    before=$(installed) || fail 'rpm cannot tell what is installed'
    if [ -n "$before" ] && [ -f "$kept" ]; then
        was=$(version_of "$kept") || fail "rpm cannot read $kept, the package of before: $(words)"
        [ "$was" != "$name $before" ] || can_go_back=yes
    fi
    upgrade --test "$directory/package.rpm" || fail "rpm would not install it: $(words)"
    touched=yes
    upgrade "$directory/package.rpm" || fail "rpm did not install it: $(words)"
    now=$(installed) || fail 'rpm cannot tell what is installed now'
    [ "$now" = "${new#* }" ] || fail "rpm says that it installed it, and has $now"
    mv -f -T -- "$directory/package.rpm" "$kept" || [ ! -e "$directory/package.rpm" ] ||
        fail "cannot keep the package as $kept"
    touched=no

    printf '%s\n' "$new is installed. It is not running, and does not at boot, until you say so:" \
        "    qvm-remote-dom0 authorize $qube --fetch" '    qvm-remote-dom0 enable'
}

main "$@"
exit
