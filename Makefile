# make book   executes the chapters at quick scale and renders the HTML into _build/html
# make test   runs every test, in two processes (it builds the book first, for the tests that open
#             it in a browser)
# make sync   brings each notebook in line with its text source
# make outputs  renews the stored outputs that the tests compare
# make repository URL=https://github.com/OWNER/NAME   sets the address behind the launch buttons
# make lock   resolves the exact versions in requirements.lock again

PYTHON ?= python3
BIN    := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export TQDM_DISABLE := 1   # progress bars belong on a terminal, not in a page

.PHONY: book test sync outputs repository lock clean

book: .venv/ready
	$(BIN)/jupyter-book build . --warningiserror --keep-going --nitpick
	@echo "Open _build/html/index.html"

test: book
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

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
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --extra book --extra test \
	  --custom-compile-command "make lock" --no-annotate --output-file requirements.lock pyproject.toml

clean:
	rm -rf _build .venv
