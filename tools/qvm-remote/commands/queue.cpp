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

int queue_command(const invocation &in) {
    const std::string_view verb = in.words.empty() ? std::string_view("status") : in.words[0];
    if (in.words.size() > 1 || (verb != "status" && verb != "clean" && verb != "debug"))
        return fail_with(in.usage);
    std::uint64_t removed = 0;
    for (const char *part : {"pending", "running", "results"}) {
        const std::string directory = in.where.queue() + "/" + part;
        auto names = host::names_in(directory).value_or(std::vector<std::string>{});
        std::erase_if(names, [](const std::string &name) { return name.starts_with('.'); });
        if (verb == "status")
            std::printf("%-8s %zu\n", part, names.size());
        for (const std::string &name : names) {
            const std::string path = directory + "/" + name;
            if (verb == "clean") {
                if (::unlink(path.c_str()) == 0)
                    ++removed;
                else
                    complain("cannot remove " + for_terminal(path) + ": " + std::strerror(errno));
            } else if (verb == "debug") {
                struct stat st {};
                ::lstat(path.c_str(), &st);
                std::printf("%-8s %10lld bytes %8lld s old  %s\n", part,
                            static_cast<long long>(st.st_size),
                            static_cast<long long>(host::local_time::now().seconds - st.st_mtime),
                            for_terminal(name).c_str());
            }
        }
    }
    if (verb != "clean")
        return 0;
    std::printf("removed %llu\n", static_cast<unsigned long long>(removed));
    std::string line = line_queue_clean(host::local_time::now().timestamp(), removed);
    line.pop_back(); // append_line adds a newline
    if (auto made = host::make_directories(in.where.directory(), 0700); !made)
        return fail_with(made.error().what);
    if (auto written = host::append_line(in.where.audit_log(), line, 0600); !written)
        return fail_with(written.error().what);
    return 0;
}

} // namespace qvmremote::qube
