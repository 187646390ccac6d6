// SPDX-License-Identifier: GPL-2.0-or-later
// The table of a program that has the qube's end compiled in.
#include "qube.hpp"

namespace {

extern "C" int32_t qvm_run_qube_open_role(const qvmremote_options *options, uint32_t, void **self,
                                          char *error, uint32_t error_size) {
    return qvm_run::qvm_run_qube_open(options, self, error, error_size);
}

} // namespace

const qvmremote_transport_ops QVMREMOTE_TRANSPORT_TABLE = {
    sizeof(qvmremote_transport_ops),
    QVMREMOTE_TRANSPORT_ABI,
    "qvm-run",
    QVMREMOTE_ROLE_QUBE,
    0,
    qvm_run_qube_open_role,
    qvm_run::qvm_run_qube_close,
    qvm_run::qvm_run_qube_connect,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};
