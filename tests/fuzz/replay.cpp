// SPDX-License-Identifier: GPL-2.0-or-later
// Gives every file of the directories on the command line to one fuzz target, so that the corpus is
// a test with any compiler. A target that finds a fault aborts.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "target.hpp"

int main(int argc, char **argv) {
    std::size_t files = 0;
    for (int i = 1; i < argc; ++i) {
        for (const auto &file : std::filesystem::directory_iterator(argv[i])) {
            std::ifstream in(file.path(), std::ios::binary);
            const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
            if (in.bad()) {
                std::fprintf(stderr, "cannot read %s\n", file.path().c_str());
                return 1;
            }
            // Print the name first, so that the last line names the file that aborts.
            std::printf("%s\n", file.path().c_str());
            std::fflush(stdout);
            LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t *>(bytes.data()),
                                   bytes.size());
            ++files;
        }
    }
    if (files == 0) {
        std::fprintf(stderr, "no file in the corpus\n");
        return 1;
    }
}
