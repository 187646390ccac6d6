// SPDX-License-Identifier: GPL-2.0-or-later
#include "administer/report.hpp"

#include <cstdio>

namespace qvmremote::dom0 {

using nlohmann::ordered_json;

report &report::instance() {
    static report only;
    return only;
}

void report::say(error_name name, const std::string &what) {
    std::fprintf(stderr, "qvm-remote-dom0: %s\n", what.c_str());
    lines_.push_back({std::string(name.text()), what});
}

void report::warn(const std::string &what) {
    std::fprintf(stderr, "qvm-remote-dom0: %s\n", what.c_str());
    warnings_.push_back(what);
}

int report::end(int code) {
    if (is_json_ && !has_own_form_)
        print_object(code);
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0)
        return code;
    std::fprintf(stderr, "qvm-remote-dom0: cannot write the output\n");
    return 255;
}

void report::print_object(int code) const {
    ordered_json out;
    if (!result_.is_null())
        out["result"] = result_;
    out["exit_code"] = code;
    auto next = lines_.begin();
    if (code != 0 && !lines_.empty()) {
        out["error"] = {{"name", next->name}, {"message", next->text}};
        ++next;
    }
    out["warnings"] = warnings_;
    for (; next != lines_.end(); ++next)
        out["warnings"].push_back(next->text);
    std::printf("%s\n", dumped(out).c_str());
}

std::string dumped(const ordered_json &value) {
    return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

} // namespace qvmremote::dom0
