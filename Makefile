# SPDX-License-Identifier: BSD-3-Clause
# make demo   set up, then the main job on this machine's kernel (root)
# make test   set up, then every check and test (root)
# make test-kernels  the tests on Debian's kernels, in virtual machines: docs/kernels.md
# make bench  set up, then the measurements of docs/benchmarks.md (root)
# make bench-decisions  path managers compared over many conditions: docs/decisions.md (root)
# make dist   a source archive and a wheel under dist/
# make deb    a Debian package under build/deb
# make test-system  the service on a booted Debian (root): docs/reliability.md
# make docs, make coverage, make install, make uninstall: docs/development.md

CLANG  ?= clang
STRIP  ?= llvm-strip
VENV   := .venv
PYTHON := $(VENV)/bin/python
BPF_SOURCES := $(wildcard bpf/*.bpf.c)
BPF_OBJECTS := $(BPF_SOURCES:bpf/%.bpf.c=build/bpf/%.bpf.o)
BPF_ARCH := $(shell uname -m | sed 's/x86_64/x86/;s/aarch64/arm64/')
# The kernel headers proper: a bpf target has no machine, asm/types.h has.
BPF_INCLUDES := -idirafter /usr/include/$(shell $(CLANG) -print-multiarch)
# DEBUG=1 keeps the DWARF and the source lines for `llvm-objdump -S` and `bpftool prog
# dump`.  Optimisation stays: without it nothing is inlined and the verifier refuses.
DEBUG ?=
BPF_FINISH := $(if $(DEBUG),:,$(STRIP) -g)

# Where `make install` puts things; DESTDIR goes before all of them.
PREFIX  ?= /usr/local
UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
DESTDIR ?=
# BUNDLE=no: the distribution's own packages provide the dependencies; BUNDLE="NAME…": all but these.
BUNDLE  ?= yes
# BYTECODE=no: none is compiled.
BYTECODE ?= yes
HOME_DIR := $(PREFIX)/lib/mptcpd-ebpf
STAGED   := $(DESTDIR)$(HOME_DIR)
MAN_DIR  := $(PREFIX)/share/man
DOC_DIR  := $(PREFIX)/share/doc/mptcpd-ebpf
SHELLS   := bash zsh fish
COMPLETION_bash := $(PREFIX)/share/bash-completion/completions/mptcpd-ebpf
COMPLETION_zsh  := $(PREFIX)/share/zsh/vendor-completions/_mptcpd-ebpf
COMPLETION_fish := $(PREFIX)/share/fish/vendor_completions.d/mptcpd-ebpf.fish
# Debian's own Python: bcc's module exists only for it.
SYSTEM_PYTHON ?= /usr/bin/python3

.PHONY: setup demo test test-kernels test-system check bench bench-decisions bpf preload dist wheel deb docs coverage install uninstall clean

setup:
	@scripts/setup

demo: setup
	@$(VENV)/bin/mptcpd-ebpf demo $(ARGS)

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test: check
	$(PYTHON) -m pytest $(ARGS)

test-kernels: setup
	@$(PYTHON) -m tests.kernels $(ARGS)

# Boots a Debian with systemd and installs the package in it.
test-system: deb
	@scripts/system-tree
	$(PYTHON) -m pytest -m booted tests/booted $(ARGS)

bench: setup
	$(PYTHON) -m bench $(ARGS)

bench-decisions: setup
	$(PYTHON) -m bench decisions $(ARGS)

bpf: $(BPF_OBJECTS)

# Built anew when DEBUG changes.
build/bpf/.debug: $(if $(filter x$(DEBUG),x$(shell cat build/bpf/.debug 2>/dev/null)),,FORCE)
	@mkdir -p $(@D)
	@echo '$(DEBUG)' > $@
.PHONY: FORCE
FORCE:

# -g keeps the BTF that CO-RE and the record layouts are read from; the DWARF
# beside it is stripped.
build/bpf/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/*.h) build/bpf/.debug
	@mkdir -p $(@D)
	$(CLANG) -O2 -g -Wall -Werror -target bpf -mcpu=v3 -D__TARGET_ARCH_$(BPF_ARCH) -Ibpf $(BPF_INCLUDES) -c $< -o $@.tmp
	$(BPF_FINISH) $@.tmp
	mv $@.tmp $@

preload: build/preload/libmptcpd-ebpf-preload.so

build/preload/libmptcpd-ebpf-preload.so: preload/mptcp_preload.c
	@mkdir -p $(@D)
	$(CLANG) -O2 -fPIC -shared -fvisibility=hidden -Wall -Wextra -Werror -Wl,-z,relro,-z,now -s $< -o $@.tmp
	mv $@.tmp $@

# The wheel is built from the unpacked archive, which proves that the archive is whole.
dist: setup
	rm -rf dist
	$(PYTHON) -m build --no-isolation --outdir dist .

wheel: setup
	rm -rf build/wheel
	$(PYTHON) -m build --no-isolation --wheel --outdir build/wheel .

# The guides and commands by sphinx, the API by pdoc; a warning of either is an error.
docs: setup
	rm -rf build/docs
	$(PYTHON) -W error scripts/api_docs.py build/docs/site/api
	$(PYTHON) -m sphinx -q -W --keep-going -b html -d build/docs/doctrees docs build/docs/html
	$(PYTHON) scripts/check_docs.py build/docs/html
	@echo "docs: build/docs/html/index.html"

# The processes that tests start are counted, too.  ARGS narrows the tests.
coverage: setup
	rm -rf build/coverage htmlcov
	@mkdir -p build/coverage
	$(PYTHON) -m coverage run -m pytest $(ARGS); echo $$? > build/coverage/rc
	$(PYTHON) -m coverage combine -q
	$(PYTHON) -m coverage html -q
	$(PYTHON) -m coverage report --format=total
	@echo "coverage: htmlcov/index.html"
	@exit $$(cat build/coverage/rc)

# A venv of its own under lib, so that nothing meets the distribution's Python packages,
# and one link to it.  The paths inside are those of the host, without DESTDIR.  The
# dependencies come from the venv of `make setup`, so no network is asked.
install: wheel
	rm -rf "$(STAGED)"
	$(SYSTEM_PYTHON) -m venv --system-site-packages --without-pip "$(STAGED)"
	sed -i '/^command/d' "$(STAGED)/pyvenv.cfg"
ifneq ($(BUNDLE),no)
	$(PYTHON) scripts/vendor.py "$$(echo "$(STAGED)"/lib/python3*/site-packages)" \
		$(if $(filter yes,$(BUNDLE)),@requirements-install.lock,$(BUNDLE))
endif
	$(PIP) --no-index --no-deps --find-links build/wheel mptcpd-ebpf
	sed -i '1s|^#!.*|#!$(HOME_DIR)/bin/python -IP|' $$(grep -lI '^#!.*/bin/python' "$(STAGED)"/bin/*)
	rm -f "$(STAGED)"/bin/[Aa]ctivate*
ifneq ($(BYTECODE),no)
	"$(STAGED)/bin/python" -m compileall -q -s "$(DESTDIR)" "$(STAGED)/lib"
endif
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(DOC_DIR)"
	install -d "$(DESTDIR)$(MAN_DIR)/man8" "$(DESTDIR)$(MAN_DIR)/man5" "$(DESTDIR)$(SYSUSERSDIR)"
	install -d $(foreach shell,$(SHELLS),"$(DESTDIR)$(dir $(COMPLETION_$(shell)))")
	ln -sf ../lib/mptcpd-ebpf/bin/mptcpd-ebpf "$(DESTDIR)$(PREFIX)/bin/mptcpd-ebpf"
	sed 's|/usr/lib/mptcpd-ebpf/bin/python|$(HOME_DIR)/bin/python|' systemd/mptcpd-ebpf.service \
		> "$(DESTDIR)$(UNITDIR)/mptcpd-ebpf.service"
	chmod 644 "$(DESTDIR)$(UNITDIR)/mptcpd-ebpf.service"
	install -m 644 systemd/mptcpd-ebpf.sysusers "$(DESTDIR)$(SYSUSERSDIR)/mptcpd-ebpf.conf"
	install -m 644 docs/man/mptcpd-ebpf.8 "$(DESTDIR)$(MAN_DIR)/man8"
	install -m 644 docs/man/mptcpd-ebpf.yaml.5 "$(DESTDIR)$(MAN_DIR)/man5"
	install -m 644 LICENSE README.md CHANGELOG.md etc/mptcpd-ebpf.yaml docs/*.md "$(DESTDIR)$(DOC_DIR)"
	$(foreach shell,$(SHELLS),_MPTCPD_EBPF_COMPLETE=$(shell)_source $(VENV)/bin/mptcpd-ebpf \
		> "$(DESTDIR)$(COMPLETION_$(shell))" &&) true
ifneq ($(BUNDLE),yes)
	@$(PYTHON) scripts/missing.py "$(STAGED)/bin/python"
endif

PIP = $(PYTHON) -m pip --python "$(STAGED)/bin/python" install -q --disable-pip-version-check \
	--no-compile --root-user-action=ignore

# With the PREFIX, UNITDIR, SYSUSERSDIR and DESTDIR of the install.
uninstall:
	rm -rf "$(STAGED)" "$(DESTDIR)$(DOC_DIR)"
	rm -f "$(DESTDIR)$(PREFIX)/bin/mptcpd-ebpf" "$(DESTDIR)$(UNITDIR)/mptcpd-ebpf.service" \
		"$(DESTDIR)$(SYSUSERSDIR)/mptcpd-ebpf.conf" \
		"$(DESTDIR)$(MAN_DIR)/man8/mptcpd-ebpf.8" "$(DESTDIR)$(MAN_DIR)/man5/mptcpd-ebpf.yaml.5" \
		$(foreach shell,$(SHELLS),"$(DESTDIR)$(COMPLETION_$(shell))")

# dpkg-buildpackage writes beside the tree, so it gets a copy.
deb: setup
	@scripts/apt-install scripts/apt-packages-deb
	rm -rf build/deb
	mkdir -p build/deb/tree
	tar -c $(foreach path,.git .venv build dist htmlcov .*_cache .hypothesis,--exclude='./$(path)') \
		--exclude=__pycache__ . | tar -x -C build/deb/tree
	ln -s $(CURDIR)/$(VENV) build/deb/tree/$(VENV)
	cd build/deb/tree && dpkg-buildpackage -us -uc -b
	lintian --fail-on error,warning --tag-display-limit 0 --allow-root build/deb/*.deb
	@echo "deb: $$(ls build/deb/*.deb)"

clean:
	rm -rf build dist htmlcov .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
