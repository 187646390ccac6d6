// SPDX-License-Identifier: GPL-2.0-or-later
// The table of a program that has the qube's end compiled in.
#include "qube.hpp"

namespace {

extern "C" int32_t qrexec_qube_open_role(const qvmremote_options *options, uint32_t, void **self,
                                         char *error, uint32_t error_size) {
    return qrexec_qube_open(options, self, error, error_size);
}

} // namespace

const qvmremote_transport_ops QVMREMOTE_TRANSPORT_TABLE = {
    sizeof(qvmremote_transport_ops),
    QVMREMOTE_TRANSPORT_ABI,
    "qrexec",
    QVMREMOTE_ROLE_QUBE,
    0,
    qrexec_qube_open_role,
    qrexec_qube_close,
    qrexec_qube_connect,
    nullptr,
    nullptr,
    nullptr,
    qrexec_qube_explain,
};
