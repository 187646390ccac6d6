# SPDX-License-Identifier: GPL-2.0-or-later
# bash completion for qvm-remote(1). It needs nothing of the bash-completion package, but completes a
# dom0 command's file names only as far as this qube has them.

_qvm_remote() {
    local options='-t --timeout -n --no-stdin --exec --script --tty --shell -e --escape --no-wait --dry-run --transport --plugin-dir
        -v --verbose -q --quiet -h --help --version'
    local subcommands='key ping status queue log history'
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local i command='' at=0 plain=
    COMPREPLY=()

    for ((i = 1; i < COMP_CWORD; ++i)); do
        case ${COMP_WORDS[i]} in
        -t | --timeout | -e | --escape | --transport | --plugin-dir) ((++i)) ;;
        --script) plain=1; ((++i)) ;;
        --exec | --tty | --shell) plain=1 ;;
        --) plain=1; command=${COMP_WORDS[i + 1]} at=$((i + 1)); break ;;
        -*) ;;
        *) command=${COMP_WORDS[i]} at=$i; break ;;
        esac
    done

    if ((at == 0)); then
        case $prev in
        -t | --timeout | -e | --escape) return ;;
        --transport) COMPREPLY=($(compgen -W 'qvm-run qrexec mock' -- "$cur")); return ;;
        --plugin-dir) COMPREPLY=($(compgen -d -- "$cur")); return ;;
        --script) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        esac
        if [[ $cur == -* ]]; then
            COMPREPLY=($(compgen -W "$options" -- "$cur"))
        elif [[ -z $plain ]]; then
            COMPREPLY=($(compgen -W "$subcommands" -- "$cur"))
        fi
        return
    fi
    if [[ -z $plain ]]; then
        case $command:$((COMP_CWORD - at)) in
        key:1) COMPREPLY=($(compgen -W 'gen show import' -- "$cur")); return ;;
        queue:1) COMPREPLY=($(compgen -W 'status clean debug' -- "$cur")); return ;;
        history:1) COMPREPLY=($(compgen -W 'show' -- "$cur")); return ;;
        history:2)
            [[ $prev == show ]] && COMPREPLY=($(compgen -W "$(cd ~/.qvm-remote/history 2>/dev/null &&
                printf '%s\n' */*/ | sed -n 's,^[^/]*/\([A-Za-z0-9._-]*\)/$,\1,p')" -- "$cur"))
            return
            ;;
        key:* | ping:* | status:* | queue:* | log:* | history:*) return ;;
        esac
    fi
    COMPREPLY=($(compgen -f -- "$cur"))
}
complete -F _qvm_remote qvm-remote
