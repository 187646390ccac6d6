/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file
 * The whole contract of a transport plug-in, in C. A plug-in is NAME.so in one directory and
 * exports one object, a table of functions; examples/custom_transport is a small one.
 *
 * Its job is small: in a qube it connects to dom0 and gives two descriptors; in dom0 it gives two
 * descriptors for each stream, and the name of the qube at the other end. The rest of the program
 * trusts that name (invariant I3), so it comes from the platform, never from the bytes. A plug-in
 * never sees keys, requests or policy.
 *
 * Rules that hold for every function:
 *  - It returns 0 (QVMREMOTE_OK) or a negative enum qvmremote_status. No exception and no longjmp
 *    may leave it.
 *  - On failure nothing is handed over, and `error` holds one NUL-terminated line for people, at
 *    most error_size bytes with the NUL: what is wrong and what to do about it.
 *  - Strings and arrays that come in are borrowed for the call. What one side allocates, the other
 *    side never frees.
 *  - The host calls the functions of one `self` from one thread at a time. A plug-in may have
 *    threads of its own, with every signal blocked. It does not change signal handlers, the working
 *    directory, the environment or the umask, and waits only for its own children.
 *  - Every descriptor is close-on-exec from the start.
 */
#ifndef QVMREMOTE_TRANSPORT_ABI_H
#define QVMREMOTE_TRANSPORT_ABI_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The version of the ABI, in the symbol and in the table. Additions at the end do not change it. */
#define QVMREMOTE_TRANSPORT_ABI 1u
#define QVMREMOTE_TRANSPORT_SYMBOL "qvmremote_transport_1"

/** Bits of `roles`, and the values of `role`. */
#define QVMREMOTE_ROLE_QUBE 1u /**< calls dom0 */
#define QVMREMOTE_ROLE_DOM0 2u /**< is called by qubes */

enum qvmremote_status {
    QVMREMOTE_OK = 0,
    QVMREMOTE_AGAIN = -1,       /**< accept: no stream is ready now; no error text */
    QVMREMOTE_FAILED = -2,      /**< the machine failed: a system call, memory */
    QVMREMOTE_BAD_OPTION = -3,  /**< wrong configuration; the text names the option */
    QVMREMOTE_UNREACHABLE = -4, /**< nobody is at the other end now; a later try may succeed */
    QVMREMOTE_REFUSED = -5      /**< the platform forbids it: asking again does not help */
};

/**
 * Every configuration key QVM_REMOTE_<NAME>_<OPTION> arrives as an option: <NAME> is the
 * transport's name in capitals with '_' for '-', and the key is <OPTION> in lower case with '-' for
 * '_'. So QVM_REMOTE_MOCK_FAULT_RANGE=9 is {"fault-range", "9"} to the transport "mock". Values are
 * not empty. A plug-in refuses options that it does not know, so that a misspelt one is noticed.
 */
struct qvmremote_option {
    const char *key;
    const char *value;
};
struct qvmremote_options {
    uint32_t struct_size;
    uint32_t count;
    const struct qvmremote_option *items;
};

/**
 * One stream. The host reads from in_fd and writes to out_fd; they may be the same socket (the host
 * then duplicates it). After the return the host owns and closes them, and may set O_NONBLOCK.
 * Bytes arrive in order and unchanged, and the end of one direction is an end of file.
 * peer: in dom0 the qube's name, a letter, then letters, digits, '_', '-', '.', at most 63, then
 * NUL; in a qube it is ignored. The host sets struct_size, fills peer and argument with NUL and
 * both fds with -1.
 * argument: in dom0, the argument of the call that made the stream, [A-Za-z0-9_.+-], at most 63,
 * then NUL; empty if the platform has no arguments. Policy may allow less because of it, never more.
 * So if the host does not know the field (struct_size), the plug-in refuses a stream that has one.
 */
struct qvmremote_stream {
    uint32_t struct_size; /**< sizeof when the host was built; fields past it are absent */
    int32_t in_fd;
    int32_t out_fd;
    char peer[64];
    char argument[64];
    /* ... append only below this line ... */
};

struct qvmremote_transport_ops {
    uint32_t struct_size; /**< sizeof when the plug-in was built; fields past it are absent */
    uint32_t abi;         /**< QVMREMOTE_TRANSPORT_ABI */
    const char *name;     /**< the NAME of NAME.so: [a-z][a-z0-9-]{0,31} */
    uint32_t roles;       /**< the roles it can have, QVMREMOTE_ROLE_* or'ed */
    uint32_t reserved;    /**< 0 */

    /** Takes the options for one role and gives *self, not NULL. Nobody can connect yet. */
    int32_t (*open)(const struct qvmremote_options *options, uint32_t role, void **self,
                    char *error, uint32_t error_size);
    /** Ends everything that self has: event_fd, sockets, children, threads. A stream that was handed
     *  over belongs to the host, but it may end when what carries it ends here. */
    void (*close)(void *self);

    /** Role qube. A stream to dom0. May block for 15 s; then it returns QVMREMOTE_UNREACHABLE. */
    int32_t (*connect)(void *self, struct qvmremote_stream *out, char *error, uint32_t error_size);

    /** Role dom0, once. *event_fd belongs to the plug-in and is readable as long as accept has
     *  something to do: a stream, a timer, a child. An epoll descriptor can hold all of them. */
    int32_t (*listen)(void *self, int32_t *event_fd, char *error, uint32_t error_size);
    /** Role dom0, whenever event_fd is readable. Never blocks. One stream, or QVMREMOTE_AGAIN when
     *  nothing is left to do. After an error the transport still works: the host logs the error,
     *  waits a moment and calls again. */
    int32_t (*accept)(void *self, struct qvmremote_stream *out, char *error, uint32_t error_size);
    /** Role dom0, optional, before or after listen. All qubes that are authorised now; the list
     *  replaces the one before. A transport that calls qubes calls only these. Never blocks. */
    int32_t (*set_peers)(void *self, const char *const *names, uint32_t count, char *error,
                         uint32_t error_size);
    /** Role qube, optional. Says why the last stream of connect ended before a byte came from it, as
     *  the status and the text of a connect that failed; QVMREMOTE_AGAIN when nothing is known. For
     *  a transport that learns only after connect whether the platform allows the call. May block
     *  for a second. */
    int32_t (*explain)(void *self, char *error, uint32_t error_size);
    /* ... append only below this line, and only functions (tests/abi) ... */
};

/** A program that compiles in the sources of plug-ins defines this to give each table its own name. */
#ifndef QVMREMOTE_TRANSPORT_TABLE
#define QVMREMOTE_TRANSPORT_TABLE qvmremote_transport_1
#endif
extern __attribute__((visibility("default")))
const struct qvmremote_transport_ops QVMREMOTE_TRANSPORT_TABLE;

#ifdef __cplusplus
}
#endif

#endif /* QVMREMOTE_TRANSPORT_ABI_H */
