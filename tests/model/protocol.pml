/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Protocol 2 from the client's call to the process in dom0, for spin. README.md says what is covered
 * and what is left out; run.py runs it, and again with each fault.
 *
 * The agent is no process, and there is no queue that could lose something: what was sent is known to
 * the agent from then on, and each step that takes a message takes any that is known, as often as the
 * agent likes, or none. That is loss, delay, repetition and reordering without a bound. What the agent
 * cannot do is make up a token or a tag.
 *
 * dom0's loop handles one event at a time, so its steps are atomic; the journal's thread, the disk,
 * crashes and the operator come between any two of them.
 */

#define ATTEMPTS 2 /* calls of the client for one command of its user */
#define SESSIONS 3 /* challenges that dom0 gives out, in all lives together; or MODEL_SESSIONS */
#define LIVES 2    /* of the daemon */
#define PIECES 2   /* of output; or MODEL_PIECES */
#define FRAMES (PIECES + 3) /* and PENDING, ACCEPTED, END */

/* Faults to seed. They and the rest of what differs between two searches are numbers that run.py puts
 * into the environment, so that one program does them all. */
#define ID_AFTER_EXEC 1         /* the ID is taken when the command starts, not when it is asked for */
#define IDS_FORGOTTEN 2         /* a new daemon does not read which IDs the log has */
#define EXEC_BEFORE_SYNC 4      /* the command starts when START is written, before it is durable */
#define CHALLENGE_REUSED 8      /* a session that was refused takes another REQUEST */
#define CHALLENGE_REPEATS 16    /* a new daemon gives the challenges of the last one again */
#define DECIDED_ONCE 32         /* what the policy said first holds when the operator has allowed */
#define WAITING_SURVIVES 64     /* a revocation passes over what waits */
#define RECORDING_SURVIVES 128  /* and over what has its START on the way to the disk */
#define RUNNING_SURVIVES 256    /* and over what runs */
#define KEY_CACHED 512          /* a key that was read before the revocation serves behind it */
#define PANIC_FORGOTTEN 1024    /* a new daemon knows of no panic */
#define EOF_SUCCEEDS 2048       /* the client takes the stream's end for the command's */
#define ANY_SEQUENCE 4096       /* tags do not cover the sequence */
#define UNCOUNTED 8192          /* the client does not compare END's counts */
#define ANY_KEY 16384           /* the client takes tags made for another session */
#define REJECTED_RETRIED 32768  /* the client tries again, as new, when somebody said no */
#define SESSIONLESS_START 65536 /* the command starts although its session went meanwhile */
#define UNCHECKED 131072        /* no fault, but one property less: what comes of an unsynced START? */
c_decl {
    static int faults, goal, sessions, pieces_most, operators;
    static int number_of(const char *name) { return atoi(getenv(name)); }
}
#define seeded(fault) c_expr { faults & (fault) }
/* A search for N fails where N comes about: a model that does nothing passes nothing. */
#define reached(number, when) assert(!(c_expr { goal == number } && (when)))

mtype = {
    /* a session in dom0: server_stream::phase, and connection::session's `admitting` */
    unborn, challenged, waiting, asking, recording, running, over,
    /* a START: on its way to the thread, in the file, durable, impossible */
    no_start, queued, written, durable, failed,
    /* an attempt in the qube: client_stream::phase, then how it ended */
    idle, requested, at_work, succeeded, other_exit, refused, id_used, rejected, lost,
    /* tagged frames; refused and id_used are REFUSED, with a reason */
    pending, accepted, output, end_0, end_other,
    /* the policy's word, and keys */
    allow, ask, deny, old_key, new_key, no_key
};

/* The qube. Attempt A has a token of its own, since its header holds a random nonce; A stands for it
 * and for the two keys that come from it. */
mtype attempt[ATTEMPTS] = idle;
byte id_of[ATTEMPTS];         /* 0 or 1: a second attempt may be the same command, or call itself new */
byte challenge_of[ATTEMPTS];  /* what the token covers; 0: the agent has no REQUEST yet */
byte next_in[ATTEMPTS];       /* the sequence of the next frame */
byte pieces_in[ATTEMPTS];
bit torn[ATTEMPTS];           /* a piece is not the one that was due */

/* What dom0 has sent under the keys of A: the agent's for as long as somebody may take it. A piece is
 * numbered, since each has bytes of its own; END has its count. */
typedef frames { mtype type[FRAMES]; byte number[FRAMES]; byte count };
frames out[ATTEMPTS];
#define is_listening(a) (attempt[a] == requested || attempt[a] == at_work)

/* dom0's loop: gone with the daemon. */
mtype stage[SESSIONS] = unborn;
byte fresh[SESSIONS];         /* the challenge; 0 is none */
byte by[SESSIONS];            /* the attempt whose token has verified */
bit alive[SESSIONS];          /* processes of the command */
bit doomed[SESSIONS];         /* revoked while START was on its way */
mtype start[SESSIONS] = no_start;
bit recent[ATTEMPTS];         /* journal::state::recent_, by ID */
bit indexed[ATTEMPTS];        /* what its index of IDs answers */
mtype policy_read = allow;    /* admission's rules_ */
mtype key_read = no_key;      /* admission's key_; no_key: none is held */
bit peer_listed = true;       /* policy::full */
bit panicked;
byte born;                    /* sessions so far */
byte born_before;             /* challenges that are given again */
byte life = 1;

/* dom0's disk. */
mtype line[ATTEMPTS] = no_start; /* the START of an ID, in the audit log */
mtype policy_file = allow;
mtype key_file = old_key;
bit panic_file;

/* What the properties speak of, and no program can see. */
byte executions[ATTEMPTS];    /* of an ID */
bit revoked;                  /* the operator was told that it is done */
bit barred[SESSIONS];         /* of before a revocation or panic that is done */

/* ---- The journal ---- */

/* journal::reserve and release. */
#define is_free(id) (!recent[id] && !indexed[id])
inline reserve(id) { recent[id] = !seeded(ID_AFTER_EXEC) }
inline release(id) { recent[id] = false }

/* The journal's thread, as one START sees it: journal::state::write, tell, remember. That it writes
 * many at once makes steps coincide, which is one order of them. */
proctype journal(byte n)
{
    byte id;
end:
    do
    :: atomic { start[n] == queued ->
           id = id_of[by[n]];
           if
           :: start[n] = failed
           :: start[n] = (seeded(EXEC_BEFORE_SYNC) -> durable : written); line[id] = written
           fi;
           id = 0
       }
    :: atomic { start[n] == written ->
           id = id_of[by[n]];
           if
           :: start[n] = durable; line[id] = durable; indexed[id] = true
           :: start[n] = failed; /* cannot sync: the line may be there or not, and be read again or not */
              if
              :: line[id] = no_start
              :: skip
              :: indexed[id] = true
              fi
           fi;
           id = 0
       }
    od
}

/* ---- dom0's loop ---- */

inline send(a, what, n)
{
    if
    :: is_listening(a) && out[a].count < FRAMES -> /* only a token that verifies twice sends more */
       out[a].type[out[a].count] = what;
       out[a].number[out[a].count] = n;
       out[a].count++
    :: else
    fi
}

/* What nobody can ask for any more is no part of the state. */
inline leave(n)
{
    stage[n] = over;
    if
    :: start[n] == no_start -> by[n] = 0; doomed[n] = false; barred[n] = false
    :: else
    fi
}

/* policy.hpp's decide, for admission::ask. */
#define says(word) (peer_listed && !panicked && policy_read == word)

/* connection::give_up; the abandon of admission::admit and of connection::on_closed does the same to
 * the ID. */
inline give_up(n)
{
    send(by[n], refused, 0);
    release(id_of[by[n]]);
    leave(n);
    if :: seeded(CHALLENGE_REUSED) -> stage[n] = challenged :: else fi
}

/* admission::admit, once it has decided: journal::start. */
inline record(n)
{
    assert(policy_read != deny && !panicked);
    start[n] = queued;
    stage[n] = recording
}

/* execution::start: ACCEPTED, then the process. */
inline execute(n)
{
    assert(line[id_of[by[n]]] == durable || seeded(UNCHECKED));
    assert(!revoked && !barred[n]);
    assert(stage[n] == recording);
    reached(7, life == LIVES && by[n] == 1);
    executions[id_of[by[n]]]++;
    assert(executions[id_of[by[n]]] <= 1); /* an ID runs once */
    assert(executions[0] + executions[1] <= 1); /* what the user wants once runs once */
    if :: seeded(ID_AFTER_EXEC) -> recent[id_of[by[n]]] = true :: else fi;
    send(by[n], accepted, 0);
    alive[n] = true;
    stage[n] = running
}

#define fits(a, n) (challenge_of[a] != 0 && challenge_of[a] == fresh[n])
#define registered (key_file == old_key)

proctype session(byte n)
{
    byte pieces;
end:
    do
    /* connection::handle of an OPEN, the client's or the agent's own: server_stream::issue_challenge. */
    :: atomic { stage[n] == unborn && born == n && c_expr { now.born < sessions } ->
           born++;
           fresh[n] = born - born_before;
           stage[n] = challenged
       }

    /* connection::on_request, where the token verifies: admission::check. Where it does not, what
     * comes of it is the CLOSE below. */
    :: atomic { stage[n] == challenged && (fits(0, n) || fits(1, n)) ->
           if
           :: fits(0, n) -> by[n] = 0
           :: fits(1, n) -> by[n] = 1
           fi;
           /* admission::key_of, in the moment in which it last read the file, or later */
           if
           :: key_read != no_key
           :: key_read = key_file
           fi;
           if
           :: key_read != old_key || panicked -> leave(n) /* REJECTED, which anybody can say */
           :: key_read == old_key && !panicked ->
              if
              :: is_free(id_of[by[n]]) -> /* admission::take_id */
                 reserve(id_of[by[n]]);
                 if
                 :: says(allow) || says(ask) -> stage[n] = waiting
                 :: else -> give_up(n)
                 fi
              :: else -> reached(4, life == LIVES); send(by[n], id_used, 0); leave(n)
              fi
           fi
       }

    /* connection::on_slot and on_body: server_stream::complete, then admission::admit. */
    :: atomic { stage[n] == waiting ->
           if
           :: says(allow) -> record(n)
           :: says(ask) -> send(by[n], pending, 0); stage[n] = asking /* server_stream::pend */
           :: says(deny) || panicked || !peer_listed -> give_up(n)
           fi
       }

    /* The operator allows, which is asked for again and not just done; says no, or nothing for 60 s. */
    :: atomic { stage[n] == asking ->
           if
           :: says(allow) || says(ask) || seeded(DECIDED_ONCE) -> record(n); reached(1, true)
           :: says(deny) || panicked || !peer_listed -> give_up(n)
           fi
       }
    :: atomic { stage[n] == asking -> give_up(n) }

    /* connection::on_admitted, with what the journal has told. */
    :: atomic { start[n] == failed ->
           start[n] = no_start;
           if
           :: stage[n] == recording -> give_up(n) /* not_recorded */
           :: else -> release(id_of[by[n]]); leave(n)
           fi
       }
    :: atomic { start[n] == durable ->
           start[n] = no_start;
           if
           :: stage[n] == recording && !doomed[n] || seeded(SESSIONLESS_START) -> execute(n)
           :: stage[n] == recording && doomed[n] -> /* admission::not_run */
              reached(5, true);
              send(by[n], refused, 0);
              leave(n)
           :: else -> reached(6, true); leave(n) /* admission::not_run, and nobody to be told */
           fi
       }

    /* execution::read_output. */
    :: atomic { stage[n] == running && alive[n] && pieces < PIECES && c_expr { Psession->pieces < pieces_most } ->
           pieces++;
           send(by[n], output, pieces)
       }
    /* execution::finish: server_stream::end. */
    :: atomic { stage[n] == running && alive[n] ->
           alive[n] = false;
           if
           :: true -> send(by[n], end_0, pieces)
           :: true -> send(by[n], end_other, pieces)
           fi;
           pieces = 0;
           leave(n)
       }
    :: atomic { stage[n] == running && !alive[n] -> /* execution::cancel came before */
           send(by[n], end_other, pieces);
           pieces = 0;
           leave(n)
       }

    /* CLOSE, a second REQUEST, a token, tag or frame that does not fit, 30 s without a REQUEST, or
     * the stream's end: server_stream::drop, connection::on_closed, execution::abandon. */
    :: atomic { stage[n] != unborn && stage[n] != over ->
           if
           :: stage[n] == waiting || stage[n] == asking -> release(id_of[by[n]])
           :: stage[n] == running -> alive[n] = false
           :: else /* challenged; or recording, which keeps its ID */
           fi;
           pieces = 0;
           leave(n)
       }
    od
}

/* connection::recheck_keys, of one session. */
inline end_session(n)
{
    if
    :: stage[n] == waiting || stage[n] == asking ->
       if :: seeded(WAITING_SURVIVES) :: else -> give_up(n) fi
    :: stage[n] == recording -> doomed[n] = !seeded(RECORDING_SURVIVES)
    :: stage[n] == running -> alive[n] = alive[n] && seeded(RUNNING_SURVIVES) /* execution::cancel */
    :: else
    fi;
    barred[n] = stage[n] != challenged && stage[n] != unborn && stage[n] != over
}
inline end_sessions()
{
    end_session(0);
    end_session(1);
    end_session(2);
    assert(!alive[0] && !alive[1] && !alive[2])
}

/* What the operator does, one of these at a time that nobody knows: a program changes the disk, and
 * then tells the daemon, which may be a new one by then. */
proctype operator()
{
end:
    if
    /* Another policy, which may be taken up while something is asked or recorded: what runs goes on. */
    :: policy_file = deny;
       atomic { policy_read = policy_file; key_read = no_key } /* daemon::reload */
    /* `revoke` and `rotate`: daemon::reload, then recheck_keys. */
    :: if
       :: key_file = no_key
       :: key_file = new_key
       fi;
       atomic {
           peer_listed = key_file != no_key;
           if :: seeded(KEY_CACHED) :: else -> key_read = no_key fi;
           end_sessions();
           revoked = true
       }
    /* `panic`, and perhaps `resume`. */
    :: panic_file = true;
       atomic { panicked = true; end_sessions(); revoked = true };
       if
       :: atomic { panic_file = false; panicked = false; revoked = false }
       :: skip
       fi
    fi
}

/* The daemon is killed, or the machine goes down; a new one begins. Whatever ran is ended by its keeper
 * (warden.hpp). Of what was not synced, each line stands whole or is cut off (journal::catch_up). */
inline forget_session(n)
{
    alive[n] = false;
    start[n] = no_start;
    if :: stage[n] != unborn -> leave(n) :: else fi
}
inline read_line(id)
{
    if
    :: line[id] == written -> line[id] = durable
    :: line[id] == written -> line[id] = no_start
    :: else
    fi;
    recent[id] = false;
    indexed[id] = line[id] == durable && !seeded(IDS_FORGOTTEN)
}
proctype crash()
{
end:
    do
    :: atomic { life < LIVES ->
           life++;
           forget_session(0);
           forget_session(1);
           forget_session(2);
           read_line(0);
           read_line(1);
           born_before = (seeded(CHALLENGE_REPEATS) -> born : 0);
           key_read = no_key;
           peer_listed = key_file != no_key;
           policy_read = policy_file;
           panicked = panic_file && !seeded(PANIC_FORGOTTEN)
       }
    od
}

/* ---- The qube ---- */

/* What a success claims: END stands for it, all it counts is here, and it is about one execution. */
#define is_proven(a) (out[a].count > 0 && out[a].type[out[a].count - 1] == end_0 && \
    out[a].number[out[a].count - 1] == pieces_in[a] && !torn[a] && executions[id_of[a]] == 1)

inline finish(a, how)
{
    attempt[a] = how;
    next_in[a] = 0; pieces_in[a] = 0; torn[a] = false;
    do
    :: out[a].count > 0 ->
       out[a].count--;
       out[a].type[out[a].count] = 0;
       out[a].number[out[a].count] = 0
    :: else -> break
    od
}
inline succeed(a)
{
    assert(is_proven(a));
    reached(2, pieces_in[a] == PIECES);
    reached(3, id_of[a] == 1);
    finish(a, succeeded)
}

/* client_stream::take_authentic of the frame `at` that dom0 has made for `from`, whose tag fits. */
inline take_authentic(a)
{
    next_in[a] = at + 1;
    if
    :: attempt[a] == requested && out[from].type[at] == pending
    :: attempt[a] == requested && out[from].type[at] == refused -> finish(a, refused)
    :: attempt[a] == requested && out[from].type[at] == id_used -> finish(a, id_used)
    :: attempt[a] == requested && out[from].type[at] == accepted -> attempt[a] = at_work
    :: attempt[a] == at_work && out[from].type[at] == output ->
       pieces_in[a] = (pieces_in[a] > PIECES -> pieces_in[a] : pieces_in[a] + 1); /* enough is enough */
       torn[a] = torn[a] || out[from].number[at] != pieces_in[a]
    :: attempt[a] == at_work && (out[from].type[at] == end_0 || out[from].type[at] == end_other) &&
       (out[from].number[at] == pieces_in[a] || seeded(UNCOUNTED)) ->
       if
       :: out[from].type[at] == end_0 -> succeed(a)
       :: else -> finish(a, other_exit)
       fi
    :: else -> finish(a, lost) /* client_stream::broken */
    fi
}

/* host::client::running, and who calls it: the first attempt goes at once; a second one may say the
 * same ID again at any time, as after a crash, and calls itself a new command only where dom0 has
 * said that the first one does not run. */
proctype client(byte a)
{
    byte from, at;
    if
    :: a == 1 && (attempt[0] == refused || seeded(REJECTED_RETRIED) && attempt[0] == rejected) -> id_of[1] = 1
    :: true
    fi;
    /* send_request, for a challenge that the agent chooses among those that dom0 made. */
    atomic {
        if
        :: fresh[0] != 0 -> challenge_of[a] = fresh[0]
        :: fresh[1] != 0 -> challenge_of[a] = fresh[1]
        :: fresh[2] != 0 -> challenge_of[a] = fresh[2]
        fi;
        attempt[a] = requested
    }
end:
    do
    :: atomic { is_listening(a) &&
                (next_in[a] < out[a].count || seeded(ANY_SEQUENCE | ANY_KEY)) ->
           from = a;
           if :: seeded(ANY_KEY) -> from = 1 - a :: true fi;
           at = (seeded(ANY_SEQUENCE) -> 0 : next_in[a]);
           do
           :: seeded(ANY_SEQUENCE) && at + 1 < out[from].count -> at++
           :: break
           od;
           if :: at < out[from].count -> take_authentic(a) :: else fi;
           from = 0; at = 0
       }
    /* REJECTED, which needs no key. */
    :: atomic { attempt[a] == requested -> finish(a, rejected) }
    /* Any other frame, CLOSE, the stream's end, or the end of the client itself. */
    :: atomic { is_listening(a) ->
           if
           :: seeded(EOF_SUCCEEDS) && attempt[a] == at_work -> succeed(a)
           :: else -> finish(a, lost)
           fi
       }
    od
}

init
{
    atomic {
        c_code {
            faults = number_of("MODEL_FAULTS");
            goal = number_of("MODEL_GOAL");
            sessions = number_of("MODEL_SESSIONS");
            pieces_most = number_of("MODEL_PIECES");
            operators = number_of("MODEL_OPERATORS");
        };
        if :: policy_file = allow :: policy_file = ask fi;
        policy_read = policy_file;
        run client(0); run client(1);
        run session(0); run session(1); run session(2);
        run journal(0); run journal(1); run journal(2);
        run crash();
        if :: c_expr { operators > 0 } -> run operator() :: else fi
    }
}
