// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The names of errors that programs read (--json). A reason of dom0 has the name of its errc; what
/// fails before, after or beside it has one of these.

#pragma once

#include <cstdint>
#include <string_view>

#include <qvmremote/error.hpp>

namespace qvmremote {

/// Names that are not reasons of dom0: name, and what it says. A name is frozen once released, and
/// is never the name of an errc (doc/JSON.md lists both).
// clang-format off
#define QVMREMOTE_FAULTS(X)                                                                        \
    X(usage, "the command line is wrong")                                                          \
    X(no_home, "this user has no home directory that can be used")                                 \
    X(bad_settings, "a configuration file or a variable is wrong")                                 \
    X(bad_script, "the script cannot be read")                                                     \
    X(key_missing, "the key that is needed is not there")                                          \
    X(key_unusable, "the key file cannot be read, is not private or holds no key")                 \
    X(key_exists, "there is a key already")                                                        \
    X(transport_unusable, "the transport is not installed, or refuses its options")                \
    X(unreachable, "dom0 was not reached")                                                         \
    X(qubes_denied, "the policy of Qubes does not let this qube call dom0")                        \
    X(needs_protocol_2, "protocol 1 cannot carry this, and dom0 has started no agent here")        \
    X(timed_out, "the command did not end, or dom0 did not answer, within the time-out")           \
    X(interrupted, "a signal ended it")                                                            \
    X(stream_broke, "the stream to dom0 broke, so the result is not complete")                       \
    X(program_not_found, "dom0 has no such program")                                               \
    X(program_not_started, "dom0 could not start the program")                                     \
    X(killed_by_signal, "a signal killed the command in dom0")                                     \
    X(no_record, "nothing with this name, number or digest is there")                              \
    X(daemon_refused, "the daemon in dom0 does not do it; the message says why")                    \
    X(local_failure, "a file or another part of this machine failed")
// clang-format on

/// One of these names.
enum class fault : std::uint8_t {
#define QVMREMOTE_X(name, text) name,
    QVMREMOTE_FAULTS(QVMREMOTE_X)
#undef QVMREMOTE_X
};

/// The name that programs read ("key_missing").
[[nodiscard]] constexpr std::string_view name(fault what) noexcept {
    constexpr std::string_view names[] = {
#define QVMREMOTE_X(name, text) #name,
        QVMREMOTE_FAULTS(QVMREMOTE_X)
#undef QVMREMOTE_X
    };
    return names[static_cast<std::size_t>(what)];
}

/// The name of an error: one of a table, never a text that a program makes up.
class error_name {
  public:
    constexpr error_name(errc code) noexcept : text_(name(code)) {}
    constexpr error_name(fault what) noexcept : text_(name(what)) {}

    [[nodiscard]] constexpr std::string_view text() const noexcept { return text_; }

  private:
    std::string_view text_;
};

} // namespace qvmremote
