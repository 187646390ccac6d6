/* SPDX-License-Identifier: GPL-2.0-or-later */
/**
 * @file
 * A transport of one's own: an abstract UNIX socket, where a peer is a user. Whoever connects is
 * called "uid-1000" and so on, since that is what the kernel knows about it: a peer's name comes
 * from what carries the bytes, never from the bytes. Yours puts here what its platform proves.
 * Install uid.so beside the others, then at both ends set QVM_REMOTE_TRANSPORT=uid and, if you
 * like, QVM_REMOTE_UID_ADDRESS=my-dom0.
 */
#define _GNU_SOURCE /* accept4, struct ucred */

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <qvmremote/transport_abi.h>

struct uid_transport {
    struct sockaddr_un address;
    socklen_t size;
    int listening; /* -1 in a qube */
};

/* Every failure ends here: a status for the program, a line with the remedy for people. */
static int32_t fail(int32_t status, const char *what, const char *detail, char *error,
                    uint32_t room) {
    snprintf(error, room, "%s%s", what, detail);
    return status;
}

static int32_t uid_open(const struct qvmremote_options *options, uint32_t role, void **self,
                        char *error, uint32_t room) {
    const char *address = "qvm-remote";
    (void)role; /* the two roles take the same option */
    for (uint32_t i = 0; i < options->count; ++i) {
        if (strcmp(options->items[i].key, "address") != 0)
            return fail(QVMREMOTE_BAD_OPTION, "there is 'address', and no option ",
                        options->items[i].key, error, room);
        address = options->items[i].value;
    }
    const size_t length = strlen(address);
    struct uid_transport *made = calloc(1, sizeof *made);
    if (made == NULL || length > sizeof made->address.sun_path - 2) {
        free(made);
        return fail(QVMREMOTE_BAD_OPTION, "option 'address' is too long: ", address, error, room);
    }
    made->address.sun_family = AF_UNIX; /* the 0 before the name makes it abstract */
    memcpy(made->address.sun_path + 1, address, length);
    made->size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
    made->listening = -1;
    *self = made;
    return QVMREMOTE_OK;
}

static void uid_close(void *self) {
    struct uid_transport *t = self;
    if (t->listening >= 0)
        close(t->listening);
    free(t);
}

/* In a qube: one socket, both ways. The host duplicates and closes it. */
static int32_t uid_connect(void *self, struct qvmremote_stream *out, char *error, uint32_t room) {
    struct uid_transport *t = self;
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&t->address, t->size) != 0) {
        close(fd);
        return fail(QVMREMOTE_UNREACHABLE, "nobody listens; start the daemon at @",
                    t->address.sun_path + 1, error, room);
    }
    out->in_fd = out->out_fd = fd;
    return QVMREMOTE_OK;
}

/* In dom0: the listening socket is readable exactly when there is somebody to accept. */
static int32_t uid_listen(void *self, int32_t *event_fd, char *error, uint32_t room) {
    struct uid_transport *t = self;
    t->listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (t->listening < 0 ||
        bind(t->listening, (const struct sockaddr *)&t->address, t->size) != 0 ||
        listen(t->listening, 64) != 0)
        return fail(QVMREMOTE_FAILED, "cannot listen: ", strerror(errno), error, room);
    *event_fd = t->listening;
    return QVMREMOTE_OK;
}

static int32_t uid_accept(void *self, struct qvmremote_stream *out, char *error, uint32_t room) {
    struct uid_transport *t = self;
    const int fd = accept4(t->listening, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED))
        return QVMREMOTE_AGAIN;
    struct ucred who;
    socklen_t size = sizeof who;
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) {
        const int32_t status =
            fail(QVMREMOTE_FAILED, "cannot accept: ", strerror(errno), error, room);
        close(fd);
        return status;
    }
    snprintf(out->peer, sizeof out->peer, "uid-%u", (unsigned)who.uid);
    out->in_fd = out->out_fd = fd;
    return QVMREMOTE_OK;
}

const struct qvmremote_transport_ops qvmremote_transport_1 = {
    .struct_size = sizeof(struct qvmremote_transport_ops),
    .abi = QVMREMOTE_TRANSPORT_ABI,
    .name = "uid",
    .roles = QVMREMOTE_ROLE_QUBE | QVMREMOTE_ROLE_DOM0,
    .open = uid_open,
    .close = uid_close,
    .connect = uid_connect,
    .listen = uid_listen,
    .accept = uid_accept,
};
