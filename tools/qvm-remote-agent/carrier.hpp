// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The carrier of protocol 1 (doc/PROTOCOL.md, "Queue"): the files of ~/.qvm-remote/queue.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/queue.hpp>

#include "common/queue_files.hpp"

namespace qvmremote::agent {

/// Announces entries that other programs leave, and writes their results, in the order and under the
/// names of COMPAT-V1.md. Every file is reached through a directory that was opened once.
class carrier {
  public:
    /// Makes the directories below `base` (~/.qvm-remote) if they are missing, removes files older
    /// than an hour, watches the directories, and announces the entries in them. If the user has no
    /// inotify instance left, it looks once a second instead.
    [[nodiscard]] static host::outcome<carrier> open(const std::string &base, std::uint64_t now_ms);

    /// Readable when files have changed: call look() then. -1 while nothing can be watched.
    [[nodiscard]] int descriptor() const noexcept { return inotify_.get(); }
    void look(std::uint64_t now_ms);

    /// When tick() has something to do; UINT64_MAX while it has not.
    [[nodiscard]] std::uint64_t due_ms() const;
    void tick(std::uint64_t now_ms);

    /// Takes bytes from dom0. False when they are not valid.
    [[nodiscard]] bool take(bytes_view from_dom0, std::uint64_t now_ms);

    /// The bytes to send to dom0.
    [[nodiscard]] out_buffer &output() noexcept { return machine_.output(); }

  private:
    struct entry {
        enum class stage : std::uint8_t {
            seen,      // not announced yet: its token may be missing
            announced, // dom0 knows of it
            fetched,   // it is in running/
            ignored,   // it cannot be fetched; stays so until it is removed
        };
        stage at = stage::seen;
        std::uint64_t seen_ms = 0;
        std::uint64_t not_before_ms = 0; // dom0 said later, or its client may take it back
        bool written = false;            // output, or an attempt failed
        bool failed = false;
    };
    using entries = std::map<std::string, entry>;

    explicit carrier(std::string base) : base_(std::move(base)) {}
    [[nodiscard]] host::outcome<void> open_directories();
    void reopen(std::uint64_t now_ms);
    void publish_results() const;
    void scan(std::uint64_t now_ms);
    void consider(const std::string &id, std::uint64_t now_ms);
    void obey(const queue_order &order, std::uint64_t now_ms);
    void fetch(const command_id &id);
    void forget_output(const std::string &id) const;
    void write_output(const queue_order &order);
    void write_result(const queue_order &order);
    void say_idle();
    [[nodiscard]] std::string token_of(const std::string &id) const;

    std::string base_;
    queue_directories files_;
    host::unique_fd inotify_;
    std::uint64_t take_back_until_ms_ = 0;
    std::uint64_t look_due_ms_ =
        UINT64_MAX; // set while nothing is watched, or a directory is missing
    queue_client machine_;
    entries entries_;
    bool idle_ = false;
};

} // namespace qvmremote::agent
