# pg-sse-gateway: `make help` lists what there is.
#
# CC, CFLAGS, LDFLAGS, PREFIX, SYSCONFDIR, UNITDIR and DESTDIR belong to whoever builds.
# V=1 shows the commands, WERROR=1 makes warnings errors, SAN=address,undefined or
# SAN=thread builds with sanitizers, in a folder of its own.

VERSION := 0.1.0

# The rooms, bottom floor first: a room includes only what stands before it here (`make
# lint` sees to it). A new room is one word.
MODULES := \
    base err log clock thread buf stats \
    mailbox poller event delivery json sse keyset tally ring channels filter wheel roster \
    units secret inifile setting config sockets service \
    dsn database schema array retry sqlfile migrate bell relay intake listener batch queue publisher \
    readers lookup question replay retention \
    statement claim returns errand waits dealer groups \
    connection porch lobby stream catchup consumer fanout tour daemons shard \
    cloudevents problem form request page exchange common query opening consume jobs confirm \
    events slowest http \
    healthcheck serve main

# Rooms that are a header only.
HEADERS_ONLY := base common

PKGS := libpq libmicrohttpd jansson libsystemd inih

ifeq ($(origin CC),default)
CC := gcc
endif
CFLAGS ?= -O2 -g
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
UNITDIR ?= $(PREFIX)/lib/systemd/system
DATADIR := $(PREFIX)/share/pg-sse-gateway
MANDIR := $(PREFIX)/share/man
FUZZ_SECONDS ?= 20

BUILD := build$(if $(SAN),/$(if $(findstring thread,$(SAN)),tsan,asan))
PROGRAM := $(BUILD)/pg-sse-gateway

WARN := -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wcast-qual -Wvla -Wundef \
        -Wformat=2 -Wwrite-strings -Wpointer-arith -Wstrict-prototypes \
        -Wmissing-prototypes -Wswitch-enum

# pkg-config is asked when the first file is compiled, not before: `make help` and `make
# run` have to work where it is not installed yet.
ask_pkg_config = $(or $(shell pkg-config $(1) $(2) 2>/dev/null),$(error pkg-config does \
    not know all of: $(2). `make deps` installs what is needed))
PKG_CFLAGS = $(eval PKG_CFLAGS := $$(filter-out -l%,$$(call ask_pkg_config,--cflags \
    --libs-only-l,$(PKGS))))$(PKG_CFLAGS)
PKG_LIBS = $(eval PKG_LIBS := $$(call ask_pkg_config,--libs,$(PKGS)))$(PKG_LIBS)
CMOCKA_LIBS = $(call ask_pkg_config,--libs,cmocka)

SANITIZE := $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer)
COMPILE = $(CC) $(CFLAGS) -std=gnu11 -D_GNU_SOURCE -pthread -MMD -MP -fno-common $(WARN) \
        $(if $(WERROR),-Werror) $(SANITIZE) $(DEFINES)
LINK = $(CC) $(CFLAGS) -pthread $(SANITIZE) $(LDFLAGS)
DEFINES := -DPGSSE_VERSION='"$(VERSION)"' -DPGSSE_DATADIR='"$(DATADIR)"' \
        -DPGSSE_SYSCONFDIR='"$(SYSCONFDIR)"'

OBJECTS := $(patsubst %,$(BUILD)/%.o,$(filter-out $(HEADERS_ONLY),$(MODULES)))
ROOMS := $(filter-out $(BUILD)/main.o,$(OBJECTS))
# The longest first, so that none of them is begun last.
UNITS := $(patsubst tests/unit/%.c,$(BUILD)/unit/%,$(shell ls -S tests/unit/test_*.c))
FUZZERS := $(patsubst tests/fuzz/%.c,$(BUILD)/%,$(wildcard tests/fuzz/fuzz_*.c))
C_FILES = $(wildcard gateway/*.[ch] tests/*/*.[ch])

# A file of tests/bench with a header is a part that the programs beside it share.
BENCH_PARTS := $(patsubst tests/bench/%.h,$(BUILD)/bench/%.o,$(wildcard tests/bench/*.h))
BENCH_LIBRARIES := $(patsubst tests/bench/%.c,$(BUILD)/bench/%.so, \
    $(wildcard tests/bench/slow_fsync.c))
FAULT_LIBRARIES := $(patsubst tests/faults/%.c,$(BUILD)/faults/%.so, \
    $(wildcard tests/faults/*.c))
BENCHES := $(filter-out $(BENCH_PARTS:.o=) $(BENCH_LIBRARIES:.so=), \
    $(patsubst tests/bench/%.c,$(BUILD)/bench/%,$(wildcard tests/bench/*.c)))

PYTHON := /usr/bin/python3
# Most of the time a test waits: two workers for each CPU.
PYTEST_FLAGS ?= -n $(shell expr 2 \* $$(nproc))

# What a sanitizer finds ends a unit test with status 77 and is written to a file in
# $(REPORTS); the fixtures of the black-box tests have the gateway write beside its log and
# look there. Sanitized programs are slow: the tests' deadlines are stretched.
REPORTS := $(abspath $(BUILD))/reports
TSAN := suppressions=$(abspath tests/tsan.supp):second_deadlock_stack=1
UNIT_ENV := ASAN_OPTIONS=exitcode=77:detect_leaks=1:log_path=$(REPORTS)/asan \
        UBSAN_OPTIONS=halt_on_error=1:exitcode=77:print_stacktrace=1:log_path=$(REPORTS)/ubsan \
        TSAN_OPTIONS=halt_on_error=1:exitcode=77:$(TSAN):log_path=$(REPORTS)/tsan
PYTEST_ENV := PGSSE_BINARY=$(abspath $(PROGRAM)) PYTHONDONTWRITEBYTECODE=1 \
        UBSAN_OPTIONS=halt_on_error=1 TSAN_OPTIONS=$(TSAN) \
        PGSSE_TEST_SLOWNESS=$(if $(SAN),$(if $(findstring thread,$(SAN)),4,3),1)

ifeq ($(V),1)
Q :=
say = @:
else
Q := @
say = @printf '  %-5s %s\n'
endif

# For the targets that build and then do something: on all cores, unless -j says otherwise.
BUILD_ALL = $(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.PHONY: all run run-clean clean help deps unit test again asan tsan check-clients check-faults \
        bench fuzz format lint install uninstall units unit-objects fuzzers benches FORCE

all: $(PROGRAM) ## build build/pg-sse-gateway

run: ## build and run with a private PostgreSQL, or with DATABASE_URL; installs what is missing
	@gateway/scripts/install-packages build run
	@+$(BUILD_ALL) all
	@exec env PGSSE_BINARY=$(PROGRAM) gateway/scripts/run

run-clean: ## forget the data of `make run`
	@gateway/scripts/private-postgres remove build/postgres
	@rm -f build/postgres.dsn

clean: ## remove what was built (the data of `make run` stays)
	$(Q)[ ! -d build ] || find build -mindepth 1 -maxdepth 1 ! -name 'postgres*' \
	    -exec rm -rf {} +

help: ## this list
	@echo 'pg-sse-gateway $(VERSION)'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22
	@echo 'Variables: V=1 WERROR=1 SAN=address,undefined SAN=thread CC CFLAGS LDFLAGS'
	@echo '           PREFIX=$(PREFIX) SYSCONFDIR=$(SYSCONFDIR) DESTDIR UNITDIR FUZZ_SECONDS'

deps: ## install the Debian packages for building, running, testing and checking
	@gateway/scripts/install-packages build run test lint

unit: ## C unit tests (cmocka), with a PostgreSQL of their own
	@gateway/scripts/install-packages build run test
	@+$(BUILD_ALL) units
	@$(UNIT_ENV) tests/unit/run $(BUILD) $(UNITS)

test: ## all tests: unit and black-box (pytest); installs what they need
	@gateway/scripts/install-packages build run test
	@+$(BUILD_ALL) all units benches
	@rm -rf $(BUILD)/results $(BUILD)/results-first
	@mkdir -p $(BUILD)/results
	@status=0; \
	$(UNIT_ENV) tests/unit/run $(BUILD) $(UNITS) || status=1; \
	$(PYTEST_ENV) $(PYTHON) -m pytest tests $(PYTEST_FLAGS) \
	    --junitxml=$(BUILD)/results/pytest.xml || status=1; \
	printf 'unit tests: '; cat $(BUILD)/results/unit.txt $(BUILD)/results/unit-failed.txt; \
	exit $$status

again: ## run once more, by itself, what failed in the last `make test`
	@$(UNIT_ENV) $(PYTEST_ENV) $(PYTHON) -B tests/again.py $(BUILD)

asan: ## all of `test` under the address and undefined-behaviour sanitizers
	@+$(MAKE) --no-print-directory SAN=address,undefined test

tsan: ## all of `test` under the thread sanitizer
	@+$(MAKE) --no-print-directory SAN=thread test

check-clients: ## browsers, curl and npm clients, each cut off in the middle of bursts
	@gateway/scripts/install-packages build run test clients
	@+$(BUILD_ALL) all
	@$(PYTEST_ENV) PYTHONPATH=tests $(PYTHON) -m clients

# FAULTS='name name' chooses, FAULTS=list says what there is; tests/faults/__main__.py knows
# the other variables. Faults that need root are left out, and said so, without it.
check-faults: ## is anything lost? FAULT_EVENTS (a million) events under every fault in turn
	@gateway/scripts/install-packages build run faults
	@+$(BUILD_ALL) all $(FAULT_LIBRARIES)
	@cd tests && env $(PYTEST_ENV) $(PYTHON) -B -m faults --result $(abspath $(BUILD))/faults.json

# BENCH_ROWS='name name' chooses, BENCH_ROWS=list says what there is, also what is measured only
# where it is named; BENCH_ROUNDS and BENCH_SECONDS make it shorter or longer, BENCH_CHURN_SECONDS=3600 with BENCH_ROWS=churn is the
# hour of churn. tests/bench/__main__.py knows the other variables.
bench: ## how fast? beside a bare server, nginx with Nchan, and Node.js, with a table at the end
	@gateway/scripts/install-packages build run bench
	@+$(BUILD_ALL) all benches
	@cd tests && env $(PYTEST_ENV) $(PYTHON) -B -m bench --result $(abspath $(BUILD))/bench.json

fuzz: ## run every fuzz target for FUZZ_SECONDS (20)
	@gateway/scripts/install-packages build lint
	@+$(BUILD_ALL) CC=clang BUILD=build/fuzz \
	    SAN=fuzzer-no-link,address,undefined fuzzers

format: ## rewrite the C files in the house style
	$(Q)clang-format -i $(C_FILES)

lint: ## check format, module order, banned calls, cppcheck, gcc and clang warnings, documents
	@gateway/scripts/install-packages build lint
	@tests/lint/run $(MODULES)

# -- building --

quoted = '$(subst ','\'',$(1))'

# Rewritten when the compiler or a flag is another than last time: all is built anew then.
$(BUILD)/flags: FORCE
	@mkdir -p $(BUILD)/unit $(BUILD)/bench $(BUILD)/faults
	@echo $(call quoted,$(COMPILE) $(LINK)) | cmp -s - $@ || \
	    echo $(call quoted,$(COMPILE) $(LINK)) > $@

$(BUILD)/%.o: gateway/%.c $(BUILD)/flags
	$(say) CC $<
	$(Q)$(COMPILE) $(PKG_CFLAGS) -c -o $@ $<

$(PROGRAM): $(OBJECTS)
	$(say) LINK $@
	$(Q)$(LINK) -o $@ $(OBJECTS) $(PKG_LIBS)

# -- tests --

units: $(UNITS)
	@:

unit-objects: $(UNITS:=.o)

$(BUILD)/unit/%.o: tests/unit/%.c $(BUILD)/flags
	$(say) CC $<
	$(Q)$(COMPILE) $(PKG_CFLAGS) -Igateway -Itests/unit -c -o $@ $<

# malloc and its kin go through failing_malloc.c, which lets a test make them fail.
$(BUILD)/unit/test_%: $(BUILD)/unit/test_%.o $(BUILD)/unit/failing_malloc.o $(ROOMS)
	$(say) LINK $@
	$(Q)$(LINK) -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc \
	    -o $@ $^ $(CMOCKA_LIBS) $(PKG_LIBS)

$(BUILD)/fuzz_%: tests/fuzz/fuzz_%.c $(ROOMS) $(BUILD)/flags
	$(say) FUZZ $@
	$(Q)$(COMPILE) $(PKG_CFLAGS) -Igateway -fsanitize=fuzzer \
	    -o $@ $< $(ROOMS) $(LDFLAGS) $(PKG_LIBS)

fuzzers: $(FUZZERS)
	@tests/fuzz/run $(FUZZ_SECONDS) $(FUZZERS)

benches: $(BENCHES) $(BENCH_LIBRARIES)
	@:

$(BUILD)/bench/%.o: tests/bench/%.c $(BUILD)/flags
	$(say) CC $<
	$(Q)$(COMPILE) $(PKG_CFLAGS) -Igateway -c -o $@ $<

$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BENCH_PARTS) $(ROOMS)
	$(say) LINK $@
	$(Q)$(LINK) -o $@ $^ $(PKG_LIBS)

$(BUILD)/%.so: tests/%.c $(BUILD)/flags
	$(say) LINK $@
	$(Q)$(COMPILE) -fPIC -shared -o $@ $< -ldl

.SECONDARY: $(UNITS:=.o) $(BUILD)/unit/failing_malloc.o $(BENCHES:=.o) $(BENCH_PARTS)

-include $(wildcard $(BUILD)/*.d $(BUILD)/unit/*.d $(BUILD)/bench/*.d)

# -- installing --

# The files in the repository name the default places; an installed copy names its own.
relocate = sed -e 's|/usr/local/bin|$(PREFIX)/bin|g' \
        -e 's|/usr/local/share/pg-sse-gateway|$(DATADIR)|g' \
        -e 's|/etc/pg-sse-gateway|$(SYSCONFDIR)/pg-sse-gateway|g'

INI := $(DESTDIR)$(SYSCONFDIR)/pg-sse-gateway/gateway.ini
MAN := $(DESTDIR)$(MANDIR)/man8/pg-sse-gateway.8

install: all ## install under PREFIX (/usr/local), below DESTDIR
	$(Q)install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(DATADIR)/static \
	    $(DESTDIR)$(DATADIR)/migrations $(DESTDIR)$(UNITDIR) $(dir $(INI)) $(dir $(MAN))
	$(Q)install -m 755 $(PROGRAM) $(DESTDIR)$(PREFIX)/bin/pg-sse-gateway
	$(Q)install -m 644 static/* $(DESTDIR)$(DATADIR)/static
	$(Q)install -m 644 migrations/*.sql $(DESTDIR)$(DATADIR)/migrations
	$(Q)for unit in gateway/systemd/pg-sse-gateway.*; do \
	    $(relocate) "$$unit" > "$(DESTDIR)$(UNITDIR)/$${unit##*/}" || exit 1; \
	    chmod 644 "$(DESTDIR)$(UNITDIR)/$${unit##*/}"; done
	$(Q)$(relocate) gateway/man/pg-sse-gateway.8 > $(MAN) && chmod 644 $(MAN)
	$(Q)if [ ! -e $(INI) ]; then install -m 644 gateway.ini $(INI); \
	elif ! cmp -s gateway.ini $(INI); then install -m 644 gateway.ini $(INI).new; \
	    echo '$(INI) is kept; the new one stands beside it as gateway.ini.new'; fi
	@echo 'installed under $(DESTDIR)$(PREFIX); settings in $(INI)'

uninstall: ## remove what `make install` installed; gateway.ini stays
	$(Q)rm -f $(DESTDIR)$(PREFIX)/bin/pg-sse-gateway $(MAN) \
	    $(DESTDIR)$(UNITDIR)/pg-sse-gateway.service \
	    $(DESTDIR)$(UNITDIR)/pg-sse-gateway.socket
	$(Q)rm -rf $(DESTDIR)$(DATADIR)
	@echo 'removed; $(dir $(INI)) was left as it is'
