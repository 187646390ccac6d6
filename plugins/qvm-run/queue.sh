# SPDX-License-Identifier: GPL-2.0-or-later
# The carrier of protocol 1 for a qube without our agent (doc/PROTOCOL.md, "Queue"), in the shell that
# is there, with coreutils or busybox. dom0 sends it along with each call: comments, indentation and
# empty lines stay behind (embed.py), and the rest has to be small.
#
# Three processes: a clock and the reader of dom0's orders write lines into a pipe; the other end of it
# alone speaks to dom0, so that nothing of it is ever torn apart. What is in S is known to dom0 or
# will be: " ID/STATE ID/STATE ", where STATE is a number while the token may still come (the tick at
# which the entry was seen), l and a number to be announced again from that tick on, a for announced, r for
# running, x for what could not be taken.
export LC_ALL=C
umask 077
R=$(printf '\r')
cd || exit
[ -e .qvm-remote ] || [ ! -e .qubes-remote ] || mv .qubes-remote .qvm-remote
mkdir -p .qvm-remote/queue && cd .qvm-remote/queue && mkdir -p pending running results || exit
exec 2>/dev/null
is_id() {
    case $1 in .*|-*|*[!A-Za-z0-9._-]*|*.auth|*.cmd) return 1;; esac
    [ ${#1} -le 128 ]
}
is_file() { [ -f "$1" ] && [ ! -L "$1" ]; }
get() {
    s=${S#* $1/}
    [ "$s" = "$S" ] && s= || s=${s%% *}
}
put() {
    w=${S#* $1/}
    [ "$w" = "$S" ] || S="${S%% $1/*} ${w#* }"
    [ -z "$2" ] || S="$S$1/$2 "
}
say() { printf '%s\n' "$*"; }
# An entry's size, its token, and whether it is time.
consider() {
    get $1
    case $s in
    a|r|x) return;;
    l*) [ $n -ge ${s#l} ] || return;;
    '') put $1 $n; s=$n;;
    esac
    t=
    ! is_file pending/$1.auth || read -r t <pending/$1.auth
    t=${t%"$R"}
    case ${#t}/$t in 64/*[!0-9a-f]*) t=;; 64/*);; *) t=;; esac
    [ -n "$t" ] || { [ $((n - ${s#l})) -ge 20 ] || return; t=-; }
    # What cannot be read waits for nobody.
    z=$(wc -c <pending/$1) || { put $1 x; return; }
    put $1 a
    say entry $1 $t $((z))
}
# Where somebody removed or moved the queue, this call ends; dom0's next one makes it again.
look() {
    for d in pending running results; do
        [ $d -ef ~/.qvm-remote/queue/$d ] || { kill $$; exit; }
    done
    n=$((n + 1))
    for f in pending/*; do
        i=${f#*/}
        is_id "$i" && is_file "$f" && consider $i
    done
    b=
    for e in $S; do
        i=${e%/*} s=${e##*/} d=pending
        [ $s != r ] || d=running
        if is_file $d/$i; then
            [ $s = x ] || b=1
        else
            put $i
            case $s in a|r) say gone $i;; esac
        fi
    done
    [ -n "$b" ] || [ -n "$idle" ] || say idle
    [ -n "$b" ] && idle= || idle=1
}
fetch() {
    get $1
    [ "$s" = a ] || return
    if is_file pending/$1 && mv -f pending/$1 running/; then
        z=$(wc -c <running/$1)
        if [ $z -le 1048576 ]; then
            rm -f pending/$1.auth
            put $1 r
            say body $1 $((z))
            head -c $z running/$1
            return
        fi
        mv -f running/$1 pending/
    fi
    put $1 x
    say gone $1
}
speak() {
    S=' ' n=0 idle=
    printf '\000qvm-remote 1\r\n\377'
    for f in results/.*.exit; do
        i=${f#*/.} i=${i%.exit}
        is_id "$i" && is_file "$f" && [ ! -e running/$i ] && mv -f $f results/$i.exit
    done
    for f in running/*; do
        i=${f#*/}
        is_id "$i" && is_file "$f" || continue
        # One that has its result was to be removed in the next moment.
        if [ -f results/$i.exit ]; then rm -f "$f"; else put $i r; say stale $i; fi
    done
    while read -r v i; do
        case $v in
        t) look;;
        fetch) fetch $i;;
        later) put $i l$((n + 4));;
        ping) say pong $i;;
        drop) put $i;;
        *) put $i; say $v $i;;
        esac
    done
}
# So many bytes of dom0's, in one piece; dd alone reads no more than it is told to.
bytes() { [ $1 = 0 ] || dd bs=$1 count=1 iflag=fullblock; }
# A file that cannot be opened would leave its bytes in the stream.
output() {
    case $O in *" $1 "*);; *) rm -f results/.$1.out results/.$1.err; O="$O$1 ";; esac
    f=results/.$1.$2
    true >>$f || f=/dev/null
    bytes $3 >>$f && [ $f != /dev/null ] && return
    case $F in *" $1 "*);; *) F="$F$1 ";; esac
}
finish() {
    output $1 out 0
    output $1 err 0
    output $1 meta $3
    a=$(bytes $4)
    cd results
    x=$2
    case $F in *" $1 "*) x=255;; esac
    for e in meta out err; do mv -f .$1.$e $1.$e || x=255; done
    printf %s $x >.$1.exit && [ $x = $2 ] && v=done || v=failed
    cd ..
    [ $4 = 0 ] || say "$a" >>../audit.log || v=failed
    # Nothing else is left when the exit code appears; speak publishes what a crash kept hidden.
    rm -f running/$1 pending/$1 pending/$1.auth
    mv -f results/.$1.exit results/$1.exit || v=failed
    forget $1
    say $v $1
}
forget() {
    O="${O%% $1 *} ${O#* $1 }"
    case $F in *" $1 "*) F="${F%% $1 *} ${F#* $1 }";; esac
}
listen() {
    O=' ' F=' '
    while read -r v i x m k; do
        case $v in
        fetch|later|ping) say $v $i;;
        drop)
            rm -f pending/$i pending/$i.auth pending/$i.cmd results/.$i.out results/.$i.err
            case $O in *" $i "*) forget $i;; esac
            say drop $i;;
        out|err) output $i $v $x;;
        result) finish $i $x $m $k;;
        *) break;;
        esac
    done
}
# A look every quarter of a second, every second when nothing has come for a minute.
clock() {
    q=0
    while say t; do
        for f in pending/*; do [ ! -e "$f" ] || q=0; break; done
        q=$((q + 1))
        [ $q -lt 240 ] && sleep .25 || sleep 1
    done
}
{
    clock &
    listen
    kill $!
} | speak
exit
