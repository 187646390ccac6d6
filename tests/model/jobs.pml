/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A job from its START to its END, for spin: the daemons, the keeper, and what they leave on the disk. README.md
 * says what is covered; run.py runs it, and again with each fault.
 *
 * A daemon may die between any two of its steps, and so may the keeper. The disk keeps what was written; a line of
 * the audit log may be lost with the daemon until it is written. A daemon takes its steps one after the other.
 */

#define JOB_LIVES 3 /* of the daemon */

/* Faults to seed. */
#define J_ENDS_ALL 1       /* a new daemon writes END "unknown" for a job that runs */
#define J_LAUNCHES_AGAIN 2 /* a new daemon starts the command of an open START */
#define J_SPARES_STRANGER 4 /* what does not prove itself is not killed */
#define J_END_FORGOTTEN 8  /* a new daemon does not look for the end that a keeper has written */
#define J_END_TWICE 16     /* a daemon does not forget the serial when it writes END */
#define J_TWO_WRITERS 32   /* the daemon writes output too */
#define J_LATE_FILES 64    /* the secret is written after START */
c_decl {
    static int faults, goal;
    static int number_of(const char *name) { return atoi(getenv(name)); }
}
#define seeded(fault) c_expr { faults & (fault) }
#define reached(number, when) assert(!(c_expr { goal == number } && (when)))

mtype = { absent, queued, running, ended, dead };

/* The disk, and the audit log. */
bit files, start_line;
byte end_lines;          /* in the log */
bit end_is_real;         /* the END tells how the command ended */
bit end_file;            /* the keeper's */
bit unknown_file;        /* the daemon's, when there is no keeper */

/* The keeper, and what it can do. */
mtype keeper = absent;
bit proves_itself;       /* its socket answers with the secret */
byte executions;
bit alive;               /* a process of the command */
byte writers;            /* of the output, at this moment */

/* The daemon's memory. */
byte life = 0;
bit daemon_lives;
bit has_serial;          /* the START's, while its END is to be written */
bit has_link;            /* to the keeper */
bit end_is_queued;       /* for the journal's thread */
bit queued_is_real;

inline write_end(real)
{
    end_is_queued = true;
    queued_is_real = real;
    if :: !seeded(J_END_TWICE) -> has_serial = false :: else fi
}

inline kill_group()
{
    alive = false;
    if :: keeper == running || keeper == queued -> keeper = dead :: else fi
}

/* job_table::take_over, recognizes and serve, by the journal that opens. */
inline take_over()
{
    has_link = (keeper == running || keeper == queued) && proves_itself;
    if
    :: start_line && end_lines == 0 ->
       if
       :: end_file && !seeded(J_END_FORGOTTEN) -> has_serial = true; write_end(true)
       :: (!end_file || seeded(J_END_FORGOTTEN)) && has_link && !seeded(J_ENDS_ALL) -> has_serial = true
       :: (!end_file || seeded(J_END_FORGOTTEN)) && (!has_link || seeded(J_ENDS_ALL)) ->
          if
          :: seeded(J_LAUNCHES_AGAIN) -> keeper = queued; has_serial = true; has_link = true
          :: else ->
             if :: !seeded(J_SPARES_STRANGER) && !seeded(J_ENDS_ALL) -> kill_group() :: else fi;
             unknown_file = true;
             end_lines++; /* the journal's own, durable at once */
             end_is_real = false;
             reached(3, true)
          fi
       fi
    :: else
    fi
}

proctype the_daemon()
{
again:
    atomic {
        if :: life == JOB_LIVES -> goto over :: else fi;
        life++;
        daemon_lives = true;
        has_serial = false; has_link = false; end_is_queued = false;
        take_over()
    }
    do
    /* request_pipeline: the files, START, the launch. Each may be the last step of this daemon. */
    :: atomic { life == 1 && !files && !start_line && !seeded(J_LATE_FILES) -> files = true }
    :: atomic { life == 1 && !start_line && (files || seeded(J_LATE_FILES)) -> start_line = true; has_serial = true }
    :: atomic { life == 1 && start_line && !files && seeded(J_LATE_FILES) -> files = true }
    :: atomic { has_serial && life == 1 && keeper == absent && (files || seeded(J_LATE_FILES)) -> keeper = queued; has_link = true;
           proves_itself = true }
    /* job_table::finish: the keeper has written the end, or is gone. */
    :: atomic { has_serial && has_link && end_file -> has_link = false; write_end(true) }
    :: atomic { has_serial && has_link && !end_file && keeper == dead ->
           has_link = false; alive = false; unknown_file = true; write_end(false) }
    /* The journal's thread. */
    :: atomic { end_is_queued -> end_is_queued = false; end_lines++; end_is_real = queued_is_real;
           if :: has_serial && seeded(J_END_TWICE) -> end_is_queued = (end_lines < 3) :: else fi }
    :: atomic { seeded(J_TWO_WRITERS) && alive -> writers++; assert(writers <= 1); writers-- }
    :: atomic { life < JOB_LIVES -> /* kill -9, or a restart */
           daemon_lives = false; has_serial = false; has_link = false; end_is_queued = false;
           goto again }
    :: atomic { life == JOB_LIVES && !has_serial && !end_is_queued && (start_line || life > 1) -> goto over }
    od;
over:
    assert(!start_line || end_lines > 0) /* in the end, each START has its END */
}

/* job_keeper. */
proctype the_keeper()
{
end:
    do
    :: atomic { keeper == queued ->
           assert(start_line);        /* START is durable before exec */
           assert(files);             /* and the secret is there: the next daemon knows it */
           assert(end_lines == 0);    /* nothing begins after END */
           executions++;
           assert(executions <= 1);
           keeper = running;
           alive = true;
           writers++ }
    :: atomic { keeper == running && alive -> alive = false } /* the command ends by itself */
    :: atomic { keeper == running && !alive && !end_file ->
           end_file = true; writers--; keeper = ended;
           reached(1, life > 1) }
    :: atomic { keeper == running -> writers--; keeper = dead; reached(2, true) } /* kill -9 */
    /* Somebody takes its socket away. */
    :: atomic { proves_itself -> proves_itself = false }
    od
}

/* What must hold at any time. */
active proctype always()
{
end:
    do
    :: atomic { end_lines > 0 -> assert(end_lines == 1) }
    :: atomic { writers > 0 -> assert(writers == 1) }              /* one owner of the output */
    :: atomic { end_lines > 0 -> assert(end_is_real == end_file) } /* it says what the keeper has written */
    :: atomic { end_lines > 0 -> assert(keeper != running) }       /* nothing goes on after END */
    od
}

init
{
    c_code { faults = number_of("MODEL_FAULTS"); goal = number_of("MODEL_GOAL"); };
    atomic { run the_daemon(); run the_keeper() }
}
