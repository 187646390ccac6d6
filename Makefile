# SPDX-License-Identifier: GPL-2.0-or-later
# A thin front: Meson does the work. `make help` lists what there is.
BUILD ?= build
PREFIX ?= /usr
DESTDIR ?=
MESON ?= meson
# What a fresh Debian 12 lacks (of A|B, one). libboost1.81-dev takes the place of the 1.74 headers.
PROGRAM_PACKAGES = g++ meson ninja-build pkg-config cmake 'libboost1.81-dev|libboost1.83-dev' libssl-dev \
	libexpected-dev nlohmann-json3-dev libsqlite3-dev python3
PACKAGES = $(PROGRAM_PACKAGES) doctest-dev openssl pandoc strace busybox qemu-system-x86 dbus spin \
	ccache python3-jsonschema
DEB_PACKAGES = build-essential dpkg-dev debhelper libzstd-dev zlib1g-dev
RPM_PACKAGES = rpm rpmlint cpio
PACKAGE_CHECK_PACKAGES = lintian debootstrap systemd systemd-container makepkg python3-yaml
CHECK_PACKAGES = clang-14 libclang-rt-14-dev clang-format-14 shellcheck
MINUTES ?= 10
# Most tests wait more than they compute, so far more of them run at once than there are processors.
export MESON_TESTTHREADS ?= $(shell expr 4 '*' $$(nproc))
WERROR = $(if $(filter true,$(CI)),true,false)

CONFIGURE = .ci/configure $(BUILD) "$(CXX)" -Dwerror=$(WERROR) --prefix=$(PREFIX)
# The demo is there to be looked at soon: twelve sources at a time go to the compiler as one, which reads
# their headers once, and nothing is optimized. Names of one source hide those of another then, so only the
# other builds show warnings.
CONFIGURE_DEMO = .ci/configure $(BUILD)-demo "$(CXX)" -Dwerror=false -Dcpp_args=-w --unity=on -Dunity_size=12 \
	-Doptimization=0 -Ddebug=false -Dtests=false -Dman=disabled

.DEFAULT_GOAL := help
.PHONY: help demo test test-core campaign bench soak check check-installers check-clang check-sanitize check-tree \
	format check-package check-rpm check-salt check-threads check-trixie check-valgrind coverage deps deps-demo \
	deps-check build install-vm install-dom0 uninstall-vm uninstall-dom0 dist deb arch rpm container-rpm clean

help: ## show this
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 18
	@echo "Variables: BUILD=$(BUILD) PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) CI=$(CI) (CI=true: warnings are errors)"

demo: deps-demo ## build client, daemon and mock, then show all of it here on the mock transport
	$(CONFIGURE_DEMO)
	$(MESON) compile -C $(BUILD)-demo demo-programs
	tests/e2e/demo.sh $(BUILD)-demo

test: test-core ## build and run all tests, each campaign in its short form

test-core: build ## the tests of programs, library and plug-ins
	$(MESON) test -C $(BUILD) --print-errorlogs --no-suite package

campaign: build ## the campaigns with their full counts (ONLY=NAME,...); rows for doc/campaigns.md
	tests/soak.py $(BUILD) --full $(if $(ONLY),--only '$(ONLY)')

check-installers: build ## run the installers over stand-ins, each of their steps failing in turn
	$(MESON) test -C $(BUILD) --print-errorlogs --suite package installers

bench: build ## measure against the bars of the specification
	$(MESON) compile -C $(BUILD) bench-programs
	tests/bench/run.py $(BUILD)

soak: build ## the campaigns, for MINUTES in all (ONLY=NAME,...); rows for doc/campaigns.md
	@.ci/deps $(CHECK_PACKAGES)
	.ci/configure $(BUILD)-fuzz clang++-14 -Dwerror=true --buildtype=debugoptimized -Dfuzz=true \
		-Db_sanitize=address,undefined -Db_lundef=false
	$(MESON) compile -C $(BUILD)-fuzz fuzzers
	tests/soak.py $(BUILD) --fuzzers $(BUILD)-fuzz --minutes $(MINUTES) $(if $(ONLY),--only '$(ONLY)')

check: test check-package check-installers check-clang check-sanitize check-tree check-rpm check-salt check-trixie ## test, and all that CI looks at

# Without assertions too: what only they use, or do, shows here. The fuzzers keep theirs.
check-clang: deps-check
	.ci/configure $(BUILD)-clang clang++-14 -Dwerror=true --buildtype=debug -Dfuzz=true -Db_ndebug=true
	$(MESON) compile -C $(BUILD)-clang
	$(MESON) test -C $(BUILD)-clang --print-errorlogs --suite unit --suite host --suite fuzz --suite abi --suite headers

check-sanitize: deps
	.ci/configure $(BUILD)-sanitize g++ -Dwerror=true --buildtype=debug \
		-Db_sanitize=address,undefined -Db_lundef=false -Db_ndebug=false
	$(MESON) test -C $(BUILD)-sanitize --print-errorlogs --timeout-multiplier 4

check-rpm: rpm ## build the RPMs, install, upgrade and remove them in roots of their own
	$(CONFIGURE)
	$(MESON) test -C $(BUILD) --no-rebuild --print-errorlogs --suite package RPMs

check-salt: build ## render the Salt formula, give what it says to the programs; read the CI files for GitHub
	@.ci/deps python3-jinja2 python3-yaml
	$(MESON) test -C $(BUILD) --print-errorlogs --suite package 'Salt formula' 'CI files for GitHub'

check-trixie: ## build in a Debian 13 (debootstrapped once, as root) and run the unit tests there
	@.ci/deps debootstrap
	.ci/trixie $(BUILD)

check-valgrind: build ## client and daemon under valgrind's memcheck, through the common end-to-end tests
	@.ci/deps valgrind
	tests/e2e/under_valgrind.py $(BUILD)

# TSan turns vfork into fork, so the new process cannot say why exec failed.
NEED_VFORK = a command that cannot be started says why,short and long arguments arrive unchanged,session* group* signals*,another identity*
check-threads: deps ## the daemon's threads under TSan: unit tests, and the common end-to-end tests
	.ci/configure $(BUILD)-threads g++ --buildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false
	$(MESON) test -C $(BUILD)-threads --print-errorlogs --timeout-multiplier 4 --suite unit --suite host \
		--no-suite vfork
	$(BUILD)-threads/tests/unit/unit-warden -tce='$(NEED_VFORK)'
	$(MESON) compile -C $(BUILD)-threads qvm-remote qvm-remote-dom0 mock
	TSAN_OPTIONS=die_after_fork=0 tests/e2e/audit.py $(BUILD)-threads
	TSAN_OPTIONS=die_after_fork=0 tests/e2e/common.py $(BUILD)-threads --transport mock -exit_codes

coverage: deps ## lines of the protocol's headers that unit tests and the fuzz corpus reach: at least 95 of 100
	.ci/configure $(BUILD)-coverage g++ --buildtype=debug -Db_coverage=true
	$(MESON) test -C $(BUILD)-coverage --print-errorlogs --timeout-multiplier 4 --suite unit --suite fuzz
	tests/coverage.py $(BUILD)-coverage 95

check-tree: deps-check
	tests/check-tree.py
	git ls-files '*.cpp' '*.hpp' '*.h' '*.c' | xargs clang-format-14 --dry-run --Werror
	shellcheck --severity=warning packaging/install/*.sh tests/package/standin/standin

check-package: build deb arch ## build the packages, install them into clean systems and run them there (root)
	@.ci/deps $(PACKAGE_CHECK_PACKAGES)
	$(MESON) test -C $(BUILD) --print-errorlogs --suite package 'package sources' 'Debian packages' 'first command'

format: deps-check ## lay the sources out as check-tree wants them
	git ls-files '*.cpp' '*.hpp' '*.h' '*.c' | xargs clang-format-14 -i

deps: ## install the packages that are missing (Debian)
	@.ci/deps $(PACKAGES)
deps-demo: ## install those that the demo needs
	@.ci/deps $(PROGRAM_PACKAGES)
deps-check:
	@.ci/deps $(PACKAGES) $(CHECK_PACKAGES)

build: deps
	$(CONFIGURE)
	$(MESON) compile -C $(BUILD)

install-vm: build ## install the client, for a qube (PREFIX, DESTDIR)
	$(MESON) install -C $(BUILD) --no-rebuild --tags qube,transport $(if $(DESTDIR),--destdir "$(abspath $(DESTDIR))")
install-dom0: build ## install the daemon, for dom0
	$(MESON) install -C $(BUILD) --no-rebuild --tags dom0,transport $(if $(DESTDIR),--destdir "$(abspath $(DESTDIR))")

uninstall-vm: ## remove what install-vm installed; keys and history stay
	packaging/install/uninstall.py $(BUILD) qube "$(DESTDIR)"
uninstall-dom0: ## remove what install-dom0 installed; keys, policy and logs stay
	packaging/install/uninstall.py $(BUILD) dom0 "$(DESTDIR)"

dist: ## a release tarball, the same bytes each time, in BUILD/dist
	packaging/dist.py $(BUILD)/dist

deb: deps ## Debian packages, in BUILD/dist/deb
	@.ci/deps $(DEB_PACKAGES)
	packaging/build-deb $(BUILD)

arch: ## what makepkg needs, in BUILD/dist/arch
	packaging/build-arch $(BUILD)

rpm: deps ## RPMs of what is committed, into BUILD/rpm
	@.ci/deps $(RPM_PACKAGES)
	packaging/rpm/build $(BUILD)/rpm
container-rpm: ## the same in a Fedora container, where podman or docker is to be had
	packaging/rpm/container $(BUILD)/rpm-fedora

clean: ## remove the build directories
	rm -rf $(BUILD) $(BUILD)-clang $(BUILD)-coverage $(BUILD)-demo $(BUILD)-fuzz $(BUILD)-sanitize $(BUILD)-threads
