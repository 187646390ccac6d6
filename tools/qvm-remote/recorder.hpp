// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Records a command in this qube: lines in audit.log and an entry in history/.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <qvmremote/command_id.hpp>
#include <qvmremote/host/client.hpp>
#include <qvmremote/host/unique_fd.hpp>
#include <qvmremote/terminal_filter.hpp>

#include "home.hpp"
#include "terminal.hpp"

namespace qvmremote::qube {

/// The record of one command: lines in audit.log, and history/YYYY-MM-DD/ID/ with the result. A
/// failure to write it does not delay or change the run; problem() tells it at the end. Nothing is
/// synced, since that would cost a millisecond for each command.
class recorder {
  public:
    /// `where` must outlive the recorder. Nothing is written before begin() or finish().
    recorder(const home &where, const command_id &id, std::string command);
    ~recorder();

    /// Writes SUBMIT, and makes the directory. Call it after the request was sent, so that it delays
    /// nothing.
    void begin();
    /// Records output: the first limits::recorded_output bytes of each stream, then a mark if there
    /// were more.
    void output(bool is_stdout, bytes_view data);
    /// Writes DONE, or TIMEOUT with `timeout_s`, and gives the directory its name. Calls begin() if
    /// nobody did. A second call does nothing.
    void finish(const host::run_result &result, std::uint32_t timeout_s);

    [[nodiscard]] const std::string &id() const noexcept { return id_; }
    /// Why the record is not complete; empty when it is.
    [[nodiscard]] const std::string &problem() const noexcept { return problem_; }

  private:
    struct lane {
        const char *name;
        std::string text; // not written yet; a small output is written once, at the end
        host::unique_fd file;
        std::uint64_t bytes = 0; // of the stream so far; above the limit nothing more is recorded
    };
    void open_entry();
    void append_audit(std::string_view line);
    void write_file(const char *name, std::string_view text);
    void spill(lane &l);
    void fail(const std::string &what);

    const home &where_;
    std::string id_, command_;
    host::unique_fd day_, entry_;
    std::string started_;
    std::uint64_t started_ms_;
    lane out_{"out", {}, {}, 0}, err_{"err", {}, {}, 0};
    bool finished_ = false;
    std::string problem_;
};

/// A sink that records what it passes on. A terminal gets it through a terminal_filter, except after
/// be_raw(); a pipe and a file get every byte as it is.
class recorded_sink final : public host::output_sink {
  public:
    /// `fd` is 1 or 2. `to` and `line` may be null; otherwise they must outlive the sink.
    recorded_sink(int fd, recorder *to, waiting_line *line)
        : inner_(fd), to_(to), line_(line), is_stdout_(fd == 1), fd_(fd) {}

    /// Call it before the first output if the command uses this terminal: its bytes then pass unchanged.
    void be_raw() noexcept { has_begun_ = true; }

    [[nodiscard]] std::size_t take(bytes_view data) override {
        if (line_ && !data.empty())
            line_->stop(); // output must not be on the same row
        const std::size_t n = write(data);
        if (line_ && n > 0)
            line_->forget();
        if (to_)
            to_->output(is_stdout_, data.first(n));
        return n;
    }
    [[nodiscard]] int blocked_on() const override { return inner_.blocked_on(); }
    [[nodiscard]] bool broken() const override { return inner_.broken(); }
    [[nodiscard]] int error() const noexcept { return inner_.error(); }
    /// The command has closed this stream: closes `fd` too. A terminal that is filtered stays open.
    void end() override;
    /// After the last output: waits until a terminal has taken all of it, or for a signal whose number
    /// comes from `signal_fd`.
    void finish(int signal_fd);

  private:
    void begin();
    [[nodiscard]] std::size_t write(bytes_view data);
    [[nodiscard]] bool drain();

    host::descriptor_sink inner_;
    bool has_begun_ = false;
    std::optional<terminal_filter> filter_;
    std::string shown_;      // has passed the filter, and the terminal has not taken it yet
    bool has_first_ = false; // the first byte of the next take() has passed the filter already
    recorder *to_;
    waiting_line *line_;
    bool is_stdout_;
    int fd_;
};

} // namespace qvmremote::qube
