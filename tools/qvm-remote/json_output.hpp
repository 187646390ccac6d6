// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The output of a command for a program that reads JSON: kept for the object at the end, or one
/// object for each piece.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <qvmremote/host/client.hpp>

#include "recorder.hpp"
#include "report.hpp"

namespace qvmremote::qube {

/// One stream of a command. Keeps the first limits::recorded_output bytes for the object, or, with
/// --json=lines, writes each piece as it comes.
class json_sink final : public host::output_sink {
  public:
    json_sink(const char *name, recorder *to) : name_(name), record_(to) {}

    [[nodiscard]] std::size_t take(bytes_view data) override;
    [[nodiscard]] int blocked_on() const override { return report::instance().out().blocked_on(); }
    [[nodiscard]] bool broken() const override { return report::instance().out().broken(); }
    void end() override;
    /// So many bytes before the next one are not kept by dom0 any more.
    void skip(std::uint64_t bytes) noexcept { skipped_ += bytes; }

    /// The member of the result: the bytes, how many there were, and whether some are left out.
    void write(json_writer &to) const;

  private:
    void add_line(std::string_view untrusted_bytes);

    std::string name_;
    recorder *record_;       // null: nothing is recorded
    std::string kept_;       // for the object; with lines, half a character that waits for its rest
    bool has_first_ = false; // the first byte of the next take() is in a line already
    std::uint64_t bytes_ = 0; // all that came
    std::uint64_t skipped_ = 0;
};

/// A line of --json=lines that says the state of a command. `untrusted_text` is its ID when it was
/// sent, otherwise what dom0 says, and may be empty.
void add_event(host::run_state state, std::string_view untrusted_text);

/// What a run was, besides how it ended.
struct run_identity {
    std::string transport;
    int protocol;
    std::string id;
    std::uint64_t took_ms;
};

/// Reports a command's result, after the last of its output.
void report_run(const run_identity &run, const host::run_result &r, json_sink &out, json_sink &err);

} // namespace qvmremote::qube
