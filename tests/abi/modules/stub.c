/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Plug-ins that are wrong in one way each, chosen by -D, and a right one; in C, as a plug-in may
 * be. */
#include <stdio.h>
#include <stdlib.h>

#include <qvmremote/transport_abi.h>

#ifndef STUB_NAME
#define STUB_NAME "stub"
#endif
#ifndef STUB_ABI
#define STUB_ABI QVMREMOTE_TRANSPORT_ABI
#endif
#ifndef STUB_SIZE
#define STUB_SIZE sizeof(struct qvmremote_transport_ops)
#endif
#ifndef STUB_ACCEPT
#define STUB_ACCEPT stub_accept
#endif

/* Runs when the file is loaded: a test that sees the trace knows that it was. */
static __attribute__((constructor)) void leave_trace(void) {
    const char *path = getenv("QVMREMOTE_TEST_TRACE");
    FILE *trace = path ? fopen(path, "w") : NULL;
    if (trace)
        fclose(trace);
}

#ifndef STUB_NO_TABLE
static int32_t stub_open(const struct qvmremote_options *options, uint32_t role, void **self,
                         char *error, uint32_t error_size) {
    static int something;
    (void)options, (void)role, (void)error, (void)error_size;
    *self = &something;
    return QVMREMOTE_OK;
}
static void stub_close(void *self) { (void)self; }
static int32_t stub_connect(void *self, struct qvmremote_stream *out, char *error,
                            uint32_t error_size) {
    (void)self, (void)out, (void)error, (void)error_size;
    return QVMREMOTE_UNREACHABLE;
}
static int32_t stub_listen(void *self, int32_t *event_fd, char *error, uint32_t error_size) {
    (void)self, (void)event_fd, (void)error, (void)error_size;
    return QVMREMOTE_FAILED;
}
__attribute__((unused)) static int32_t stub_accept(void *self, struct qvmremote_stream *out,
                                                   char *error, uint32_t error_size) {
    (void)self, (void)out, (void)error, (void)error_size;
    return QVMREMOTE_AGAIN;
}

const struct qvmremote_transport_ops qvmremote_transport_1 = {
    .struct_size = STUB_SIZE,
    .abi = STUB_ABI,
    .name = STUB_NAME,
    .roles = QVMREMOTE_ROLE_QUBE | QVMREMOTE_ROLE_DOM0,
    .open = stub_open,
    .close = stub_close,
    .connect = stub_connect,
    .listen = stub_listen,
    .accept = STUB_ACCEPT,
};
#endif
