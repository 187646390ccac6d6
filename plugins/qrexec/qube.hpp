// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The qube's end of qrexec: it uses the kept call of an agent if there is one, else it makes a call.
/// Programs can also compile it in.

#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <vector>

#include <qvmremote/host/child.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/transport_abi.h>

#include "../common/border.hpp"

namespace qrexec {

using plugins::problem;
using qvmremote::host::child;
using qvmremote::host::child_end;
using qvmremote::host::unique_fd;

/// How many calls one user may have at a time: a real machine fails with a few more than ten
/// (QUBES.md §1).
inline constexpr int calls_at_once = 8;

struct call_settings {
    std::string client = "/usr/bin/qrexec-client-vm";
    std::string target = "dom0";
    std::string argument;
    std::string directory; ///< ~/.qvm-remote: the agent's socket and the locks
    bool kept = true;      ///< use the kept call of an agent if there is one
};

/// The program that makes the call, and its arguments.
[[nodiscard]] std::vector<std::string> call_of(const call_settings &settings);

/// Explains a call that ended without a byte, as a status and a text. `said` is the last line that
/// the program wrote to its standard error.
[[nodiscard]] problem meaning_of(const call_settings &settings, const child_end &end,
                                 const std::string &said);

class caller {
  public:
    /// Throws a problem for a bad option.
    explicit caller(const qvmremote_options &options);

    /// Opens a stream to dom0.
    void connect(qvmremote_stream &out);
    /// Says why the last stream ended without a byte. QVMREMOTE_AGAIN when that is not known.
    [[nodiscard]] std::int32_t explain(std::string &text);

  private:
    struct call {
        child process;
        unique_fd err;
        unique_fd slot; // a lock of one of calls_at_once files
    };

    [[nodiscard]] bool connect_to_agent(qvmremote_stream &out) const;
    [[nodiscard]] unique_fd take_slot() const;

    call_settings settings_;
    std::list<call> calls_;
};

} // namespace qrexec

extern "C" {
std::int32_t qrexec_qube_open(const qvmremote_options *options, void **self, char *error,
                              std::uint32_t error_size);
void qrexec_qube_close(void *self);
std::int32_t qrexec_qube_connect(void *self, qvmremote_stream *out, char *error,
                                 std::uint32_t error_size);
std::int32_t qrexec_qube_explain(void *self, char *error, std::uint32_t error_size);
}
