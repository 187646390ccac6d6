// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What a qube asks about its jobs, and dom0's rows about them (doc/PROTOCOL.md, "Jobs").

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/amounts.hpp>
#include <qvmremote/command_id.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote {

/// A place in the two output streams of a job, in bytes from their beginning.
struct job_offsets {
    std::uint64_t out = 0, err = 0;
    friend bool operator==(const job_offsets &, const job_offsets &) = default;
};

/// What a request of kind `job` asks for. Its arguments are the words: a verb and, except for
/// `list`, the job's ID; then, for `logs`, `follow` and `attach`, the two offsets in decimal digits.
struct job_request {
    enum class verb : std::uint8_t {
        list,   ///< one job_row for each job of the qube
        logs,   ///< the output from the offsets to its present end
        follow, ///< the same, and what the job still writes, to its end
        attach, ///< as follow; what is typed goes to the job
        wait,   ///< the end of the job
        cancel, ///< asks the job to end
    };
    verb what = verb::list;
    std::optional<command_id> id{}; ///< absent for list
    job_offsets from{};

    [[nodiscard]] bool reads_output() const noexcept {
        return what == verb::logs || what == verb::follow || what == verb::attach;
    }

    /// Fails with errc::bad_envelope for other words, or as command_id::parse does.
    [[nodiscard]] static result<job_request> parse(std::span<const std::string> untrusted_words) {
        const auto named = untrusted_words.empty()
                               ? std::end(names)
                               : std::find(std::begin(names), std::end(names), untrusted_words[0]);
        if (named == std::end(names))
            return fail(errc::bad_envelope);
        job_request out;
        out.what = static_cast<verb>(named - std::begin(names));
        const std::size_t wanted = out.what == verb::list ? 1 : out.reads_output() ? 4 : 2;
        if (untrusted_words.size() != wanted)
            return fail(errc::bad_envelope);
        if (wanted == 1)
            return out;
        auto id = command_id::parse(untrusted_words[1]);
        if (!id)
            return tl::unexpected(id.error());
        out.id = std::move(*id);
        if (wanted == 2)
            return out;
        const auto from_out = parse_decimal<std::uint64_t>(untrusted_words[2]);
        const auto from_err = parse_decimal<std::uint64_t>(untrusted_words[3]);
        if (!from_out || !from_err || *from_out > most_offset || *from_err > most_offset)
            return fail(errc::bad_envelope);
        out.from = {*from_out, *from_err};
        return out;
    }

    /// The words that parse reads.
    [[nodiscard]] std::vector<std::string> words() const {
        std::vector<std::string> out = {std::string(names[static_cast<std::size_t>(what)])};
        if (id)
            out.push_back(id->text());
        if (reads_output()) {
            out.push_back(std::to_string(from.out));
            out.push_back(std::to_string(from.err));
        }
        return out;
    }

    /// Files have signed offsets.
    static constexpr std::uint64_t most_offset = INT64_MAX;

  private:
    static constexpr std::string_view names[] = {"list",   "logs", "follow",
                                                 "attach", "wait", "cancel"};
};

/// One job in a list: a line of fields with a tab between them.
struct job_row {
    std::string id;
    std::string state;   ///< running, or how it ended: the name of an end_cause, or unknown
    int exit = -1;       ///< the exit code; -1 while it runs
    std::string started; ///< YYYY-MM-DDTHH:MM:SS, by dom0's clock
    std::uint64_t seconds = 0;
    job_offsets written; ///< how much it has written
    job_offsets gone;    ///< how much of that, from the beginning, is not kept any more
    bool tty = false;
    std::string shown; ///< the command, without control characters

    /// The line, without a newline.
    [[nodiscard]] std::string line() const {
        std::string out = id;
        const auto add = [&](const std::string &field) { (out += '\t') += field; };
        add(state);
        add(std::to_string(exit));
        add(started);
        add(std::to_string(seconds));
        for (const std::uint64_t n : {written.out, written.err, gone.out, gone.err})
            add(std::to_string(n));
        add(tty ? "tty" : "-");
        add(shown);
        return out;
    }

    /// Nothing for a line of another form. Fields after the last are left out, for a later version.
    /// The texts stay untrusted.
    [[nodiscard]] static std::optional<job_row> parse(std::string_view untrusted_line) {
        std::vector<std::string_view> fields;
        for (std::size_t at = 0; at != std::string_view::npos;) {
            const std::size_t end = untrusted_line.find('\t', at);
            fields.push_back(untrusted_line.substr(at, end - at));
            at = end == std::string_view::npos ? end : end + 1;
        }
        if (fields.size() < 11 || !command_id::parse(fields[0]))
            return std::nullopt;
        job_row out;
        out.id = fields[0];
        out.state = fields[1];
        const auto exit = parse_decimal<int>(fields[2]);
        out.started = fields[3];
        std::uint64_t *const numbers[] = {&out.seconds, &out.written.out, &out.written.err,
                                          &out.gone.out, &out.gone.err};
        for (std::size_t i = 0; i < std::size(numbers); ++i) {
            const auto number = parse_decimal<std::uint64_t>(fields[4 + i]);
            if (!number)
                return std::nullopt;
            *numbers[i] = *number;
        }
        if (!exit || *exit < -1 || *exit > 255)
            return std::nullopt;
        out.exit = *exit;
        out.tty = fields[9] == "tty";
        out.shown = fields[10];
        return out;
    }
};

} // namespace qvmremote
