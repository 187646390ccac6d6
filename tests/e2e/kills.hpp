// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What the tests share that kill in the middle of a command: the command, the parts of its way,
/// and what the audit log says of it.

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

/// How many kills fell where.
class tally {
  public:
    void count(part where) { ++fell_[static_cast<std::size_t>(where)]; }
    /// The part that has had the fewest.
    [[nodiscard]] part rarest() const {
        return static_cast<part>(std::min_element(fell_.begin(), fell_.end()) - fell_.begin());
    }
    /// Fails when one had less than a tenth; of few kills, by chance, when one had none.
    void print() const {
        int all = 0;
        for (const int n : fell_)
            all += n;
        bool spread = true;
        for (std::size_t p = 0; p < fell_.size(); ++p) {
            std::printf("%-16s %4d of %d kills\n", part_names[p], fell_[p], all);
            spread = spread && fell_[p] * 10 >= (all < few_kills ? 10 : all);
        }
        require(spread, "a part of the way had too few of the kills");
    }

  private:
    static constexpr int few_kills = 200;
    std::array<int, 5> fell_{};
};

/// Notes its ID in PLACE/ran when it begins, and makes PLACE/done at its end.
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
/// Processes of that payload.
inline std::vector<pid_t> survivors(const std::string &mark) {
    return processes_with("MARK=" + mark);
}

inline off_t size_of(const std::string &path) {
    struct stat st {};
    return ::stat(path.c_str(), &st) == 0 ? st.st_size : 0;
}
inline bool exists(const std::string &path) { return ::access(path.c_str(), F_OK) == 0; }

/// A tight loop: what it waits for lasts some hundred microseconds.
template <class Condition>
void spin_until(Condition condition, const std::string &what) {
    const std::uint64_t begin = host::boottime_ms();
    while (!condition())
        require(host::boottime_ms() - begin < hang_guard_ms, "never happened: " + what);
}

/// Where the next audit line will begin. A line that is being written shows by pieces: the kernel
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
/// What the audit log says beyond an offset; a line that a crash cut off does not count.
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
                                       " behind " + std::to_string(from) + ": " +
                                       std::string(line));
        if (entry->kind == "START") {
            out.id = entry->id();
            out.start = entry->serial;
        } else if (entry->kind == "END") {
            out.cause = entry->text("cause").value_or("");
            out.ended = out.cause != "unknown"; // that one is the next daemon's
        }
    }
    return out;
}

} // namespace e2e
