# SPDX-License-Identifier: GPL-2.0-or-later
# bash completion for qvm-remote-dom0(8). It needs nothing of the bash-completion package.

_qvm_remote_dom0() {
    local options='--vm --once --wait --dry-run -v --verbose --transport --plugin-dir --root
        -h --help --version'
    local subcommands='authorize revoke rotate connect disconnect keys status approvals panic resume policy migrate queue log audit
        enable disable'
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local i command='' root='' words=''
    COMPREPLY=()

    for ((i = 1; i < COMP_CWORD; ++i)); do
        case ${COMP_WORDS[i]} in
        --root) root=${COMP_WORDS[++i]} ;;
        --vm | --wait | --transport | --plugin-dir) ((++i)) ;;
        -*) ;;
        *) command=${COMP_WORDS[i]}; break ;;
        esac
    done

    case $command:$prev in
    :--transport) words='mock qvm-run qrexec' ;;
    :--plugin-dir | :--root) COMPREPLY=($(compgen -d -- "$cur")); return ;;
    :--wait) return ;;
    :--vm | authorize:authorize | connect:connect) words=$(qvm-ls --raw-list 2>/dev/null) ;;
    revoke:revoke | disconnect:disconnect | rotate:rotate) # the key directory is root's; for others there is nothing to offer
        words=$(qvm-remote-dom0 ${root:+--root "$root"} keys 2>/dev/null | sed 's/ .*//') ;;
    authorize:--level | authorize:-l | connect:--level | connect:-l)
        words='deny monitor read-only manage full' ;;
    authorize:* | connect:*) words='--level --until --fetch' ;;
    approvals:approvals) words='list watch show allow deny' ;;
    approvals:list) words=--json ;;
    approvals:show | approvals:allow | approvals:deny)
        words=$(qvm-remote-dom0 ${root:+--root "$root"} approvals 2>/dev/null | sed -n 's/^serial  *\. \([0-9]*\),.*/\1/p') ;;
    approvals:*) words='--for --json' ;;
    policy:policy) words='check lint' ;;
    policy:check) words=$(qvm-ls --raw-list 2>/dev/null) ;;
    queue:queue) words='status clean recover debug' ;;
    keys:*) words=--json ;;
    audit:audit) words='verify show export rotate' ;;
    audit:--heads) COMPREPLY=($(compgen -f -- "$cur")); return ;;
    audit:--format) words='json text' ;;
    audit:*) [[ $cur == -* ]] && words='--heads --since --format' ;;
    :*) [[ $cur == -* ]] && words=$options || words=$subcommands ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -F _qvm_remote_dom0 qvm-remote-dom0
