// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The files of a job: what it is, its output, and how it ended.
///
///     /var/lib/qvm-remote/jobs/QUBE/ID/   0700; the daemon makes everything in it before START
///         job    what it is, and the keeper's secret
///         out    its stdout, written by its keeper; a byte of the stream has that offset in the file
///         err    its stderr
///         end    how it ended: empty while it runs, then written once
///
/// When a job has written more than it may keep, its keeper punches a hole at the beginning of the
/// longer stream. So the file system itself says what is gone, and no offset ever changes.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include <qvmremote/command_id.hpp>
#include <qvmremote/digest.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/job.hpp>
#include <qvmremote/policy.hpp>
#include <qvmremote/session.hpp>

namespace qvmremote::dom0 {

/// What dom0 writes about a job before its START.
struct job_record {
    std::string name;                      ///< of its socket and its cgroup: 16 digits, at random
    std::array<std::uint8_t, 32> secret{}; ///< its keeper proves itself by this
    std::string qube, transport, service_argument; ///< whose it is, as peer has it
    digest256 key_mark{};                          ///< of the key that signed the request
    std::int64_t started_s = 0;                    ///< since 1970
    std::string started;                           ///< YYYY-MM-DDTHH:MM:SS
    bytes header;                                  ///< the request as envelope::encode writes it
    std::string body;                              ///< when it is not in the header
    std::string shown;                             ///< the command, for lists

    [[nodiscard]] bytes encode() const;
    /// Fails with EBADMSG for anything that encode() does not write.
    [[nodiscard]] static host::outcome<job_record> decode(bytes_view file);

    /// The request that it came with.
    [[nodiscard]] host::outcome<envelope> request() const;
};

/// How a job ended, as `end` has it.
struct job_end {
    run_end how;
    std::uint64_t stdin_bytes = 0;
    std::uint64_t duration_ms = 0;

    [[nodiscard]] bytes encode() const;
    /// Nothing for a file that is empty or not complete.
    [[nodiscard]] static std::optional<job_end> decode(bytes_view file);
};

/// The open files of one job.
struct job_files {
    host::unique_fd directory, out, err, end;

    /// Makes the directory and its files, which must not exist.
    [[nodiscard]] static host::outcome<job_files> make(int qube_directory, const command_id &id,
                                                       const job_record &what);
    /// Opens the files of an earlier job, to read.
    [[nodiscard]] static host::outcome<job_files> open(int qube_directory, const command_id &id);

    [[nodiscard]] host::outcome<job_record> record() const;
    [[nodiscard]] std::optional<job_end> ended() const;
};

/// Removes a job's directory. Does nothing if there is none.
void remove_job_files(int qube_directory, const command_id &id) noexcept;

/// One stream of a job's output, to read while its keeper writes it.
class job_output {
  public:
    /// Borrows the file.
    explicit job_output(int file, std::uint64_t from = 0) noexcept : file_(file), at_(from) {}

    [[nodiscard]] std::uint64_t offset() const noexcept { return at_; }
    /// How much of the beginning is gone, and how much was written.
    struct extent {
        std::uint64_t first = 0, end = 0;
    };
    [[nodiscard]] static extent extent_of(int file) noexcept;
    /// The bytes on the disk.
    [[nodiscard]] static std::uint64_t kept(int file) noexcept;

    struct piece {
        std::size_t size = 0;      ///< bytes read; 0: there is no more now
        std::uint64_t skipped = 0; ///< bytes before them that are gone
    };
    /// Reads the next bytes. It never returns the zeros of a hole.
    [[nodiscard]] piece read(std::span<std::uint8_t> to) noexcept;

  private:
    int file_;
    std::uint64_t at_;
};

/// The other side of it: appends what a job writes, and drops the oldest.
class job_recorder {
  public:
    /// `most` bytes are kept of both files together.
    job_recorder(int out, int err, std::uint64_t most) noexcept
        : lanes_{{{out, 0, 0}, {err, 0, 0}}}, most_(most) {}

    void append(bool is_stdout, bytes_view data) noexcept;
    [[nodiscard]] std::uint64_t written(bool is_stdout) const noexcept {
        return lanes_[is_stdout ? 0 : 1].end;
    }

    /// The least that can be kept.
    static constexpr std::uint64_t least_kept = 64 * 1024;

  private:
    struct lane {
        int file;
        std::uint64_t first, end;
    };
    [[nodiscard]] bool drop_some() noexcept;
    [[nodiscard]] std::uint64_t kept() const noexcept {
        return lanes_[0].end - lanes_[0].first + lanes_[1].end - lanes_[1].first;
    }

    std::array<lane, 2> lanes_;
    std::uint64_t most_;
    bool can_drop_ = true; // the file system can make holes
};

} // namespace qvmremote::dom0
