// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The limits of the protocol, of policy and of records, each with its unit.

#pragma once

#include <cstddef>
#include <cstdint>

namespace qvmremote::limits {

// Sizes, in bytes: each is the most that is accepted or kept.
inline constexpr std::size_t command = 1024 * 1024;       ///< a command text or script
inline constexpr std::size_t request_header = 16 * 1024;  ///< signed header of a request
inline constexpr std::size_t frame = 64 * 1024;           ///< payload of a frame, its tag included
inline constexpr std::size_t command_id = 128;            ///< an ID, as in protocol 1
inline constexpr std::size_t qube_name = 31;              ///< what Qubes allows for a local qube
inline constexpr std::size_t preamble_skip = 64 * 1024;   ///< bytes before the preamble
inline constexpr std::size_t window = 256 * 1024;         ///< data without new credit, at first
inline constexpr std::size_t widest_window = 1024 * 1024; ///< the same, after much was passed on
inline constexpr std::size_t inline_body = 12 * 1024; ///< a body of this size is sent in the header
inline constexpr std::size_t reason_text = 512;       ///< text in a REFUSED, PENDING or END frame
inline constexpr std::size_t recorded_output = 10 * 1024 * 1024; ///< per stream, in history
inline constexpr std::size_t queue_line = 512; ///< one message of the queue, with its newline
inline constexpr std::size_t queue_piece = 16 * 1024;   ///< payload of a QUEUE frame
inline constexpr std::size_t queue_output = 64 * 1024;  ///< one piece of output in the queue
inline constexpr std::size_t queue_text = 4 * 1024;     ///< a .meta file, or a line for audit.log
inline constexpr std::size_t config_file = 64 * 1024;   ///< one configuration file
inline constexpr std::size_t policy_file = 1024 * 1024; ///< one policy file
inline constexpr std::size_t policy_line = 8 * 1024;    ///< one line of policy
inline constexpr std::size_t collected_stdin = 1024 * 1024; ///< input that an operator approves
inline constexpr std::size_t qube_tag = 255;                ///< the name of a tag in a policy
inline constexpr std::size_t audit_line = 32 * 1024;        ///< one line, newline included
inline constexpr std::size_t audit_argument = 8 * 1024; ///< an argv in a record, before escaping
inline constexpr std::size_t waiting_headers_per_qube = 1024 * 1024; ///< of waiting requests
inline constexpr std::size_t waiting_headers = 8 * 1024 * 1024; ///< the same for all qubes together
inline constexpr std::size_t argument = 131071; ///< one argument: MAX_ARG_STRLEN without its NUL

// Counts.
inline constexpr std::size_t arguments = 1024;           ///< arguments in a request's header
inline constexpr std::size_t long_arguments = 32 * 1024; ///< the same in a request's body
inline constexpr std::size_t environment = 64;           ///< variables a request may carry
inline constexpr std::size_t open_challenges = 64;       ///< per stream
inline constexpr std::size_t running_per_qube = 8;       ///< commands that run
inline constexpr std::size_t running = 64;               ///< the same for all qubes together
inline constexpr std::size_t waiting_per_qube = 256;     ///< requests that wait for a slot
inline constexpr std::size_t starts_per_second = 500;    ///< sustained, per qube
inline constexpr std::size_t starts_burst = 2000;        ///< starts at once, per qube

inline constexpr std::size_t policy_rules = 20'000; ///< rules in all files together
inline constexpr std::size_t policy_problems = 100; ///< that are listed; further ones are not

// Times.
inline constexpr std::uint32_t default_timeout_s = 300;      ///< time-out of a command without `-t`
inline constexpr std::uint64_t beginning_ms = 100;           ///< how long a command counts as new
inline constexpr std::uint64_t challenge_ms = 30'000;        ///< how long a challenge is valid
inline constexpr std::uint64_t preamble_ms = 30'000;         ///< how long the preamble may take
inline constexpr std::uint64_t policy_seconds = 366 * 86400; ///< the longest ttl= and timeout=
inline constexpr std::int64_t id_clock_skew_s = 26 * 3600;   ///< of an ID's time from dom0's clock

} // namespace qvmremote::limits
