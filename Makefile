# make book   executes the chapters at quick scale on embedded data and renders the HTML into
#             _build/html
# make test   runs the tests in two processes; it builds the book first, which some of them open in
#             a browser, and which ran the chapters under seed 0: here they run under seed 1
# make seeds  runs the chapters under one more seed
# make device  runs the chapters on a pretend GPU
# make launch  runs the chapters with the packages of Colab and of Binder, in environments of their own
# make gpu  tests and times the kernels on an NVIDIA GPU
# make links  asks the addresses outside that the book points to
# make sync   brings each notebook in line with its text source
# make outputs  renews the stored outputs that the tests compare
# make repository URL=https://github.com/OWNER/NAME   sets the address behind the launch buttons
# make lock   resolves the exact versions in requirements.lock again

PYTHON ?= python3
BIN    := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export TQDM_DISABLE := 1   # progress bars belong on a terminal, not in a page

.PHONY: book test seeds device launch links gpu sync outputs repository lock clean

book: export MINIMAX_DATA =
book: .venv/ready
	$(BIN)/jupyter-book build . --warningiserror --keep-going --nitpick
	@echo "Open _build/html/index.html"

test: book
	MINIMAX_SEED=1 $(BIN)/python -m pytest --numprocesses 2

seeds: .venv/ready
	$(BIN)/python -m pytest --numprocesses 2 -m seeds tests/test_notebooks.py

device: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m device tests/test_device.py

launch: .venv/ready
	$(BIN)/python -m pytest -m launch --durations 0 tests/test_launch.py

gpu: .venv/ready
	$(BIN)/python benchmarks/gpu.py --out _build/gpu.md

links: .venv/ready
	$(BIN)/python -m pytest -m links tests/test_links.py

sync: .venv/ready
	$(BIN)/python book/_tools/sync.py

outputs: .venv/ready
	$(BIN)/python book/_tools/sync.py --execute

repository: .venv/ready
	$(BIN)/python book/_tools/repository.py "$(URL)"
	$(BIN)/python book/_tools/sync.py

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11 …')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

lock:
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --all-extras \
	  --custom-compile-command "make lock" --no-annotate --output-file requirements.lock pyproject.toml

clean:
	rm -rf _build .venv
