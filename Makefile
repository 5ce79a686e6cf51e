# make setup | reproduce | test-fast | test | verify | benchmark: each starts from Python, git and make alone, and reuses .venv afterwards
PYTHON ?= python3
STORE  ?= store/reproduce
BIN    := .venv/bin

.PHONY: setup reproduce test test-fast slow verify benchmark benchmark-training benchmark-gpu benchmark-scale check clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# the tools that tests and benchmarks compare with; their own wishes would replace the pinned torch
.venv/peers: .venv/installed tests/peers.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/peers.txt
	touch $@

# trains what its own store lacks, then prints the verdicts and draws the figures below that store
reproduce: setup
	$(BIN)/python -m experiments run keskar2017 --scale quick --store $(STORE)
	$(BIN)/python -m analysis report keskar2017 --scale quick --store $(STORE)

check: setup
	$(BIN)/ruff check .
	$(BIN)/pyright

# as many processes as cores, four at most, one thread each; who is done takes over from the others
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: check .venv/peers
	$(PYTEST)

# without the tests of tests/slow.txt: at most two minutes on two cores
test-fast: setup
	$(PYTEST) -m 'not verify and not slow'

# which tests are slow, measured anew; on a quiet machine
slow: .venv/peers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --write-slow

# everything: the tests, the quick studies from an empty store, and their comparison with what is published
verify: test
	$(BIN)/python -m pytest -m verify

# time to equal accuracy against the peers, on one thread: minutes, and the machine should be quiet
benchmark: .venv/peers
	$(BIN)/python tests/benchmarks/bench_curvature.py

# Lightning, Hugging Face Trainer and skorch, in an environment of their own
build/harnesses/installed: tests/benchmarks/harnesses.txt constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r tests/benchmarks/harnesses.txt
	touch $@

# training against a bare loop, those harnesses and a DataLoader, on one thread: half an hour on a quiet machine
benchmark-training: setup build/harnesses/installed
	$(BIN)/python tests/benchmarks/bench_training.py
	$(BIN)/python tests/benchmarks/table.py

# one GPU: fused seeds, share of peak, determinism, a sweep; also runs uninstalled, see the script
benchmark-gpu: setup
	$(BIN)/python tests/benchmarks/bench_gpu.py

# planning, histories and scheduling of 168,160 runs: five minutes and 10 GB of disk
benchmark-scale: setup
	$(BIN)/python tests/benchmarks/bench_scale.py
	$(BIN)/python tests/benchmarks/table.py

# never a store: hours of training lie there
clean:
	rm -rf .venv build
	@for runs in "$(STORE)" "$${BATCHLAB_STORE:-store}"; do \
		test ! -d "$$runs/runs" || echo "kept: the runs in $$runs; delete that folder by hand if nobody needs them"; \
	done
