# Every target sets up what it needs: a wheel of the sources as they are, and a virtual environment in .venv/
# that it is installed in. Only `make dev` and `make try` build into the source tree, and run what is there.
#
#   PYTHON=python3.12 make test      another interpreter (start with make clean)
#   FASTOPT_OPENMP=0 make test       a build without OpenMP
#   make demo ARGS="--help"          arguments for fastopt demo; for test and bench they go to pytest

PYTHON ?= python3
ARGS ?=
COMPILERS ?= gcc $(notdir $(lastword clang $(sort $(wildcard /usr/bin/clang /usr/bin/clang-[0-9][0-9])))) aarch64
STRICT := -std=c11 -Wall -Wextra -Werror -fsyntax-only

PIP := -m pip --disable-pip-version-check -qq
HEADERS = $(shell .venv/test/bin/python -c "import numpy, sysconfig; \
    print('-isystem', sysconfig.get_path('include'), '-isystem', numpy.get_include())")
CONTENTS = { cksum $(SOURCES); echo "$$FASTOPT_OPENMP $$FASTOPT_BUILD_LEVELS $$CC $$CFLAGS $$LDFLAGS"; } | cksum
SOURCES := setup.py pyproject.toml MANIFEST.in LICENSE README.md \
    $(shell find fastopt src_c -type f -not -name '*.so' -not -path '*/__pycache__/*')

.PHONY: help demo compare dev try stubs test docs test-peers test-torch test-frameworks test-clients fuzz torture sanitize mutants \
    coverage audit bench steady report lint wheel clean
.DELETE_ON_ERROR:

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/demo/ready  ## train on the handwritten digits with every optimizer in turn
	.venv/demo/bin/fastopt demo $(ARGS)

compare: .venv/demo/ready  ## optimizers side by side: pictures, findings, one page in fastopt-compare/
	.venv/demo/bin/fastopt compare $(ARGS)

dev: .venv/dev/installed  ## an environment to work in, .venv/dev: the level of this CPU built into the source tree
	$(IN_PLACE)

try: dev  ## build what changed into the source tree, and test that (ARGS="-k AdaBelief"); no wheel
	cd tests && $(NATIVE) ../.venv/dev/bin/pytest -q --ignore=peers --ignore=pytorch --ignore=frameworks --ignore=clients \
	    $(or $(ARGS),-n 2 --dist loadgroup)

stubs: dev  ## write fastopt/functional.pyi from the classes
	.venv/dev/bin/python tools/write_stubs.py

test: .venv/test/ready  ## the test suite, without the comparison with other libraries
	cd tests && ../.venv/test/bin/pytest -q -n 2 --dist loadgroup . --ignore=peers --ignore=pytorch \
	    --ignore=frameworks --ignore=clients $(ARGS)

test-peers: .venv/peers/ready  ## compare with torch, keras, optax and the other peers (a large download)
	cd tests && ../.venv/peers/bin/pytest -q peers test_arrays.py test_foreign.py test_state_dict.py $(ARGS)

test-torch: .venv/peers/ready  ## fastopt.torch: parity, tensors, distributed engines, the examples (the same download)
	cd tests && ../.venv/peers/bin/pytest -q pytorch proof/test_processes.py proof/test_surface.py $(ARGS)
	cd tests && ../.venv/peers/bin/pytest -q frameworks -k "accelerate or skorch or page"

test-frameworks: .venv/frameworks/ready  ## train in each framework of docs/frameworks.md (a large download)
	cd tests && ../.venv/frameworks/bin/pytest -q -n 2 --dist loadgroup frameworks $(ARGS)

CLIENTS ?= clients
test-clients: .venv/$(CLIENTS)/ready  ## the adapters: their tests and those of thinc, scikit-learn, SciPy, Keras (a download)
	cd tests && ../.venv/$(CLIENTS)/bin/pytest -q -n 2 --dist loadgroup clients $(ARGS)

fuzz: .venv/test/ready  ## 100,000 bad calls and 100,000 damaged checkpoints: refused, and nothing changed
	cd tests && ../.venv/test/bin/pytest -q --long proof/test_bad_calls.py proof/test_damaged_files.py $(ARGS)

torture: .venv/proof/ready  ## all other proofs at full length, and the builds of other compilers
	cd tests && ../.venv/proof/bin/pytest -q --long test_bits.py proof --ignore=proof/test_bad_calls.py \
	    --ignore=proof/test_damaged_files.py $(ARGS)
	.venv/proof/bin/python tests/proof/compilers.py $(COMPILERS)

sanitize: .venv/proof/ready  ## under AddressSanitizer, UBSan, Valgrind and ThreadSanitizer (Linux on x86-64)
	.venv/proof/bin/python tests/sanitize/run.py $(ARGS)

mutants: .venv/mutants/ready  ## break the library in one place at a time: the tests have to notice (a large download)
	.venv/mutants/bin/python tests/proof/mutants.py $(ARGS)

coverage: .venv/proof/ready  ## which lines and branches the tests reach
	PYTHON=.venv/proof/bin/python tests/proof/coverage.sh $(ARGS)

audit: .venv/audit/ready  ## known vulnerabilities in what fastopt and its extras need (asks a database on the network)
	.venv/audit/bin/python tests/proof/supply.py --audit $(ARGS)

bench: .venv/bench/roofline  ## time fastopt beside every other library, with one thread and with all (half an hour)
	mkdir -p bench/results
	cd bench && for threads in 1 all; do ../.venv/bench/bin/pytest -q -m "not full" --threads $$threads \
	    --benchmark-json=results/bench-$$threads.json $(ARGS) . || exit 1; done

steady: .venv/bench/ready  ## how steady steps are, alone and beside other work (a quarter of an hour; Linux)
	mkdir -p bench/results
	.venv/bench/bin/python bench/steady.py steps --json bench/results/steady.json $(ARGS)
	.venv/bench/bin/python bench/steady.py subnormals --json bench/results/subnormals.json

report: .venv/bench/ready  ## write docs/benchmarks.md, docs/threads.md and their figures from what these two measured
	.venv/bench/bin/python bench/report.py bench/results/bench-*.json --steady bench/results/steady.json \
	    --subnormals bench/results/subnormals.json

lint: .venv/test/ready  ## ruff, mypy, cython-lint, and the C sources with every warning an error
	.venv/test/bin/ruff check .
	.venv/test/bin/mypy
	.venv/test/bin/mypy fastopt/functional.py  # for which others see a stub
	PATH="$(CURDIR)/.venv/test/bin:$$PATH" cython-lint fastopt
	for openmp in "" -fopenmp; do for source in src_c/*.[ch] tests/*/*.c; do \
	    $(CC) $(STRICT) $(HEADERS) $$openmp -x c $$source || exit 1; done; done

docs: .venv/docs/ready  ## the documentation, in docs/_build/html: warnings are errors, the examples in it run
	for builder in html doctest; do .venv/docs/bin/sphinx-build -q -W --keep-going -d docs/_build/doctrees -b $$builder \
	    $(ARGS) docs docs/_build/$$builder || exit 1; done

wheel:  ## sdist and wheels for every Python here, in wheelhouse/, each tested (a quarter of an hour; ARGS=--quick)
	$(PYTHON) tests/proof/wheels.py $(ARGS)

clean:  ## remove the virtual environments and all that was built
	rm -rf .venv build dist wheelhouse docs/_build docs/_generated *.egg-info

# --- how the environments are made ------------------------------------------------------------------------

# The stamp holds what the sources were before the build: what is saved, moved or removed meanwhile is built next time.
# From an empty build folder: setuptools would put into the wheel whatever an earlier build left there.
# The log is shown if the build fails; otherwise only what setup.py itself has to say.
dist/ready: FORCE | .venv/build/bin/python
	@contents=$$($(CONTENTS)); [ "$$contents" = "$$(cat $@ 2>/dev/null)" ] && exit; rm -rf build dist; \
	echo "building the wheel"; .venv/build/bin/python -m pip --disable-pip-version-check -v wheel --no-deps \
	    --wheel-dir dist . >.venv/build/log 2>&1 || { cat .venv/build/log; exit 1; }; \
	grep '^ *fastopt: ' .venv/build/log; echo "$$contents" >$@

FORCE:

# Not from a wheel: Python reads the source tree. The extras and the version come with it.
NATIVE = FASTOPT_BUILD_LEVELS=$${FASTOPT_BUILD_LEVELS-native}
IN_PLACE = $(NATIVE) .venv/dev/bin/python tools/build_in_place.py
.venv/dev/installed: pyproject.toml | .venv/dev/bin/python
	.venv/dev/bin/python $(PIP) install $(shell sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | sed 's/", "/" "/g')
	$(IN_PLACE)
	$(NATIVE) FASTOPT_BUILD_DIR=.venv/dev/build .venv/dev/bin/python $(PIP) install --no-build-isolation \
	    --config-settings editable_mode=compat --editable ".[test]"
	touch $@

.venv/demo/ready: EXTRAS := demo
.venv/test/ready: EXTRAS := test,bfloat16,lint
.venv/peers/ready: EXTRAS := test,bfloat16,peers
.venv/frameworks/ready: EXTRAS := test,frameworks
.venv/clients/ready: EXTRAS := test,clients
.venv/bench/ready: EXTRAS := bench
.venv/proof/ready: EXTRAS := test,proof
.venv/mutants/ready: EXTRAS := test,bfloat16,proof,peers
.venv/audit/ready: EXTRAS := audit
.venv/docs/ready: EXTRAS := docs

.venv/bench/roofline: bench/roofline.pyx .venv/bench/ready
	cd bench && ../.venv/bench/bin/cythonize -i -q roofline.pyx
	touch $@

# Twice: the first brings the dependencies, the second replaces a fastopt of the same version number.
.venv/%/ready: dist/ready | .venv/%/bin/python
	.venv/$*/bin/python $(PIP) install "$$(echo dist/fastopt-*.whl)[$(EXTRAS)]"
	.venv/$*/bin/python $(PIP) install --force-reinstall --no-deps dist/fastopt-*.whl
	touch $@

.PRECIOUS: .venv/%/bin/python
.venv/%/bin/python:
	$(PYTHON) -m venv .venv/$*
