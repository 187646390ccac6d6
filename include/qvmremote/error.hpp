// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// How the library fails: one table of reasons, one error value, one result type.

#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include <tl/expected.hpp>

namespace qvmremote {

/// The reasons for a failure: name, value, text for people. A value is frozen once released: the
/// audit log and REFUSED frames hold it (doc/PROTOCOL.md, "Reasons"). A removed row stays as a
/// comment.
// clang-format off
#define QVMREMOTE_ERRORS(X)                                                                         \
    X(incomplete, 1, "the input ends too early")                                                    \
    X(command_too_large, 2, "command exceeds the size limit of 1 MiB")                              \
    X(command_empty, 3, "command is empty")                                                         \
    X(bad_token, 4, "token does not verify")                                                        \
    X(bad_command_id, 5, "command ID is not of the form [A-Za-z0-9._-]{1,128}")                     \
    X(bad_qube_name, 6, "not a qube name: a letter, then letters, digits, '_' and '-', 31 at most") \
    X(bad_key, 7, "key is not 64 hexadecimal digits")                                               \
    X(no_key, 8, "no key is registered for this qube")                                              \
    X(bad_frame, 9, "frame header is malformed")                                                    \
    X(frame_too_large, 10, "frame exceeds the size limit")                                          \
    X(unknown_frame, 11, "frame type is unknown or not allowed here")                               \
    X(bad_tag, 12, "frame does not authenticate")                                                   \
    X(bad_envelope, 13, "request header is malformed")                                              \
    X(bad_digest, 14, "body does not match its digest")                                             \
    X(bad_version, 15, "protocol version is not supported")                                         \
    X(bad_preamble, 16, "the other end did not announce itself as qvm-remote")                      \
    X(challenge_stale, 17, "challenge is used or too old")                                          \
    X(id_used, 18, "this command ID has been used before")                                          \
    X(id_outdated, 19, "the time in the command ID is more than 26 hours from dom0's")              \
    X(credit_exceeded, 20, "more data was sent than the window allows")                             \
    X(busy, 21, "dom0 is busy: too many commands are waiting")                                      \
    X(draining, 22, "the daemon in dom0 is shutting down")                                          \
    X(denied, 23, "denied by policy")                                                               \
    X(approval_denied, 24, "the operator in dom0 said no")                                          \
    X(approval_timeout, 25, "nobody in dom0 approved in time")                                      \
    X(binary_content, 26, "command holds control characters")                                       \
    X(bad_config, 27, "configuration line is not KEY=VALUE")                                        \
    X(bad_value, 28, "value is not allowed here")                                                   \
    X(not_recorded, 29, "dom0 could not record the request durably, so it does not run")            \
    X(unsupported, 30, "not supported by this version")                                             \
    X(session_over, 31, "the session has ended")                                                    \
    X(bad_json, 32, "record is not well-formed")                                                    \
    X(chain_broken, 33, "record does not follow from the one before it")                            \
    X(key_revoked, 34, "the key was revoked")                                                       \
    X(protocol_retired, 35, "this key has moved to protocol 2: protocol 1 is refused")              \
    X(outcome_unknown, 36, "dom0 has no record of how this command ended")                          \
    X(panicked, 37, "an operator in dom0 has stopped everything (panic)")                           \
    X(slot_timeout, 38, "no slot became free within the time-out")                              \
    X(argument_too_large, 39, "a word of the command exceeds 131071 bytes, the most that Linux takes") \
    X(too_many_arguments, 40, "the command has more than 32768 words")                                 \
    X(key_expired, 41, "the key has expired")                                                       \
    X(no_job, 42, "this qube has no such job")
// clang-format on

/// One reason. Its value goes over the wire and into the records.
enum class errc : std::uint16_t {
#define QVMREMOTE_X(name, value, text) name = value,
    QVMREMOTE_ERRORS(QVMREMOTE_X)
#undef QVMREMOTE_X
};

/// The text for people: one clause, no full stop. "unknown reason" for a value that is not in the
/// table, such as a reason from a newer peer.
[[nodiscard]] constexpr std::string_view message(errc code) noexcept {
    switch (code) {
#define QVMREMOTE_X(name, value, text)                                                             \
    case errc::name:                                                                               \
        return text;
        QVMREMOTE_ERRORS(QVMREMOTE_X)
#undef QVMREMOTE_X
    }
    return "unknown reason";
}

/// The name that the audit log uses ("bad_token"); "unknown" when it is not in the table.
[[nodiscard]] constexpr std::string_view name(errc code) noexcept {
    switch (code) {
#define QVMREMOTE_X(name, value, text)                                                             \
    case errc::name:                                                                               \
        return #name;
        QVMREMOTE_ERRORS(QVMREMOTE_X)
#undef QVMREMOTE_X
    }
    return "unknown";
}

/// What went wrong, and where in the input (byte offset; 0 when no place can be named).
struct error {
    errc code;
    std::uint32_t offset = 0;

    friend bool operator==(const error &, const error &) = default;
};

/// A value, or why there is none. Each function that returns it is marked [[nodiscard]], since the
/// class itself is not in tl::expected 1.0 (Debian 12).
template <class T>
using result = tl::expected<T, error>;

/// Shorthand for the failing branch.
[[nodiscard]] inline tl::unexpected<error> fail(errc code, std::size_t offset = 0) {
    return tl::unexpected<error>(error{code, static_cast<std::uint32_t>(offset)});
}

} // namespace qvmremote
