// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The default transport: dom0 calls each authorised qube that runs, and keeps the call. In the
/// qube, the agent at the other end of the call listens on a socket.
///
/// Options in a qube: `socket`. In dom0: `qubesd`, `qrexec-client` (each a path or "none"),
/// `qvm-run`, `qvm-check`, `user`. doc/TRANSPORTS.md has them all.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include <qvmremote/bytes.hpp>
#include <qvmremote/host/unix_socket.hpp>
#include <qvmremote/transport_abi.h>

#include "../common/border.hpp"
#include "dom0.hpp"
#include "qube.hpp"

namespace qvm_run {
namespace {

// One of the two, depending on the role.
struct transport {
    std::unique_ptr<caller> dom0;
    void *qube = nullptr;
};

// Accepts the names that useradd(8) makes, but no name that qrexec would take for more than a name.
bool is_user(std::string_view name) {
    return !name.empty() && name.size() <= longest_user && name.front() != '-' &&
           std::all_of(name.begin(), name.end(), [](char c) {
               return qvmremote::is_alnum(c) || c == '_' || c == '-' || c == '.';
           });
}

settings parse_options(const qvmremote_options &options) {
    settings out;
    for (const char *const place : {"/usr/bin/qrexec-client", "/usr/lib/qubes/qrexec-client"})
        if (out.qrexec_client.empty() && ::access(place, X_OK) == 0)
            out.qrexec_client = place;
    const struct {
        const char *key;
        std::string &value;
        bool may_be_none;
    } known[] = {
        {"qubesd", out.qubesd, true},
        {"qrexec-client", out.qrexec_client, true},
        {"qvm-run", out.qvm_run, false},
        {"qvm-check", out.qvm_check, false},
    };
    for (uint32_t i = 0; i < options.count; ++i) {
        const std::string key = options.items[i].key;
        const std::string value = options.items[i].value;
        bool is_known = key == "user";
        if (is_known && !is_user(value))
            throw problem{QVMREMOTE_BAD_OPTION,
                          "option 'user': '" + value + "' is not the name of a user"};
        if (is_known)
            out.user = value;
        for (const auto &row : known) {
            if (key != row.key)
                continue;
            is_known = true;
            if (row.may_be_none && value == "none")
                row.value.clear();
            else if (value.starts_with('/'))
                row.value = value;
            else
                throw problem{QVMREMOTE_BAD_OPTION, "option '" + key + "': '" + value +
                                                        "' is not an absolute path" +
                                                        (row.may_be_none ? " or 'none'" : "")};
        }
        if (!is_known)
            throw problem{QVMREMOTE_BAD_OPTION,
                          "unknown option '" + key +
                              "': the options here are qubesd, qrexec-client, qvm-run, "
                              "qvm-check, user"};
    }
    if (const auto address = qvmremote::host::unix_address::of_path(out.qubesd);
        !out.qubesd.empty() && !address)
        throw problem{QVMREMOTE_BAD_OPTION, "option 'qubesd': " + address.error().what};
    return out;
}

using plugins::guarded;

transport &from(void *self) { return *static_cast<transport *>(self); }

caller &dom0_of(void *self) {
    if (!from(self).dom0)
        throw problem{QVMREMOTE_FAILED, "a qube has no such function"};
    return *from(self).dom0;
}

extern "C" {
int32_t qvm_run_open(const qvmremote_options *options, uint32_t role, void **self, char *error,
                     uint32_t error_size) {
    return guarded(error, error_size, [&] {
        auto made = std::make_unique<transport>();
        if (role == QVMREMOTE_ROLE_DOM0) {
            made->dom0 = std::make_unique<caller>(parse_options(*options));
        } else if (const int32_t status =
                       qvm_run_qube_open(options, &made->qube, error, error_size);
                   status != QVMREMOTE_OK) {
            return status;
        }
        *self = made.release();
        return int32_t{QVMREMOTE_OK};
    });
}

void qvm_run_close(void *self) {
    guarded(nullptr, 0, [&] {
        const std::unique_ptr<transport> gone(&from(self));
        if (gone->qube != nullptr)
            qvm_run_qube_close(gone->qube);
        return QVMREMOTE_OK;
    });
}

int32_t qvm_run_connect(void *self, qvmremote_stream *out, char *error, uint32_t error_size) {
    return guarded(error, error_size, [&] {
        if (from(self).qube == nullptr)
            throw problem{QVMREMOTE_FAILED, "dom0 connects to nobody"};
        return qvm_run_qube_connect(from(self).qube, out, error, error_size);
    });
}

int32_t qvm_run_listen(void *self, int32_t *event_fd, char *error, uint32_t error_size) {
    return guarded(error, error_size, [&] {
        *event_fd = dom0_of(self).listen();
        return QVMREMOTE_OK;
    });
}

int32_t qvm_run_accept(void *self, qvmremote_stream *out, char *error, uint32_t error_size) {
    return guarded(error, error_size, [&] {
        auto got = dom0_of(self).accept();
        if (!got)
            return QVMREMOTE_AGAIN;
        std::memcpy(out->peer, got->qube.c_str(), got->qube.size() + 1);
        out->in_fd = out->out_fd = got->socket.release();
        return QVMREMOTE_OK;
    });
}

int32_t qvm_run_set_peers(void *self, const char *const *names, uint32_t count, char *error,
                          uint32_t error_size) {
    return guarded(error, error_size, [&] {
        dom0_of(self).set_peers({names, names + count});
        return QVMREMOTE_OK;
    });
}
}

} // namespace
} // namespace qvm_run

const qvmremote_transport_ops QVMREMOTE_TRANSPORT_TABLE = {
    sizeof(qvmremote_transport_ops),
    QVMREMOTE_TRANSPORT_ABI,
    "qvm-run",
    QVMREMOTE_ROLE_QUBE | QVMREMOTE_ROLE_DOM0,
    0,
    qvm_run::qvm_run_open,
    qvm_run::qvm_run_close,
    qvm_run::qvm_run_connect,
    qvm_run::qvm_run_listen,
    qvm_run::qvm_run_accept,
    qvm_run::qvm_run_set_peers,
    nullptr,
};
