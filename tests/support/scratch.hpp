// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A directory below /tmp for one test. The destructor removes it.

#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

#include <sys/stat.h>
#include <unistd.h>

namespace qvmremote_test {

class scratch {
  public:
    scratch() {
        if (::mkdtemp(path_.data()) == nullptr)
            throw std::runtime_error("no scratch directory");
    }
    scratch(const scratch &) = delete;
    scratch &operator=(const scratch &) = delete;
    ~scratch() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }

    [[nodiscard]] const std::string &path() const { return path_; }
    [[nodiscard]] std::string operator/(std::string_view name) const {
        return path_ + "/" + std::string(name);
    }

  private:
    std::string path_ = "/tmp/qvm-remote-test-XXXXXX";
};

inline std::string put(const std::string &path, std::string_view text, mode_t mode = 0644) {
    std::ofstream(path, std::ios::binary) << text;
    ::chmod(path.c_str(), mode);
    return path;
}
inline std::string text_of(const std::string &path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}
inline mode_t mode_of(const std::string &path) {
    struct stat at {};
    return ::stat(path.c_str(), &at) == 0 ? at.st_mode & 07777 : 0;
}
inline bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

} // namespace qvmremote_test
