// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// How host/ fails: what went wrong on this machine, as text for people, with errno if there is one.

#pragma once

#include <cstring>
#include <string>
#include <utility>

#include <tl/expected.hpp>

namespace qvmremote::host {

/// Why something could not be done on this machine. The faults of peers are qvmremote::error instead.
struct failure {
    std::string what;     ///< one line that says what to do, without "qvm-remote: " or full stop
    int error_number = 0; ///< errno, or 0 if there is none
};

/// A value, or the failure. Functions that return it are marked [[nodiscard]] one by one.
template <class T>
using outcome = tl::expected<T, failure>;

/// The failing branch. With `error_number`, ": " and the system's text for it are appended.
[[nodiscard]] inline tl::unexpected<failure> failed(std::string what, int error_number = 0) {
    if (error_number != 0) {
        what += ": ";
        what += std::strerror(error_number); // thread-safe since glibc 2.32
    }
    return tl::unexpected<failure>(failure{std::move(what), error_number});
}

} // namespace qvmremote::host
