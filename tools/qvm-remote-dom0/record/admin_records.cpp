// SPDX-License-Identifier: GPL-2.0-or-later
#include "record/admin_records.hpp"

#include <vector>

#include <qvmremote/sanitize.hpp>

namespace qvmremote::dom0 {

journal_entry admin_entry(std::string_view act, std::string_view peer, std::string_view who,
                          std::string_view words) {
    journal_entry out;
    out.kind = audit_kind::admin;
    out.peer = peer;
    out.user = who;
    out.reason = std::string(act) + (words.empty() ? "" : " ") + std::string(words);
    return out;
}

std::optional<std::string> answer_audit(std::string_view request, journal &records) {
    if (request == "audit rotate") {
        records.begin_file();
        return "ok\n";
    }
    std::vector<std::string_view> fields;
    for (std::size_t at = 0; fields.size() < 5;) {
        const std::size_t end = fields.size() == 4 ? request.npos : request.find('\t', at);
        fields.push_back(request.substr(at, end == request.npos ? end : end - at));
        if (end == request.npos)
            break;
        at = end + 1;
    }
    if (fields.size() != 5 || fields[0] != "admin")
        return std::nullopt;
    records.note(admin_entry(fields[1], fields[2], fields[3], fields[4]));
    const std::string trouble = records.trouble();
    return trouble.empty() ? "ok\n" : for_terminal(trouble) + "\n";
}

} // namespace qvmremote::dom0
