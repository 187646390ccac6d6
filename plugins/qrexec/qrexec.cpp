// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The transport through qrexec, whose policy decides first: the qube calls the service qvmremote.Exec,
/// which is a socket of ours in dom0.
///
/// Options in a qube: `client`, `target`, `argument`, `kept`. In dom0: `socket`, `user`.
/// doc/TRANSPORTS.md has them all.

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include <qvmremote/transport_abi.h>

#include "../common/border.hpp"
#include "dom0.hpp"
#include "qube.hpp"

namespace qrexec {
namespace {

using plugins::guarded;

// One of the two, depending on the role.
struct transport {
    std::unique_ptr<server> dom0;
    void *qube = nullptr;
};

settings parse_options(const qvmremote_options &options) {
    settings out;
    for (uint32_t i = 0; i < options.count; ++i) {
        const std::string key = options.items[i].key;
        const std::string value = options.items[i].value;
        if (key == "user")
            out.user = value;
        else if (key != "socket")
            throw problem{QVMREMOTE_BAD_OPTION,
                          "unknown option '" + key + "': the options here are socket, user"};
        else if (!value.starts_with('/'))
            throw problem{QVMREMOTE_BAD_OPTION,
                          "option 'socket': '" + value + "' is not an absolute path"};
        else
            out.socket = value;
    }
    return out;
}

transport &from(void *self) { return *static_cast<transport *>(self); }

server &dom0_of(void *self) {
    if (!from(self).dom0)
        throw problem{QVMREMOTE_FAILED, "a qube has no such function"};
    return *from(self).dom0;
}

void *qube_of(void *self) {
    if (from(self).qube == nullptr)
        throw problem{QVMREMOTE_FAILED, "dom0 has no such function"};
    return from(self).qube;
}

extern "C" {
int32_t qrexec_open(const qvmremote_options *options, uint32_t role, void **self, char *error,
                    uint32_t error_size) {
    return guarded(error, error_size, [&] {
        auto made = std::make_unique<transport>();
        if (role == QVMREMOTE_ROLE_DOM0) {
            made->dom0 = std::make_unique<server>(parse_options(*options));
        } else if (const int32_t status = qrexec_qube_open(options, &made->qube, error, error_size);
                   status != QVMREMOTE_OK) {
            return status;
        }
        *self = made.release();
        return int32_t{QVMREMOTE_OK};
    });
}

void qrexec_close(void *self) {
    guarded(nullptr, 0, [&] {
        const std::unique_ptr<transport> gone(&from(self));
        if (gone->qube != nullptr)
            qrexec_qube_close(gone->qube);
        return QVMREMOTE_OK;
    });
}

int32_t qrexec_connect(void *self, qvmremote_stream *out, char *error, uint32_t error_size) {
    return guarded(error, error_size,
                   [&] { return qrexec_qube_connect(qube_of(self), out, error, error_size); });
}

int32_t qrexec_listen(void *self, int32_t *event_fd, char *error, uint32_t error_size) {
    return guarded(error, error_size, [&] {
        *event_fd = dom0_of(self).listen();
        return QVMREMOTE_OK;
    });
}

int32_t qrexec_accept(void *self, qvmremote_stream *out, char *error, uint32_t error_size) {
    return guarded(error, error_size, [&] {
        auto got = dom0_of(self).accept();
        if (!got)
            return QVMREMOTE_AGAIN;
        // The argument can limit the call, so it must not get lost.
        if (out->struct_size >= sizeof *out)
            std::memcpy(out->argument, got->from.argument.c_str(), got->from.argument.size() + 1);
        else if (!got->from.argument.empty())
            throw problem{QVMREMOTE_REFUSED, "a call with an argument came, which this program is "
                                             "too old for; install all parts of one version"};
        std::memcpy(out->peer, got->from.source.c_str(), got->from.source.size() + 1);
        out->in_fd = out->out_fd = got->socket.release();
        return QVMREMOTE_OK;
    });
}

int32_t qrexec_explain(void *self, char *error, uint32_t error_size) {
    return guarded(error, error_size,
                   [&] { return qrexec_qube_explain(qube_of(self), error, error_size); });
}
}

} // namespace
} // namespace qrexec

const qvmremote_transport_ops QVMREMOTE_TRANSPORT_TABLE = {
    sizeof(qvmremote_transport_ops),
    QVMREMOTE_TRANSPORT_ABI,
    "qrexec",
    QVMREMOTE_ROLE_QUBE | QVMREMOTE_ROLE_DOM0,
    0,
    qrexec::qrexec_open,
    qrexec::qrexec_close,
    qrexec::qrexec_connect,
    qrexec::qrexec_listen,
    qrexec::qrexec_accept,
    nullptr, // qubes call us, so there is no list of peers to call
    qrexec::qrexec_explain,
};
