# SPDX-License-Identifier: BSD-3-Clause
# make demo   set up, then the main job on this machine's kernel (root)
# make test   set up, then every check and test (root)
# make test-kernels  the tests on Debian's kernels, in virtual machines: docs/kernels.md
# make bench  set up, then the measurements of docs/benchmarks.md (root)
# make dist   a source archive and a wheel under dist/

CLANG  ?= clang
STRIP  ?= llvm-strip
VENV   := .venv
PYTHON := $(VENV)/bin/python
BPF_SOURCES := $(wildcard bpf/*.bpf.c)
BPF_OBJECTS := $(BPF_SOURCES:bpf/%.bpf.c=build/bpf/%.bpf.o)
BPF_ARCH := $(shell uname -m | sed 's/x86_64/x86/;s/aarch64/arm64/')
# The kernel headers proper: a bpf target has no machine, asm/types.h has.
BPF_INCLUDES := -idirafter /usr/include/$(shell $(CLANG) -print-multiarch)

.PHONY: setup demo test test-kernels check bench bpf preload dist clean

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

bench: setup
	$(PYTHON) -m bench $(ARGS)

bpf: $(BPF_OBJECTS)

# -g keeps the BTF that CO-RE and the record layouts are read from; the DWARF
# beside it is stripped.
build/bpf/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/*.h)
	@mkdir -p $(@D)
	$(CLANG) -O2 -g -Wall -Werror -target bpf -mcpu=v3 -D__TARGET_ARCH_$(BPF_ARCH) -Ibpf $(BPF_INCLUDES) -c $< -o $@.tmp
	$(STRIP) -g $@.tmp
	mv $@.tmp $@

preload: build/preload/libmptcpd-ebpf-preload.so

build/preload/libmptcpd-ebpf-preload.so: preload/mptcp_preload.c
	@mkdir -p $(@D)
	$(CLANG) -O2 -fPIC -shared -fvisibility=hidden -Wall -Wextra -Werror -Wl,-z,relro,-z,now -s $< -o $@.tmp
	mv $@.tmp $@

dist: setup
	rm -rf dist
	$(PYTHON) -m build --no-isolation --outdir dist .

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
