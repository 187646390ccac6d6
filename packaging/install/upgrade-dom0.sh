#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Upgrades qvm-remote-dom0 in dom0, from a qube that has level full there:
#
#     upgrade-dom0.sh [--yes] PACKAGE
#
# PACKAGE is an .rpm in this qube. It goes to dom0 through qvm-remote, with its SHA-256 in the signed
# request, and is tested there (rpm --test) before anything changes. Then a systemd unit in dom0 installs
# it and restarts the daemon. It is a unit, because every command of the daemon ends with the daemon.
#
# The new version is confirmed when this qube runs a command through it. If that does not happen in time,
# because the daemon does not start, cannot be reached or refuses this qube, the unit installs the old
# version and restarts the daemon. Only install-dom0.sh and this script keep a package to go back to;
# without one nothing is done.
#
# If dom0 restarts meanwhile, the unit is gone. The new version stays, unconfirmed, and the old package is
# still kept. The next call of this script that reaches dom0 confirms the version, and says so. If none
# does, go back by hand: in dom0, `rpm -U --oldpackage --replacepkgs /var/lib/qvm-remote/installed.rpm`.
set -euo pipefail
shopt -s inherit_errexit
export LC_ALL=C

readonly package_bytes=67108864
answer_time=90 # seconds that the new version has

directory='' told=no

complain() { printf 'upgrade-dom0.sh: %s\n' "$1" >&2; }
fail() {
    complain "$1"
    told=yes
    exit 1
}

leave() {
    local code=$?
    trap - EXIT
    [ "$code" -eq 0 ] || [ "$told" = yes ] || complain 'broken off; dom0 goes back by itself if it had begun'
    [ -z "$directory" ] || rm -rf -- "$directory"
    exit "$code"
}

# --- what runs in dom0, sent there as text ------------------------------------------------------

dom0_setup() {
    set -euo pipefail
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin LC_ALL=C
    name=qvm-remote-dom0
    state=/var/lib/qvm-remote
    kept=$state/installed.rpm
    unit=qvm-remote-dom0.service
}

refuse() {
    printf '%s\n' "${1//[^ -~]/ }" >&2
    exit 1
}

installed() { rpm -qa --queryformat '%{VERSION}-%{RELEASE}\n' "$name" </dev/null; }
version_of() { rpm -qp --queryformat '%{NAME} %{VERSION}-%{RELEASE}' "$1" </dev/null 2>/dev/null; }
# The digest in the request stands for the package, which need not be signed.
upgrade() { said=$(rpm -U --define '_pkgverify_level digest' "$@" </dev/null 2>&1); }

# What a restart of dom0 left unconfirmed is the version that this call came through, which is the answer
# that was waited for. Of a power cut the file may be half of itself: rpm looks at its digests.
settle() { # VERSION
    local package
    for package in "$state"/upgrade.??????????/package.rpm; do
        [ "$(version_of "$package")" = "$name $1" ] || continue
        upgrade --test --oldpackage --replacepkgs "$package" || continue
        ! mv -f "$package" "$kept" || return 0
    done
    return 1
}

# Takes the package from standard input; prints its directory, the old and the new version, and `confirmed`
# if the old one was not until now.
stage() { # DIGEST LIMIT SECONDS
    local old new was sum said confirmed=''
    [ "$EUID" -eq 0 ] || refuse 'commands of this qube do not run as root there'
    systemctl is-active --quiet "$unit" </dev/null || refuse "systemd does not run the daemon as $unit there"
    ! systemctl is-active --quiet qvm-remote-upgrade.service </dev/null || refuse 'an upgrade is going on already'
    old=$(installed) || refuse 'rpm cannot tell what is installed'
    [ -n "$old" ] || refuse "$name was not installed by rpm"
    [[ $old != *$'\n'* ]] || refuse "rpm was broken off there and has more than one: ${old//$'\n'/, }"
    if ! { [ -f "$kept" ] && was=$(version_of "$kept") && [ "$was" = "$name $old" ]; }; then
        settle "$old" ||
            refuse "the package of $old is not kept there to go back to: install one by install-dom0.sh first"
        confirmed=confirmed
    fi
    rm -rf "$state"/upgrade.?????????? # of upgrades that nobody asked about again
    directory=$(mktemp -d "$state/upgrade.XXXXXXXXXX") || refuse "no directory to be had in $state"
    trap 'rm -rf "$directory"' EXIT
    head -c $(($2 + 1)) >"$directory/package.rpm" || refuse 'the package cannot be written'
    { sum=$(sha256sum <"$directory/package.rpm") && [ "$sum" = "$1  -" ]; } || refuse 'the package did not arrive whole'
    new=$(version_of "$directory/package.rpm") || refuse 'rpm cannot read the package'
    [[ $new =~ ^$name\ [A-Za-z0-9._+~^-]+$ ]] || refuse "that is a package of something else than $name"
    new=${new#* }
    [ "$new" != "$old" ] ||
        refuse "$new is installed already${confirmed:+, and confirmed by this call: dom0 restarted before its answer}"
    upgrade --test "$directory/package.rpm" || refuse "rpm would not install it: $said"
    {
        declare -f dom0_setup installed upgrade outcome go_back apply
        printf '%s\n' dom0_setup 'apply "$@"'
    } >"$directory/apply" || refuse 'the directory cannot be written'
    systemd-run --quiet --collect --unit=qvm-remote-upgrade.service \
        /bin/bash "$directory/apply" "$directory" "$old" "$new" "$3" </dev/null >/dev/null ||
        refuse 'systemd does not start the upgrade'
    trap - EXIT
    printf '%s %s %s %s\n' "$directory" "$old" "$new" "$confirmed"
}

# How it came out stays to be asked for, for a while. One short write: what is not empty is whole.
outcome() {
    local second
    printf '%s\n' "${1//[^ -~]/ }" >"$directory/outcome"
    for ((second = 0; second < 300; ++second)); do
        [ -d "$directory" ] || break
        sleep 1 || true
    done
    rm -rf "$directory"
}

go_back() { # OLD REASON
    if [ "$(installed)" != "$1" ] && ! upgrade --oldpackage --replacepkgs "$kept"; then
        outcome "failed $2; and rpm does not install $1 again: $said"
    elif ! systemctl restart "$unit" </dev/null; then
        outcome "failed $2; $1 is installed again and does not start"
    else
        outcome "back $2"
    fi
    exit 1
}

apply() { # DIRECTORY OLD NEW SECONDS
    local second now said
    directory=$1
    upgrade "$directory/package.rpm" || go_back "$2" "rpm did not install it: $said"
    { now=$(installed) && [ "$now" = "$3" ]; } || go_back "$2" 'rpm did not install it'
    systemctl restart "$unit" </dev/null || go_back "$2" 'the new daemon does not start'
    : >"$directory/restarted" || go_back "$2" 'the directory cannot be written'
    for ((second = 0; second < $4; ++second)); do
        [ ! -e "$directory/confirmed" ] || break
        sleep 1 || true
    done
    [ -e "$directory/confirmed" ] || go_back "$2" "no answer through the new daemon within $4 s"
    mv -f "$directory/package.rpm" "$kept" || [ ! -e "$directory/package.rpm" ] ||
        go_back "$2" 'the package cannot be kept'
    outcome 'done'
}

# The answer through the new daemon, and then how it came out: waiting, done, or why not.
confirm() { # DIRECTORY
    [[ $1 =~ ^$state/upgrade\.[A-Za-z0-9]{10}$ && -d $1 ]] || refuse 'that is no upgrade of ours'
    if [ -s "$1/outcome" ]; then
        cat "$1/outcome"
        return
    fi
    [ ! -e "$1/restarted" ] || : >"$1/confirmed"
    echo waiting
}

forget() { # DIRECTORY
    [[ $1 =~ ^$state/upgrade\.[A-Za-z0-9]{10}$ ]] || refuse 'that is no upgrade of ours'
    rm -rf "$1"
}

# --- what runs here -----------------------------------------------------------------------------

# in_dom0 SECONDS VERB ARGUMENT...: one of the above, through qvm-remote.
in_dom0() {
    local seconds=$1
    shift
    {
        printf '#!/bin/bash\n'
        declare -f dom0_setup refuse installed version_of upgrade outcome go_back apply settle stage \
            confirm forget
        printf '%s\n' dom0_setup '"$@"'
    } >"$directory/script"
    qvm-remote --quiet -t "$seconds" --script "$directory/script" "$@"
}

# What dom0 says when it refuses, and qvm-remote when it is not reached: one line.
words() {
    local text=''
    IFS= read -r -N 300 text <"$directory/words" || true
    printf '%s' "${text//[^ -~]/ }"
}

usage='usage: upgrade-dom0.sh [--yes] PACKAGE'

main() {
    local yes=no package digest size answer staged old new confirmed end said code=0
    while [ $# -gt 0 ]; do
        case $1 in
        -y | --yes) yes=yes ;;
        -h | --help)
            printf '%s\n' "$usage"
            exit 0
            ;;
        -*) fail "$usage" ;;
        *) break ;;
        esac
        shift
    done
    [ $# -eq 1 ] || fail "$usage"
    package=$1
    [ ! -e /etc/qubes-release ] || fail 'this is run in a qube; in dom0 there is install-dom0.sh'
    for program in qvm-remote sha256sum stat; do
        command -v "$program" >/dev/null || fail "$program is missing here"
    done
    [ -f "$package" ] && [ -r "$package" ] || fail "cannot read ${package//[^ -~]/?}"

    trap leave EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    directory=$(mktemp -d) || fail 'cannot make a temporary directory'
    # What is hashed is what is sent, whatever becomes of the file meanwhile.
    cp -- "$package" "$directory/package.rpm" || fail 'cannot copy the package'
    size=$(stat -c %s "$directory/package.rpm") || fail 'cannot look at the package'
    [ "$size" -le "$package_bytes" ] || fail "the package is larger than $package_bytes bytes"
    digest=$(sha256sum <"$directory/package.rpm") || fail 'cannot compute the digest'
    digest=${digest%% *}
    [[ $digest =~ ^[0-9a-f]{64}$ ]] || fail 'sha256sum gave no digest'
    printf '%s\n' "${package//[^ -~]/?}, $size bytes, SHA-256" "    $digest" \
        'Whoever made this package will own dom0. Its daemon restarts, and commands that run there have' \
        '60 seconds to end.'
    if [ "$yes" = no ]; then
        printf 'Type yes to upgrade dom0: '
        IFS= read -r answer || answer=''
        [ "$answer" = yes ] || fail 'not confirmed; nothing was changed'
    fi

    staged=$(in_dom0 300 stage "$digest" "$package_bytes" "$answer_time" \
        <"$directory/package.rpm" 2>"$directory/words") || code=$?
    case $code in
    0) ;;
    1 | 125 | 126 | 127) fail "dom0 is as it was: $(words)" ;;
    *) fail "dom0 goes back by itself within some minutes, if it has begun: $(words)" ;;
    esac
    [[ $staged =~ ^/[a-zA-Z0-9/.-]+\ [A-Za-z0-9._+~^-]+\ [A-Za-z0-9._+~^-]+\ (confirmed)?$ ]] ||
        fail 'dom0 gave an answer that is none'
    read -r staged old new confirmed <<<"$staged"
    [ -z "$confirmed" ] || printf '%s\n' "dom0 restarted before $old was confirmed; this call is its answer."

    # Longer than the drain, the answer's time and a second drain on the way back.
    end=$((SECONDS + answer_time + 240)) said=''
    while [ "$SECONDS" -lt "$end" ]; do
        said=$(in_dom0 30 confirm "$staged" </dev/null 2>"$directory/words") || said=''
        said=${said//[^ -~]/ }
        case $said in
        'done' | back\ * | failed\ *) break ;;
        esac
        sleep 1 || true
    done
    [ -z "$said" ] || in_dom0 30 forget "$staged" </dev/null >/dev/null 2>&1 || true
    case $said in
    'done') printf '%s\n' "dom0 has $new, and had $old before." ;;
    back\ *) fail "dom0 is back at $old: ${said#back }" ;;
    failed\ *) fail "dom0 needs a hand: ${said#failed }" ;;
    *) fail "dom0 does not say how it came out; it goes back to $old when nothing reaches it: $(words)" ;;
    esac
}

main "$@"
exit
