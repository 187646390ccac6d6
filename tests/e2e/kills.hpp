// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What the tests share that kill processes during a command: the command, the parts of its life,
/// and what the audit log says about it.

#pragma once

#include "harness.hpp"

#include <algorithm>
#include <array>
#include <cstdint>

#include <sys/stat.h>

#include <qvmremote/audit.hpp>

namespace e2e {

enum class part : std::size_t { before_start, start_to_exec, running, exec_to_end, after };
inline constexpr std::array<const char *, 5> part_names = {"before START", "START to exec",
                                                           "running", "exec to END", "after END"};

/// Counts the kills in each part of a command's life.
class tally {
  public:
    void count(part where) { ++fell_[static_cast<std::size_t>(where)]; }
    /// The part with the fewest kills.
    [[nodiscard]] part rarest() const {
        return static_cast<part>(std::min_element(fell_.begin(), fell_.end()) - fell_.begin());
    }
    /// Fails when a part had less than a tenth of the kills; if there were few kills, when it had
    /// none.
    void print() const {
        int all = 0;
        for (const int n : fell_)
            all += n;
        bool spread = true;
        for (std::size_t p = 0; p < fell_.size(); ++p) {
            std::printf("%-16s %4d of %d kills\n", part_names[p], fell_[p], all);
            spread = spread && fell_[p] * 10 >= (all < few_kills ? 10 : all);
        }
        require(spread, "a part of a command's life had too few kills");
    }

  private:
    static constexpr int few_kills = 200;
    std::array<int, 5> fell_{};
};

/// The command. It writes its ID to PLACE/ran when it begins, and makes PLACE/done at its end.
inline std::string payload(const std::string &mark, const std::string &place, int hundredths) {
    return "export MARK=" + mark + "; echo $QVM_REMOTE_ID >> " + place +
           "/ran; setsid sleep 1000 >/dev/null 2>&1 & echo first; sleep 0.0" +
           std::to_string(hundredths) + "; seq 2000; echo last; : > " + place + "/done";
}
inline std::string whole_output() {
    std::string out = "first\n";
    for (int n = 1; n <= 2000; ++n)
        out += std::to_string(n) + "\n";
    return out + "last\n";
}
/// The processes of such a command.
inline std::vector<pid_t> survivors(const std::string &mark) {
    return processes_with("MARK=" + mark);
}

inline off_t size_of(const std::string &path) {
    struct stat st {};
    return ::stat(path.c_str(), &st) == 0 ? st.st_size : 0;
}
inline bool exists(const std::string &path) { return ::access(path.c_str(), F_OK) == 0; }

/// Waits in a tight loop, because the moment that it waits for lasts only some hundred
/// microseconds.
template <class Condition>
void spin_until(Condition condition, const std::string &what) {
    const std::uint64_t begin = host::boottime_ms();
    while (!condition())
        require(host::boottime_ms() - begin < hang_guard_ms, "never happened: " + what);
}

/// The offset at which the next audit line will begin. It waits for a whole line, since the kernel
/// extends a file page by page.
inline off_t behind_last_line(const std::string &path) {
    off_t end = 0;
    spin_until(
        [&] {
            const std::string text = read_file(path);
            end = static_cast<off_t>(text.size());
            return text.empty() || text.back() == '\n';
        },
        "a whole audit line");
    return end;
}

struct records {
    std::optional<std::string> id;
    std::uint64_t start = 0;
    bool ended = false;
    std::string cause;
};
/// Reads the audit log from an offset. A line that a crash has cut off does not count.
inline records read_records(const std::string &path, off_t from) {
    records out;
    std::ifstream in(path, std::ios::binary);
    in.seekg(from);
    std::ostringstream rest;
    rest << in.rdbuf();
    const std::string text = rest.str();
    for (std::size_t at = 0, end; (end = text.find('\n', at)) != text.npos; at = end + 1) {
        const auto line = std::string_view(text).substr(at, end - at);
        const auto entry = parse_audit(line);
        require(entry.has_value(), "an audit line does not parse, at " + std::to_string(at) +
                                       " after " + std::to_string(from) + ": " + std::string(line));
        if (entry->kind == "START") {
            out.id = entry->id();
            out.start = entry->serial;
        } else if (entry->kind == "END") {
            out.cause = entry->text("cause").value_or("");
            out.ended = out.cause != "unknown"; // the next daemon writes that one
        }
    }
    return out;
}

} // namespace e2e
