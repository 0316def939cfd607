#!/usr/bin/env bash
# What the test suite reaches: the lines of fastopt/*.py, and the lines and branches of src_c/, as gcc and gcov see them.
#
#   PYTHON=.venv/coverage/bin/python tests/proof/coverage.sh [arguments for pytest]
#
# PYTHON needs coverage, Cython, setuptools and what the tests need. Everything is built and run in a temporary copy.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(command -v "${PYTHON:-python3}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
tar -c --exclude=./.[a-z]* --exclude=./build --exclude=./dist --exclude='*.so' --exclude=__pycache__ . | tar -x -C "$copy"
cd "$copy"

# The kernels as they are; then the engine anew, with counters and without optimization. By CC, since what is in CFLAGS
# does not reach the linking of the programs that setup.py tries: they would fail, and OpenMP be left out.
"$python" setup.py -q build_ext --inplace
sed -i 's/"-O3"/"-O0"/' setup.py
touch fastopt/engine.pyx src_c/*.c
CC="${CC:-gcc} --coverage" "$python" setup.py -q build_ext --inplace

cat >.coveragerc <<RC
[run]
source = fastopt
parallel = true
patch = subprocess
[report]
show_missing = true
exclude_also =
    if TYPE_CHECKING:
    raise NotImplementedError
RC
status=0
(
    cd tests
    export PYTHONPATH=$copy PYTHONDONTWRITEBYTECODE=1 COVERAGE_RCFILE=$copy/.coveragerc COVERAGE_FILE=$copy/.coverage
    [ $# -gt 0 ] || set -- . --ignore=peers --ignore=pytorch --ignore=frameworks --ignore=clients
    "$python" -m coverage run -m pytest -q -p no:cacheprovider "$@"
) || status=$?
"$python" -m coverage combine -q
"$python" -m coverage report

# The headers are counted where the engine includes them.
counters=$(find build -name 'fastopt_*.gcda' -o -name engine.gcda)
gcov -b $counters 2>/dev/null | grep -A3 "^File 'src_c/"
echo "Not reached, or only one way:"
grep -Hn '#####:\|^branch .* never\|^branch .* taken 0%' fastopt_*.gcov || true
exit $status
