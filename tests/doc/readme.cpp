// SPDX-License-Identifier: GPL-2.0-or-later
#include <cstdio>
#include <qvmremote/host/client.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/host/plugin.hpp>
using namespace qvmremote;

int main(int, char **argv) { // DIRECTORY-OF-PLUG-INS KEY-FILE SOCKET COMMAND
    auto key = secret::parse(host::read_trusted(argv[2], host::trusted::secret, 256).value());
    auto mock = host::transport::load(argv[1], "mock", host::role::qube, {{"socket", argv[3]}});
    host::client dom0(mock->connect().value(), std::move(key.value()));
    host::command what;
    what.body = argv[4];
    auto done = dom0.collect(std::move(what));
    return std::fputs(done.out.c_str(), stdout) < 0 ? 255 : done.result.exit_code();
}
