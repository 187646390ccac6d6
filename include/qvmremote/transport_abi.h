/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file
 * The whole contract of a transport plug-in, in C. A plug-in is NAME.so in one directory and
 * exports one object, a table of functions; examples/custom_transport is a small one.
 *
 * Its job ends early: in a qube it connects to dom0 and gives two descriptors; in dom0 it gives two
 * descriptors for each stream and the name of the qube at the other end. That name is what the rest
 * trusts (invariant I3): it comes from the platform, never from the bytes. Keys, requests and
 * policy never get here.
 *
 * Rules that hold for every function:
 *  - 0 (QVMREMOTE_OK) or a negative enum qvmremote_status. No exception and no longjmp crosses.
 *  - On failure nothing was handed over, and `error` holds one NUL-terminated line for people, at
 *    most error_size bytes with the NUL: what is wrong and what to do about it.
 *  - Strings and arrays that come in are borrowed for the call. Nothing allocated on one side is
 *    freed on the other.
 *  - The host calls the functions of one `self` from one thread at a time; a plug-in may have
 *    threads of its own, with every signal blocked. It leaves signal handlers, the working
 *    directory, the environment and the umask alone, and waits for no child but its own.
 *  - Every descriptor is close-on-exec from the start.
 */
#ifndef QVMREMOTE_TRANSPORT_ABI_H
#define QVMREMOTE_TRANSPORT_ABI_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The breaking version: it is in the symbol and in the table. What is only appended keeps it. */
#define QVMREMOTE_TRANSPORT_ABI 1u
#define QVMREMOTE_TRANSPORT_SYMBOL "qvmremote_transport_1"

/** Bits of `roles`, and the values of `role`. */
#define QVMREMOTE_ROLE_QUBE 1u /**< calls dom0 */
#define QVMREMOTE_ROLE_DOM0 2u /**< is called by qubes */

enum qvmremote_status {
    QVMREMOTE_OK = 0,
    QVMREMOTE_AGAIN = -1,       /**< accept: no stream is ready now; no error text */
    QVMREMOTE_FAILED = -2,      /**< the machine's fault: a system call, memory */
    QVMREMOTE_BAD_OPTION = -3,  /**< configuration; the text names the option */
    QVMREMOTE_UNREACHABLE = -4, /**< nobody is at the other end now; later there may be */
    QVMREMOTE_REFUSED = -5      /**< the platform forbids it: asking again does not help */
};

/**
 * Every configuration key QVM_REMOTE_<NAME>_<OPTION> arrives as an option: <NAME> is the
 * transport's name in capitals with '_' for '-', and the key is <OPTION> in lower case with '-' for
 * '_'. So QVM_REMOTE_MOCK_FAULT_RANGE=9 is {"fault-range", "9"} to the transport "mock". Values are
 * not empty. A plug-in refuses options it does not know: a misspelt one must not go unnoticed.
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
 * One stream. in_fd is read from, out_fd written to; they may be the same socket (the host then
 * duplicates it). From the return on the host owns and closes them, and may set O_NONBLOCK.
 * Bytes arrive in order and unchanged, and the end of one direction is seen as end of file.
 * peer: in dom0 the qube's name, a letter, then letters, digits, '_', '-', '.', at most 63, then
 * NUL; in a qube nobody looks at it. The host sets struct_size, fills peer and argument with NUL and
 * both fds with -1.
 * argument: in dom0, what the platform says that the stream was asked for with, [A-Za-z0-9_.+-], at
 * most 63, then NUL; empty where there is no such thing. Policy may allow less for it and never
 * more, so a plug-in whose host does not know the field (struct_size) refuses a stream that has one.
 */
struct qvmremote_stream {
    uint32_t struct_size; /**< sizeof when the host was built; fields past it are not there */
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
    uint32_t roles;       /**< what it can be, QVMREMOTE_ROLE_* or'ed */
    uint32_t reserved;    /**< 0 */

    /** Takes the options for one role and gives *self, not NULL. Opens nothing to anybody yet. */
    int32_t (*open)(const struct qvmremote_options *options, uint32_t role, void **self,
                    char *error, uint32_t error_size);
    /** Ends everything that self has: event_fd, sockets, children, threads. A stream handed over is
     *  the host's, but it may end when what carries it ends here. */
    void (*close)(void *self);

    /** Role qube. A stream to dom0. May block for 15 s, then it is QVMREMOTE_UNREACHABLE. */
    int32_t (*connect)(void *self, struct qvmremote_stream *out, char *error, uint32_t error_size);

    /** Role dom0, once. *event_fd stays the plug-in's and is readable as long as accept has
     *  something to do: a stream, a timer, a child. An epoll descriptor can hold all of them. */
    int32_t (*listen)(void *self, int32_t *event_fd, char *error, uint32_t error_size);
    /** Role dom0, whenever event_fd is readable. Never blocks. One stream, or QVMREMOTE_AGAIN when
     *  all was done that there was to do. After an error the transport still works: the host logs,
     *  waits a moment and asks again. */
    int32_t (*accept)(void *self, struct qvmremote_stream *out, char *error, uint32_t error_size);
    /** Role dom0, optional, before or after listen. All qubes that are authorised now, in place of
     *  those named before: a transport that dials out calls these and no others. Never blocks. */
    int32_t (*set_peers)(void *self, const char *const *names, uint32_t count, char *error,
                         uint32_t error_size);
    /** Role qube, optional. The stream that connect gave last has ended before a byte came from it:
     *  why, as the status and the text of a connect that failed; QVMREMOTE_AGAIN when nothing is
     *  known. For a transport that learns only behind connect whether the platform lets it. May
     *  block for a second. */
    int32_t (*explain)(void *self, char *error, uint32_t error_size);
    /* ... append only below this line, and only functions (tests/abi) ... */
};

/** Who compiles plug-ins' sources into a program gives each table a name of its own by this. */
#ifndef QVMREMOTE_TRANSPORT_TABLE
#define QVMREMOTE_TRANSPORT_TABLE qvmremote_transport_1
#endif
extern __attribute__((visibility("default")))
const struct qvmremote_transport_ops QVMREMOTE_TRANSPORT_TABLE;

#ifdef __cplusplus
}
#endif

#endif /* QVMREMOTE_TRANSPORT_ABI_H */
