// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The limits that only dom0's daemon uses, each with its unit.

#pragma once

#include <cstddef>
#include <cstdint>

#include <qvmremote/limits.hpp>

namespace qvmremote::limits {

// Sizes, in bytes.
inline constexpr std::size_t argument_text = 100 * 1024; ///< of `bash -c`; Linux takes < 128 KiB
inline constexpr std::uint64_t audit_file = 64 * 1024 * 1024; ///< at this size a new file begins
/// All files together, except those of the last days (id_remembered_s).
inline constexpr std::uint64_t audit_kept = 1024 * 1024 * 1024;
inline constexpr std::uint64_t audit_per_qube = 256 * 1024 * 1024; ///< of one qube, per day
inline constexpr std::uint64_t job_output = 10 * 1024 * 1024;      ///< kept of one job
inline constexpr std::uint64_t jobs_output = 1024 * 1024 * 1024;   ///< kept of a qube's jobs
inline constexpr std::uint64_t event_log_file = 32 * 1024 * 1024;  ///< one earlier file is kept
/// How much the windows for stdin may grow: of the commands of one qube together, and of all qubes.
inline constexpr std::size_t wider_windows_per_qube = 1536 * 1024;
inline constexpr std::size_t wider_windows = 8 * 1024 * 1024;

// Counts.
inline constexpr std::size_t streams_per_qube = 128;     ///< open streams
inline constexpr std::size_t jobs_per_qube = 100;        ///< that run
inline constexpr std::size_t jobs = 400;                 ///< the same of all qubes together
inline constexpr std::size_t ended_jobs_per_qube = 1000; ///< that are remembered
inline constexpr std::size_t readers_per_qube = 64; ///< requests that read a job, or wait for it
inline constexpr std::size_t policy_files = 256;    ///< files in the policy directory
inline constexpr std::size_t refused_lines_per_second = 10; ///< in the audit log, per qube
inline constexpr std::size_t refused_lines_burst = 100;     ///< the same at once
inline constexpr std::size_t audit_head_lines = 100; ///< between two heads in the system journal

// Times.
inline constexpr std::int64_t id_remembered_s = 72 * 3600; ///< how long an ID with a time is kept
inline constexpr std::int64_t audit_kept_s = 90 * 86400;   ///< how long old audit files are kept
inline constexpr std::int64_t jobs_kept_s = 30 * 86400;    ///< how long an ended job is remembered
inline constexpr std::uint64_t audit_head_ms = 600'000; ///< between two heads if lines were added

} // namespace qvmremote::limits
