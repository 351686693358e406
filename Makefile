# Everything a person types. Each target builds the virtual environment it needs, from
# constraints.txt, and says how long it took.
PYTHON ?= python3.11
DEMO := .venv-demo
DEV := .venv
STORE ?= build/demo.db

.PHONY: demo test test-slow crash check kernel clean

demo: $(DEMO)/installed
	@start=$$(date +%s); mkdir -p build && $(DEMO)/bin/memstore demo $(STORE) && \
	echo "demo: $$(( $$(date +%s) - start )) s, and $$(cat $(DEMO)/installed) s to install"

test: $(DEV)/installed
	@start=$$(date +%s); $(DEV)/bin/python -m pytest && \
	echo "test: $$(( $$(date +%s) - start )) s, and $$(cat $(DEV)/installed) s to install"

test-slow: $(DEV)/installed
	$(DEV)/bin/python -m pytest -m slow

# The promises of docs/guarantees.md, tried at length; their figures go to build/crash.
crash: $(DEV)/installed
	$(DEV)/bin/python -m pytest tests/crash -m crash

check: $(DEV)/installed
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy
	$(DEV)/bin/python -m pytest -q tests/test_house.py

# After a change to memstore/index/kernel.c; installing the package does the same.
kernel: $(DEV)/installed
	MEMSTORE_BUILD_KERNEL=1 $(DEV)/bin/python -m pip install -q --no-deps -e .

# Without torch: what a person gets who only stores and asks.
$(DEMO)/installed: pyproject.toml constraints.txt
	@start=$$(date +%s); $(PYTHON) -m venv --clear $(DEMO) && \
	$(DEMO)/bin/python -m pip install -q -c constraints.txt -e . && \
	echo $$(( $$(date +%s) - start )) > $@

# torch first and alone: left to a range, pip may take gigabytes of CUDA.
$(DEV)/installed: pyproject.toml constraints.txt
	@start=$$(date +%s); $(PYTHON) -m venv --clear $(DEV) && \
	$(DEV)/bin/python -m pip install -q torch==2.13.0 && \
	$(DEV)/bin/python -m pip install -q -c constraints.txt -e '.[dev]' && \
	echo $$(( $$(date +%s) - start )) > $@

clean:
	rm -rf $(DEMO) $(DEV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
