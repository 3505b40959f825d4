PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 3
INSTALLED := $(VENV)/.installed

.PHONY: demo test check docs bench gpu-check chaos clean

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into $(VENV): some minutes the first time, 3 GB and more with CUDA's libraries"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m jobs.demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)  # runs/docs/site
	$(BIN)/python -m jobs.docs.build_site

bench: $(INSTALLED)
	$(BIN)/python -m jobs.bench.decode

gpu-check:  # Where there is a GPU, with the Python that has its torch; installs nothing.
	$(PYTHON) -m jobs.bench.gpu

chaos: $(INSTALLED)
	$(BIN)/python tests/chaos.py

clean:
	rm -rf $(VENV) runs
