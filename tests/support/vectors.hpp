// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Reads the golden vectors: lines of `NAME = HEX` made by tests/vectors/make.py.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>

#include <qvmremote/bytes.hpp>

namespace qvmremote::test {

class vector_file {
  public:
    /// `file` is in the directory that QVMREMOTE_VECTORS names.
    explicit vector_file(const std::string &file) {
        const char *const directory = std::getenv("QVMREMOTE_VECTORS");
        std::ifstream in(std::string(directory ? directory : "tests/vectors") + "/" + file);
        for (std::string line; std::getline(in, line);) {
            const auto middle = line.find(" = ");
            if (line.empty() || line[0] == '#' || middle == line.npos)
                continue;
            rows_[line.substr(0, middle)] = from_hex(line.substr(middle + 3)).value();
        }
    }

    [[nodiscard]] const bytes &operator[](const std::string &name) const {
        const auto found = rows_.find(name);
        if (found == rows_.end())
            throw std::runtime_error("no vector " + name);
        return found->second;
    }
    [[nodiscard]] std::string text(const std::string &name) const {
        return std::string(as_text((*this)[name]));
    }
    [[nodiscard]] const std::map<std::string, bytes> &rows() const noexcept { return rows_; }

  private:
    std::map<std::string, bytes> rows_;
};

} // namespace qvmremote::test
