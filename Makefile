# make demo    see it work: the table of attention.py, small models trained on real bytes, what larger ones write and draw
# make paper SCALE=laptop    the paper made again: runs/paper/laptop/report.html; laptop: two cores, twenty minutes; card: one
#                  GPU, two hours; full: the paper's own configurations, for who has the cards and the data
# make test    the test suite, some twenty minutes on two cores
# make test-all    the same, and the tests that take minutes each
# make lint    format, lint and types
# make pictures    docs/patterns.png, and benchmarks/results/*.png from the numbers beside them
# make fuzz    thousands of damaged plans against the C++ kernels under sanitizers, and of damaged files
# make docs    the pages of docs/ as a site, in build/docs
# make gpu-test    the suite, compute-sanitizer and the table of attention.py, on a machine with a GPU; its report to
#                  send: runs/gpu-test/report.txt
# make wheels  a wheel that needs no compiler, for the TensorFlow of .venv, in build/wheels; takes long
# make compile-all    every GPU kernel for every architecture; needs no GPU, takes long
# Each makes .venv when needed, and installs again only when setup.py or pyproject.toml changed.

PYTHON ?= python3
RUN := .venv/bin/python
CPP = $(shell find blocksparse -name '*.h' -o -name '*.cc' -o -name '*.cu')
export TF_CPP_MIN_LOG_LEVEL ?= 3
# Where it is set, every process compiles TensorFlow's modules again: 6 s each.
unexport PYTHONDONTWRITEBYTECODE

# The Pythons that TensorFlow 2.21 has wheels for; setup.py takes one more, which 2.22 brings. A .venv of another, or of
# another than the PYTHON= given here, is made anew: before any rule looks, as make would not see its files go.
VERSION := import sys; (3, 10) <= sys.version_info[:2] < (3, 14) or sys.exit(1); print(*sys.version_info[:2])
ifneq ($(wildcard .venv/bin/python),)
HAVE := $(shell $(RUN) -c '$(VERSION)')
ifneq ($(origin PYTHON),file)
WANT := $(shell $(PYTHON) -c '$(VERSION)')
endif
ifneq ($(HAVE),$(or $(WANT),$(HAVE),none))
STALE := $(shell rm -rf .venv)
endif
endif

.PHONY: demo paper test test-all pictures fuzz gpu-test lint format types wheels compile-all clean docs

demo: .venv/examples.installed
	$(RUN) attention.py
	$(RUN) examples/enwik8.py
	rm -rf runs/demo
	$(RUN) examples/train.py enwik8_small --steps 200 --out runs/demo
	$(RUN) examples/complete.py text --count 2
	$(RUN) examples/complete.py image --count 12 --out runs/demo/images.png
	@echo "runs/demo is a model as the paper starts it, and cannot learn words in a minute: benchmarks/LOG.md, section 19."
	@echo "Both models are in examples/pretrained, trained in minutes on one GPU; card.json there has the commands."

SCALE ?= laptop
paper: .venv/examples.installed
ifneq ($(SCALE),full)
	$(RUN) examples/fetch.py gcide --out data/gcide
	$(RUN) examples/fetch.py fashion --out data/fashion
endif
	$(RUN) examples/paper.py $(SCALE)

test: .venv/test.installed
	$(RUN) -m pytest -c tests/pytest.ini tests -m "not thorough" -n 2 --dist worksteal --durations 40

test-all: .venv/test.installed
	$(RUN) -m pytest -c tests/pytest.ini tests -n 2 --dist worksteal --durations 40

pictures: .venv/examples.installed
	$(RUN) examples/plot.py modes --out docs/patterns.png
	$(RUN) benchmarks/pictures.py

fuzz: .venv/test.installed
	$(RUN) tests/cpu/plan_fuzz.py --count 5000
	$(RUN) tests/cpu/plan_fuzz.py --count 60000 --own --seed 1
	$(RUN) tests/model/fuzz_files.py 6000

gpu-test: .venv/gpu.installed .venv/test.installed
	$(RUN) tests/gpu/run_on_gpu.py --logs runs/gpu-test

# The site has the repository's own folders, so that a link that works on one works on the other; what documents
# functions finds the two packages in build/packages, without importing them.
docs: .venv/docs.installed
	rm -rf build/pages build/packages
	mkdir -p build/pages build/packages/sparse_attention
	ln -s $(addprefix ../../,$(wildcard *.md) LICENSE docs examples benchmarks) build/pages
	cp -r *.py layers build/packages/sparse_attention
	ln -s ../../blocksparse build/packages
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict

lint: types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	.venv/bin/clang-format --dry-run --Werror $(CPP)

format: .venv/test.installed
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .
	.venv/bin/clang-format -i $(CPP)

types: .venv/test.installed
	mkdir -p build/types
	ln -sfn ../.. build/types/sparse_attention
	$(RUN) -m mypy

wheels: .venv/test.installed
	$(RUN) .ci/wheels.py build/wheels

compile-all: .venv/test.installed
	$(RUN) tests/gpu/compile_cases.py --all

.venv/%.installed: setup.py pyproject.toml | .venv/bin/python
	$(RUN) -m pip install --no-compile --editable '.[$*]'
	touch $@

.venv/bin/python:
	@$(PYTHON) -c '$(VERSION)' > /dev/null || { echo "$(PYTHON) is $$($(PYTHON) --version), but TensorFlow needs Python 3.10 to \
	3.13: name one that is installed, as in make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

clean:
	rm -rf .venv build dist *.egg-info
