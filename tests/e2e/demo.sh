#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# What qvm-remote does, shown on the mock transport: client, plug-in, daemon and bash are the real
# ones, and all of it happens below a scratch directory. Usage: demo.sh BUILD-DIRECTORY
# Each step is checked, so that the demo fails where the program does.
set -euo pipefail

build=$(cd "$1" && pwd)
scratch=$(mktemp -d /tmp/qvm-remote-demo-XXXXXX)
daemon=
cleanup() {
    [ -z "$daemon" ] || { kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; }
    rm -rf "$scratch"
}
trap cleanup EXIT
mkdir -m 700 "$scratch/home" "$scratch/dom0"
export HOME=$scratch/home QVM_REMOTE_PLUGIN_DIR=$build/plugins/mock

bold=$'\e[1m' plain=$'\e[0m'
[ -t 1 ] && [ -z "${NO_COLOR:-}" ] || bold='' plain=''
step() { printf '\n%s== %s%s\n' "$bold" "$1" "$plain"; }
show() { printf '%s$ %s%s\n' "$bold" "$1" "$plain"; }
qvm-remote() { "$build/tools/qvm-remote/qvm-remote" "$@"; }
qvm-remote-dom0() { "$build/tools/qvm-remote-dom0/qvm-remote-dom0" --root "$scratch/dom0" "$@"; }
expect() { # what, got, wanted
    [ "$2" = "$3" ] || { printf 'demo: %s: got %q, not %q\n' "$1" "$2" "$3" >&2; exit 1; }
}

step 'Nothing set up: the mock transport brings a private daemon and a throw-away key'
show "qvm-remote --transport mock 'echo out; echo err >&2; exit 7'"
code=0
qvm-remote --transport mock 'echo out; echo err >&2; exit 7' \
    >"$scratch/out" 2>"$scratch/err" || code=$?
cat "$scratch/out" "$scratch/err"
echo "exit code $code"
expect stdout "$(cat "$scratch/out")" out
expect stderr "$(cat "$scratch/err")" err
expect 'exit code' "$code" 7

step 'As it is for real: a key made in the qube, registered in dom0, and a daemon that runs'
show 'qvm-remote key gen'
qvm-remote key gen
show 'qvm-remote key show | qvm-remote-dom0 authorize work'
qvm-remote key show 2>/dev/null | qvm-remote-dom0 authorize work
show 'qvm-remote-dom0 --transport mock &'
QVM_REMOTE_MOCK_DIR=$scratch/dom0 QVM_REMOTE_MOCK_PEERS='work stranger' \
    "$build/tools/qvm-remote-dom0/qvm-remote-dom0" --root "$scratch/dom0" --transport mock \
    --plugin-dir "$build/plugins/mock" &
daemon=$!
for _ in $(seq 200); do
    qvm-remote-dom0 status >"$scratch/status" 2>/dev/null && break
    sleep 0.05
done
cat "$scratch/status"
export QVM_REMOTE_TRANSPORT=mock QVM_REMOTE_MOCK_SOCKET=$scratch/dom0/work.sock
show 'qvm-remote ping'
qvm-remote ping

step 'A stream, seen as it arrives'
show "qvm-remote 'for i in 1 2 3; do echo line \$i; sleep 0.3; done'"
begin=$(date +%s%N)
qvm-remote 'for i in 1 2 3; do echo line $i; sleep 0.3; done' | while read -r line; do
    printf '%4d ms  %s\n' $((($(date +%s%N) - begin) / 1000000)) "$line"
done

step 'Standard input is passed on'
show "seq 100000 | qvm-remote 'sort -n | tail -1; wc -c' — and a digest both ways"
expect stdin "$(seq 100000 | qvm-remote sha256sum)" "$(seq 100000 | sha256sum)"
seq 100000 | qvm-remote sha256sum

step 'Exit codes tell who spoke'
for try in 'exit 3' 'kill -9 $$' '--exec /nowhere/to/be/found' '-t 1 sleep 5'; do
    code=0
    show "qvm-remote $try"
    case $try in
    --exec*) qvm-remote --exec /nowhere/to/be/found || code=$? ;;
    -t*) qvm-remote -t 1 'sleep 5' || code=$? ;;
    *) qvm-remote "$try" || code=$? ;;
    esac
    echo "exit code $code"
    case $try in
    'exit 3') expect code $code 3 ;;
    kill*) expect code $code 137 ;;
    --exec*) expect code $code 127 ;;
    -t*) expect code $code 124 ;;
    esac
done

step 'A qube without a key is refused'
code=0
show 'qvm-remote id        (as the qube "stranger")'
QVM_REMOTE_MOCK_SOCKET=$scratch/dom0/stranger.sock qvm-remote id || code=$?
echo "exit code $code"
expect 'refusal' "$code" 126

step 'Revoked, and it is over'
show 'qvm-remote-dom0 revoke work; qvm-remote id'
qvm-remote-dom0 revoke work
code=0
qvm-remote id || code=$?
expect 'after revoke' "$code" 126
echo "exit code $code"

step 'What was recorded in the qube'
show 'qvm-remote history 4'
qvm-remote history 4
step 'What was recorded in dom0: the log, and the audit line of the last command that ran'
show 'qvm-remote-dom0 log 6'
qvm-remote-dom0 log 6
grep '"kind":"START"' "$scratch/dom0/var/log/qvm-remote/audit.jsonl" | tail -1

printf '\n%sDone: everything above ran here, not in dom0.%s\n' "$bold" "$plain"
