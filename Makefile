# The commands of this project. `make` alone lists them.

# Compiled by `make test` where cargo has no `deny` yet.
DENY_VERSION := 0.20.2
# What touches a repository, and so runs a second time with the repositories in S3.
ON_S3 := archive:: backup:: fixture:: incremental:: recovery:: restore_write::real retention::command retention::server verify::program drill::passes
# What has these names and isn't meant: faults of S3, which run with it anyway, and of servers, disks and processes, which are about other things.
NOT_ON_S3 := --skip s3:: --skip server_faults:: --skip power:: --skip full:: --skip steps::
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release

# What goes wrong, and how: clocks, servers, disks and storage that fail, processes that are killed at each step, schedules by seed.
FAULTS := clocks:: durability:: faults:: full:: life:: power:: protocol:: restore_write::real retention::crash s3::faults server_faults:: steps:: stream::rounds

.PHONY: help demo test check faults bench bench-quick bench-growth bench-chain bench-wal mutants fuzz build install-demo install-test install-bench

help:
	@echo "make demo    install what is missing, build, and show the whole story on a throwaway cluster"
	@echo "make test    install what is missing, and run every check and test"
	@echo "make faults  the tests of faults alone and longer: SCHEDULES=10000 ROUNDS=50, and S3=all for the whole matrices of S3 and of servers"
	@echo "make check   format, lints and the quick tests, without any server"
	@echo "make bench   backups, restores, verification, archiving and catalogs beside pgBackRest: SCALE=1 is 3 GB"
	@echo "make bench-quick   the same with a tenth, once"
	@echo "make bench-growth  how costs grow with the cluster and the catalog, as a plot: WRITE=growth.svg"
	@echo "make bench-chain   scattered changes, a chain of 30 incremental backups, memory on S3"
	@echo "make bench-wal  archiving, recovery from the archive and the stream, beside pgBackRest and cp"
	@echo "make mutants  takes the defences out of the code, one at a time, and sees that tests fail: WORDS=\"lease 18\", or ALL=60 for every change"
	@echo "make fuzz    what reads untrusted bytes, each target for SECONDS=60, or only TARGETS=\"wal tar\"; KEEP=1 keeps the corpus"
	@echo "make build   the release binary, target/release/pgkeep"

install-demo:
	@tools/install.sh demo

install-test:
	@tools/install.sh test

install-bench:
	@tools/install.sh bench

build:
	cargo build --release --locked

demo: install-demo build
	@$(RELEASE)/pgkeep demo

test: install-test
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --no-deps --document-private-items
	@tools/deny.sh $(DENY_VERSION)
	cargo test --locked
	PGKEEP_TEST_REPOSITORY=s3 PGKEEP_TEST_POSTGRES=17 cargo test --locked --test integration -- $(ON_S3) $(NOT_ON_S3)

check:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo test --locked --lib
	cargo test --locked --test integration -- house:: storage::

faults: install-test
	PGKEEP_TEST_SCHEDULES=$(or $(SCHEDULES),10000) PGKEEP_TEST_ROUNDS=$(or $(ROUNDS),50) $(if $(S3),PGKEEP_TEST_FAULTS=$(S3)) \
		cargo test --locked --test integration -- --nocapture $(FAULTS)

bench: install-bench build
	@PGKEEP_BENCH_SCALE=$(or $(SCALE),1) PGKEEP_BENCH_ROUNDS=$(or $(ROUNDS),3) PGKEEP_BENCH_WRITE=$(WRITE) \
		/usr/bin/python3 tools/bench $(RELEASE)/pgkeep

bench-quick: install-bench build
	@PGKEEP_BENCH_SCALE=$(or $(SCALE),0.1) PGKEEP_BENCH_ROUNDS=1 PGKEEP_BENCH_WRITE=$(WRITE) \
		/usr/bin/python3 tools/bench $(RELEASE)/pgkeep

bench-growth: install-bench build
	@PGKEEP_BENCH_SCALE=$(or $(SCALE),0.5) /usr/bin/python3 tools/bench $(RELEASE)/pgkeep $(or $(WRITE),growth.svg)

bench-chain: install-bench build
	@tools/bench-chain.sh $(RELEASE)/pgkeep
	PGKEEP_TEST_PROGRAM=$(RELEASE)/pgkeep cargo test --quiet --locked --test integration -- --nocapture s3::memory

bench-wal: install-bench build
	@tools/bench-wal.sh $(RELEASE)/pgkeep

mutants: install-test
	@/usr/bin/python3 tools/mutants $(if $(ALL),--all $(ALL)) $(WORDS)

fuzz:
	@tools/fuzz.sh $(or $(SECONDS),60) $(TARGETS)
