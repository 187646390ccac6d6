// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The qube's end of qvm-run: it connects to the agent's socket. Programs can also compile it in.

#pragma once

#include <cstdint>

#include <qvmremote/transport_abi.h>

namespace qvm_run {

extern "C" {
int32_t qvm_run_qube_open(const qvmremote_options *options, void **self, char *error,
                          uint32_t error_size);
void qvm_run_qube_close(void *self);
int32_t qvm_run_qube_connect(void *self, qvmremote_stream *out, char *error, uint32_t error_size);
}

} // namespace qvm_run
