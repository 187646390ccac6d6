/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The binary contract as it was released, restated. A plug-in built against it stays loadable: a
 * change that makes this file fail needs a new symbol, qvmremote_transport_2. What is appended gets
 * a row here, and nothing above it changes.
 */
#include <qvmremote/transport_abi.h>

#include <stddef.h>
#include <stdio.h>
#include <string.h>

struct restated_option {
    const char *key;
    const char *value;
};
struct restated_options {
    uint32_t struct_size;
    uint32_t count;
    const struct qvmremote_option *items;
};
struct restated_stream {
    uint32_t struct_size;
    int32_t in_fd;
    int32_t out_fd;
    char peer[64];
    char argument[64];
};
struct restated_transport_ops {
    uint32_t struct_size;
    uint32_t abi;
    const char *name;
    uint32_t roles;
    uint32_t reserved;
    int32_t (*open)(const struct qvmremote_options *, uint32_t, void **, char *, uint32_t);
    void (*close)(void *);
    int32_t (*connect)(void *, struct qvmremote_stream *, char *, uint32_t);
    int32_t (*listen)(void *, int32_t *, char *, uint32_t);
    int32_t (*accept)(void *, struct qvmremote_stream *, char *, uint32_t);
    int32_t (*set_peers)(void *, const char *const *, uint32_t, char *, uint32_t);
    int32_t (*explain)(void *, char *, uint32_t);
};

struct row {
    const char *what;
    long long is;
    long long was;
};

#define SIZE(type)                                                                                 \
    { "sizeof " #type, sizeof(struct qvmremote_##type), sizeof(struct restated_##type) }
#define FIELD(type, field)                                                                         \
    {                                                                                              \
#type "." #field, offsetof(struct qvmremote_##type, field),                                \
            offsetof(struct restated_##type, field)                                                \
    }
#define VALUE(name, number)                                                                        \
    { #name, name, number }

static const struct row rows[] = {
    SIZE(option),
    FIELD(option, key),
    FIELD(option, value),
    SIZE(options),
    FIELD(options, struct_size),
    FIELD(options, count),
    FIELD(options, items),
    SIZE(stream),
    FIELD(stream, struct_size),
    FIELD(stream, in_fd),
    FIELD(stream, out_fd),
    FIELD(stream, peer),
    FIELD(stream, argument),
    {"sizeof stream", sizeof(struct qvmremote_stream), 140},
    {"offset of peer", offsetof(struct qvmremote_stream, peer), 12},
    {"offset of argument, the first size", offsetof(struct qvmremote_stream, argument), 76},
    FIELD(transport_ops, struct_size),
    FIELD(transport_ops, abi),
    FIELD(transport_ops, name),
    FIELD(transport_ops, roles),
    FIELD(transport_ops, reserved),
    FIELD(transport_ops, open),
    FIELD(transport_ops, close),
    FIELD(transport_ops, connect),
    FIELD(transport_ops, listen),
    FIELD(transport_ops, accept),
    FIELD(transport_ops, set_peers),
    FIELD(transport_ops, explain),
    SIZE(transport_ops),
    /* The numbers themselves where a pointer has 64 bits. */
    {"sizeof ops, 64 bits", sizeof(void *) == 8 ? sizeof(struct qvmremote_transport_ops) : 80, 80},
    {"accept, 64 bits", sizeof(void *) == 8 ? offsetof(struct qvmremote_transport_ops, accept) : 56,
     56},
    VALUE(QVMREMOTE_TRANSPORT_ABI, 1),
    VALUE(QVMREMOTE_ROLE_QUBE, 1),
    VALUE(QVMREMOTE_ROLE_DOM0, 2),
    VALUE(QVMREMOTE_OK, 0),
    VALUE(QVMREMOTE_AGAIN, -1),
    VALUE(QVMREMOTE_FAILED, -2),
    VALUE(QVMREMOTE_BAD_OPTION, -3),
    VALUE(QVMREMOTE_UNREACHABLE, -4),
    VALUE(QVMREMOTE_REFUSED, -5),
};

int main(void) {
    int broken = strcmp(QVMREMOTE_TRANSPORT_SYMBOL, "qvmremote_transport_1") != 0;
    if (broken)
        fprintf(stderr, "the symbol is now %s\n", QVMREMOTE_TRANSPORT_SYMBOL);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; ++i) {
        if (rows[i].is == rows[i].was)
            continue;
        fprintf(stderr, "%s is %lld and was %lld\n", rows[i].what, rows[i].is, rows[i].was);
        broken = 1;
    }
    return broken;
}
