// SPDX-License-Identifier: GPL-2.0-or-later
#include "commands/commands.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/history.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/sanitize.hpp>

namespace qvmremote::qube {

namespace {

constexpr const char *parts[] = {"pending", "running", "results"};

// The entries in one part of the queue; hidden ones are still being written.
std::vector<std::string> entries_of(const std::string &directory) {
    auto names = host::names_in(directory).value_or(std::vector<std::string>{});
    std::erase_if(names, [](const std::string &name) { return name.starts_with('.'); });
    return names;
}

int show_counts(const home &where) {
    for (const char *part : parts) {
        const std::size_t count = entries_of(where.queue() + "/" + part).size();
        if (report::instance().is_json())
            report::instance().result().number(part, static_cast<std::int64_t>(count));
        else
            std::printf("%-8s %zu\n", part, count);
    }
    return 0;
}

int show_entries(const home &where) {
    if (report::instance().is_json())
        report::instance().result().begin_array("entries");
    for (const char *part : parts) {
        const std::string directory = where.queue() + "/" + part;
        for (const std::string &name : entries_of(directory)) {
            struct stat st {};
            ::lstat((directory + "/" + name).c_str(), &st);
            const std::int64_t age_s = host::local_time::now().seconds - st.st_mtime;
            if (!report::instance().is_json()) {
                std::printf("%-8s %10lld bytes %8lld s old  %s\n", part,
                            static_cast<long long>(st.st_size), static_cast<long long>(age_s),
                            for_terminal(name).c_str());
                continue;
            }
            json_writer &to = report::instance().result();
            to.begin();
            to.text("part", part);
            to.text("name", name);
            to.number("bytes", st.st_size);
            to.number("age_s", age_s);
            to.end();
        }
    }
    if (report::instance().is_json())
        report::instance().result().end();
    return 0;
}

int clean(const home &where) {
    std::uint64_t removed = 0;
    for (const char *part : parts) {
        const std::string directory = where.queue() + "/" + part;
        for (const std::string &name : entries_of(directory)) {
            const std::string path = directory + "/" + name;
            if (::unlink(path.c_str()) == 0)
                ++removed;
            else
                warn("cannot remove " + for_terminal(path) + ": " + std::strerror(errno));
        }
    }
    if (report::instance().is_json())
        report::instance().result().number("removed", static_cast<std::int64_t>(removed));
    else
        std::printf("removed %llu\n", static_cast<unsigned long long>(removed));
    std::string line = line_queue_clean(host::local_time::now().timestamp(), removed);
    line.pop_back(); // append_line adds a newline
    if (auto made = host::make_directories(where.directory(), 0700); !made)
        return fail_with(fault::local_failure, made.error().what);
    if (auto written = host::append_line(where.audit_log(), line, 0600); !written)
        return fail_with(fault::local_failure, written.error().what);
    return 0;
}

} // namespace

int queue_command(const invocation &in) {
    const std::string_view verb = in.words.empty() ? std::string_view("status") : in.words[0];
    if (in.words.size() <= 1 && verb == "status")
        return show_counts(in.where);
    if (in.words.size() <= 1 && verb == "debug")
        return show_entries(in.where);
    if (in.words.size() <= 1 && verb == "clean")
        return clean(in.where);
    return fail_with(fault::usage, in.usage);
}

} // namespace qvmremote::qube
