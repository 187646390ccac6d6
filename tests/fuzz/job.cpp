// SPDX-License-Identifier: GPL-2.0-or-later
// Checks requests about jobs and rows of a list: what parses is written again as it was, and holds only
// an ID and offsets of their forms.

#include <string>
#include <vector>

#include <qvmremote/job.hpp>

#include "target.hpp"

using namespace qvmremote;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    const std::string text(reinterpret_cast<const char *>(data), size);
    std::vector<std::string> words;
    for (std::size_t at = 0; at <= text.size();) {
        const std::size_t end = std::min(text.find('\n', at), text.size());
        words.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    if (const auto request = job_request::parse(words)) {
        require(request->words() == words);
        require(request->id.has_value() == (request->what != job_request::verb::list));
        require(request->from.out <= job_request::most_offset &&
                request->from.err <= job_request::most_offset);
    }
    if (const auto row = job_row::parse(text)) {
        require(command_id::parse(row->id).has_value() && row->exit >= -1 && row->exit <= 255);
        const auto again = job_row::parse(row->line());
        require(again && again->line() == row->line());
    }
    return 0;
}
