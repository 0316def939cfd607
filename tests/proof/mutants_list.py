"""The mutants of mutants.py: ways to break fastopt, one at a time, and the tests that should notice first.

Each stands for a slip that somebody could make: a swapped scalar, an order of operations, a check that is missing, an
edge that is off by one. Not here are changes that no caller could see, such as `<` for `<=` in a search that then only
takes a step more.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One change of one file."""

    name: str
    file: str
    old: str
    """A text that occurs once in the file."""
    new: str
    tests: str
    """Arguments for pytest, in tests/."""


def bits(of: str) -> str:
    """The bit matrix and the scalars of some optimizers."""
    return f"test_bits.py -k '(bits_are or scalars_are) and ({of})'"


RULES = "fastopt/kernels/rules.pxi"
STAGES = "fastopt/kernels/stages.pxi"
FORMATS = "fastopt/kernels/formats.pxi"
SUM_KERNELS, LANES = "fastopt/kernels/sums.pxi", "src_c/fastopt_lanes.h"
PROGRAM = "fastopt/_engine/program.pxi"
SCALARS = "fastopt/_engine/scalars.pxi"
ENGINE = "fastopt/engine.pyx"
CLIPPING = "fastopt/_engine/clipping.pxi"
ARRAYS, FOREIGN, GRADIENTS, GROUP, LEVELS, MEMORY = (
    f"fastopt/_engine/{part}.pxi" for part in ("arrays", "foreign", "gradients", "group", "levels", "memory")
)
ARENA, BANK, BORROW, OPERANDS, SUMS, TEAM, TENSORS, THREADS, WALK = (
    f"fastopt/_engine/{part}.pxi"
    for part in ("arena", "bank", "borrow", "operands", "sums", "team", "tensors", "threads", "walk")
)
TENSORS_PY, TENSORS_H = "fastopt/_tensors.py", "src_c/fastopt_tensors.h"
RANKS, FALLBACK = "fastopt/_torch_ranks.py", "fastopt/_fallback.py"
TORCH, TORCH_STATE = "fastopt/torch.py", "fastopt/_torch_state.py"
OPTIMIZER, STATE, FUNCTIONAL = "fastopt/optimizer.py", "fastopt/state.py", "fastopt/functional.py"
SGD, ADAM, SCHEDULES, OPENMP = "fastopt/sgd.py", "fastopt/adam.py", "fastopt/schedules.py", "fastopt/_openmp.py"
DECLARE, CHECKPOINT = "fastopt/declare.py", "fastopt/checkpoint.py"
STORED, EXCHANGE = "fastopt/_stored.py", "fastopt/_exchange.py"
STORAGE = "fastopt/_engine/storage.pxi"

GAPS, LEAVES = "proof/test_gaps.py", "test_storage_state.py"
WHOLE, TORCH_STORED = "pytorch/test_whole_step_torch.py", "pytorch/test_storage_torch.py"
TREE = "test_norms.py -k 'sums_of_tiles and squares or order_of_additions'"
LARGEST = "test_norms.py -k 'sums_of_tiles and maximum or a_nan'"
LEVELS_OF_TREE = "test_norms.py -k 'more_tiles or more_arrays'"
PIECES = "test_norms.py -k cut_anywhere"
FLUSHES = "test_bits.py -k flush"
AT_ONCE = "test_bits.py -k test_any_optimizer"
SKIPPED = "test_bits.py -k 'skipped or equal_counts'"
CUT = "test_engine.py -k 'chunks or smaller_than_asked or more_threads'"
FOREIGN_MODE = "test_engine.py -k 'floating_point_environment or rounded_by_a_foreign'"
OVERLAPS = "test_engine.py -k 'neighbours or overlap or share_memory'"
BAD_ARRAYS = "test_arrays.py -k 'bad_parameter or bad_gradient'"
CHANGED = "test_engine.py -k 'no_longer'"
NONFINITE = "test_optimizer.py test_bits.py -k nonfinite"
HYPER = "test_optimizer.py -k 'refused or numbers or float32 or lost or convention or option or placement'"
LOADING = "test_state_dict.py -k 'not pytorchs_real'"
MEANING = "test_state_meaning.py"
FORGED = "test_checkpoint.py proof/test_damaged_files.py -k 'forgeries or others_are_refused'"
AT_THE_SAME_TIME = "test_checkpoint.py proof/test_killed_saves.py -k 'overtakes or two_threads'"

MUTANTS = [
    # --- The rules
    Mutant(
        "decay after the update of SGD", RULES,
        "p[i] = p[i] * decay - lr * g[i]", "p[i] = (p[i] - lr * g[i]) * decay",
        f"test_bits.py {GAPS} -k '(bits_are or weight_decay) and SGD'",
    ),
    Mutant(
        "dampening at the first step of momentum", RULES,
        "h[3] = 1.0 - x[2] if numbers[0] != 0 else 1.0", "h[3] = 1.0 - x[2]", bits("SGD"),
    ),
    Mutant(
        "a new momentum buffer that is not started anew", RULES,
        "h[2] = x[1] if numbers[0] != 0 else 0.0", "h[2] = x[1]", bits("SGD"),
    ),
    Mutant(
        "no look ahead at the first step of Nesterov", RULES,
        "h[4] = x[1]\n    numbers[0] = 1.0", "h[4] = h[2]\n    numbers[0] = 1.0", bits("SGD"),
    ),
    Mutant(
        "Nesterov's velocity added in another order", RULES,
        "p[i] = p[i] * decay + (mu * v[i] - d)", "p[i] = p[i] * decay + mu * v[i] - d", bits("SGD"),
    ),
    Mutant(
        "Adagrad's lr_decay one step too early", RULES,
        "h[1] = x[0] / (1.0 + (t - 1.0) * x[1])", "h[1] = x[0] / (1.0 + t * x[1])", bits("Adagrad"),
    ),
    Mutant(
        "Adagrad: lr outside the quotient", RULES,
        "ratio(lr * g[i], root(v[i] + e_in) + e_out)", "lr * ratio(g[i], root(v[i] + e_in) + e_out)",
        bits("Adagrad"),
    ),
    Mutant(
        "Adadelta: the gradient inside the quotient", RULES,
        "d = ratio(root(u[i] + eps), root(v[i] + eps)) * g[i]",
        "d = ratio(root(u[i] + eps) * g[i], root(v[i] + eps))", bits("Adadelta"),
    ),
    Mutant(
        "Adadelta: the update squared first", RULES,
        "u[i] = rho * u[i] + c * d * d", "u[i] = rho * u[i] + c * (d * d)", bits("Adadelta"),
    ),
    Mutant(
        "RMSprop's eps inside when it is outside", RULES,
        "h[4] = x[2] if eps_inside else 0.0", "h[4] = x[2]", bits("RMSprop"),
    ),
    Mutant(
        "RMSprop: the gradient squared first", RULES,
        "v[0] = b * v[0] + c * g * g\n    return", "v[0] = b * v[0] + c * (g * g)\n    return", bits("RMSprop"),
    ),
    Mutant(
        "a variance below zero", RULES,
        "root((0 if variance < 0 else variance) + e_in)", "root(variance + e_in)", bits("RMSprop"),
    ),
    Mutant(
        "mean and square of centered RMSprop exchanged", RULES,
        "u = ratio(l_in * g[i], deviation(v + i, w + i,", "u = ratio(l_in * g[i], deviation(w + i, v + i,",
        bits("RMSprop"),
    ),
    Mutant(
        "lr inside instead of outside RMSprop's momentum", RULES,
        "h[6] = x[0] if lr_inside else 1.0\n    h[7] = x[3]\n    h[8] = 1.0 if lr_inside else x[0]",
        "h[6] = x[0]\n    h[7] = x[3]\n    h[8] = 1.0", bits("RMSprop"),
    ),
    Mutant(
        "no correction under the root beside eps_root", RULES,
        "if placement == INSIDE or (placement == OUTSIDE and eps_root != 0) else", "if placement == INSIDE else",
        bits("Adam"),
    ),
    Mutant(
        "no correction of the numerator", RULES,
        "return sqrt(bc2) if placement == OUTSIDE_UNCORRECTED or placement == INSIDE_UNCORRECTED else 1.0",
        "return sqrt(bc2) if placement == OUTSIDE_UNCORRECTED else 1.0", bits("Adam"),
    ),
    Mutant(
        "eps outside when it is inside", RULES,
        "d[3] = 0.0 if inside else eps", "d[3] = eps", bits("Adam"),
    ),
    Mutant(
        "b1 for 1 - b1", RULES,
        "h[2] = 1.0 - b1", "h[2] = b1", bits("Adam"),
    ),
    Mutant(
        "Adam's betas swapped", RULES,
        "moments(h, x[1], x[2])\n    h[5] = x[0] * denominator(h + 6, x[3], x[4], <int>x[5], bc2) / bc1",
        "moments(h, x[2], x[1])\n    h[5] = x[0] * denominator(h + 6, x[3], x[4], <int>x[5], bc2) / bc1",
        bits("Adam"),
    ),
    Mutant(
        "Adam's lr corrected before it is multiplied", RULES,
        "h[5] = x[0] * denominator(h + 6, x[3], x[4], <int>x[5], bc2) / bc1",
        "h[5] = x[0] / bc1 * denominator(h + 6, x[3], x[4], <int>x[5], bc2)", bits("Adam"),
    ),
    Mutant(
        "Adam: the gradient squared first", RULES,
        "c2 * g[i] * g[i]\n        p[i] = p[i] * decay - ratio(lr",
        "c2 * (g[i] * g[i])\n        p[i] = p[i] * decay - ratio(lr", bits("Adam"),
    ),
    Mutant(
        "AMSGrad takes the average for its maximum", RULES,
        "w[i] = largest(w[i], v[i] * k)", "w[i] = v[i] * k", bits("Adam"),
    ),
    Mutant(
        "a NaN is lost in a maximum", RULES,
        "return a if (a > b) | (a != a) else b", "return a if a > b else b", bits("Adam"),
    ),
    Mutant(
        "Adamax's eps added to its maximum", RULES,
        "u[i] = largest(b2 * u[i], magnitude(g[i]) + e_in)", "u[i] = largest(b2 * u[i], magnitude(g[i])) + e_in",
        bits("Adamax"),
    ),
    Mutant(
        "Adamax without bias correction", RULES,
        "h[4] = x[0] / bc1", "h[4] = x[0]", bits("Adamax"),
    ),
    Mutant(
        "NAdam's product rounded after the multiplication alone", RULES,
        "<double>(<float>numbers[0] * <float>mu)", "<double><float>(numbers[0] * mu)", bits("NAdam"),
    ),
    Mutant(
        "NAdam's next momentum is this step's", RULES,
        "pow(0.96, (t + 1.0) * x[6])", "pow(0.96, t * x[6])", bits("NAdam"),
    ),
    Mutant(
        "NAdam's eps inside the root", RULES,
        "ratio(cg * g[i] + cm * m[i], root(v[i] * a + e_in) * c + e_out)",
        "ratio(cg * g[i] + cm * m[i], root(v[i] * a + e_in + e_out) * c)", bits("NAdam"),
    ),
    Mutant(
        "RAdam turns adaptive at its threshold, too", RULES,
        "rho > x[6] or (x[7] != 0 and rho == x[6])", "rho >= x[6]", f"test_bits.py {GAPS} -k radam",
    ),
    Mutant(
        "thinc's RAdam counts as the others", RULES,
        "cdef double k = t + x[8]", "cdef double k = t", bits("RAdam"),
    ),
    Mutant(
        "the sign of nothing is -1", RULES,
        "u = 1 if u > 0 else (-1 if u < 0 else u)", "u = 1 if u > 0 else -1", bits("Lion"),
    ),
    Mutant(
        "Lion's average with the betas of its sign", RULES,
        "m[i] = b2 * m[i] + c2 * g[i]", "m[i] = b1 * m[i] + c1 * g[i]", bits("Lion"),
    ),
    Mutant(
        "bias correction left out too early", RULES,
        "if (1.0 - b) * t > 40.0 else", "if (1.0 - b) * t > 35.0 else", bits("Adam"),
    ),
    Mutant(
        "a division by zero moves the parameter", RULES,
        "return a / b if b != 0 else 0", "return a / b", bits("Adagrad"),
    ),
    Mutant(
        "weight decay with the gradient's sign", STAGES,
        "p[i] = sign * g[i] + wd * w[i]", "p[i] = sign * (g[i] + wd * w[i])", bits("SGD"),
    ),
    Mutant(
        "a negated zero keeps its sign", STAGES,
        "p[i] = -g[i]", "p[i] = 0 - g[i]", bits("Adam and maximize"),
    ),
    Mutant(
        "unscaled by a reciprocal", STAGES,
        "p[i] = g[i] / by", "p[i] = g[i] * (1 / by)", "test_optimizer.py -k grad_scale",
    ),
    Mutant(
        "decay at the end subtracts", STAGES,
        "p[i] = p[i] * factor", "p[i] = p[i] - p[i] * (1 - factor)", bits("SGD"),
    ),
    Mutant(
        "the threshold itself is flushed", STAGES,
        "p[i] = 0 if magnitude(p[i]) < low else p[i]", "p[i] = 0 if magnitude(p[i]) <= low else p[i]", FLUSHES,
    ),
    Mutant(
        "infinities are finite", RULES,
        "found = 1 if g[i] - g[i] != 0 else found", "found = 1 if g[i] != g[i] else found", NONFINITE,
    ),
    Mutant(
        "looking back", RULES,
        "p[i] = g[i] + mu * v[i]", "p[i] = g[i] - mu * v[i]", "test_bits.py -k lookahead",
    ),

    # --- The scalars of a step, and the hyperparameters that they come from
    Mutant(
        "the scalars of the next step", SCALARS,
        "hyper.rule.scalars(hyper.x, <double>t,", "hyper.rule.scalars(hyper.x, <double>(t + 1),",
        bits("Adamax"),
    ),
    Mutant(
        "the scalars of the step before", BANK,
        "group.compute(&bank.items[bank.n], q.t + 1, q.numbers, q.begun)",
        "group.compute(&bank.items[bank.n], q.t, q.numbers, q.begun)", bits("Adamax"),
    ),
    Mutant(
        "hyperparameters rounded before the scalars are", GROUP,
        "self.hyper.x[self.target[i]] = number", "self.hyper.x[self.target[i]] = <double><float>number", bits("Adamax"),
    ),
    Mutant(
        "decay computed in float32", SCALARS,
        "out.h.d[0] = (1.0 - lr * wd if", "out.h.d[0] = (1.0 - <double>(<float>lr * <float>wd) if",
        "test_bits.py -k rounded_once",
    ),
    Mutant(
        "scalars that overflow float32", SCALARS,
        "isfinite(out.h.d[i]) and (not hyper.has_float or isfinite(out.h.f[i]))",
        "isfinite(out.h.d[i])", "test_optimizer.py -k scalars_that_overflow",
    ),
    Mutant(
        "maximize forgotten where weight decay is coupled", PROGRAM,
        "L2, GRAD, -1.0 if hyper.maximize else 1.0, wd)", "L2, GRAD, 1.0, wd)", bits("SGD"),
    ),
    Mutant(
        "no decay at the end where nothing else is around the rule", PROGRAM,
        "    n = program.n_before + program.n_after\n", "    n = program.n_before\n", bits("SGD or Adam"),
    ),
    Mutant(
        "a flush one step too late", SCALARS,
        "out.flush = hyper.fades and t % FLUSH_EVERY == 0",
        "out.flush = hyper.fades and t % FLUSH_EVERY == 1", FLUSHES,
    ),
    Mutant(
        "no flush at the least eps that allows one", GROUP,
        "(self.eps < 0 or hyper.x[self.eps] >= least_eps", "(self.eps < 0 or hyper.x[self.eps] > least_eps", FLUSHES,
    ),
    Mutant(
        "a key of options that does not tell True from 1", GROUP,
        "    key.append(kind)\n", "    key.append(None)\n", "test_engine.py -k key",
    ),
    Mutant(
        "a key of options that does not tell where a pair ends", GROUP,
        "        key.append(len(value))        # before", "        pass                          # before",
        "test_engine.py -k key",
    ),
    Mutant(
        "a key of options from tuples of tuples", GROUP,
        "if type(item) is tuple or not add_plain(key, item):", "if not add_plain(key, item):",
        "test_engine.py -k key",
    ),
    Mutant(
        "a key of options that takes -0.0 for 0.0", GROUP,
        "        if value == 0 and copysign(1.0, value) < 0:\n", "        if False:\n", "test_engine.py -k key",
    ),
    Mutant(
        "a hyperparameter that left the dict", GROUP,
        "if not self.settled or len(self.options) != self.n_before:", "if not self.settled:",
        f"test_optimizer.py {GAPS} -k lost",
    ),
    Mutant(
        "schedules are called once", GROUP,
        "self.settled = self.settled and fixed and not scheduled", "self.settled = self.settled and fixed",
        "test_optimizer.py -k schedule",
    ),
    Mutant(
        "lists of betas are read once", GROUP,
        "fixed = fixed and not isinstance(value, list)", "fixed = fixed", "test_optimizer.py -k in_place",
    ),
    Mutant(
        "the least value excluded", GROUP,
        "x > b.low if b.above else x >= b.low", "x > b.low", HYPER,
    ),
    Mutant(
        "a beta that float32 rounds to 1", GROUP,
        " and is_within(r, &self.bounds[i][j])", "", HYPER,
    ),
    Mutant(
        "True is a number", GROUP,
        "if isinstance(value, bool) or not isinstance(value, FIXED):", "if not isinstance(value, FIXED):", HYPER,
    ),
    Mutant(
        "exchanged parameters of a group", GROUP,
        'if self.options.get("params") is not self.params:', "if False:", "test_hostile.py -k exchanged",
    ),

    # --- Which arrays are taken
    Mutant(
        "byte-swapped parameters", ARRAYS,
        " and cnp.PyArray_ISNOTSWAPPED(a)\n", "\n", BAD_ARRAYS,
    ),
    Mutant(
        "misaligned parameters", ARRAYS,
        "and cnp.PyArray_ISALIGNED(a) and", "and", BAD_ARRAYS,
    ),
    Mutant(
        "read-only parameters", ARRAYS,
        "if cnp.PyArray_ISWRITEABLE(a) and has_form(a):", "if has_form(a):", BAD_ARRAYS,
    ),
    Mutant(
        "parameters with gaps", ARRAYS,
        "cnp.PyArray_ISALIGNED(a) and (cnp.PyArray_IS_C_CONTIGUOUS(a) or cnp.PyArray_IS_F_CONTIGUOUS(a)))",
        "cnp.PyArray_ISALIGNED(a))", BAD_ARRAYS,
    ),
    Mutant(
        "parameters of any floating type", ARRAYS,
        "if array.dtype not in (np.float32, np.float64) and not (accepted",
        "if array.dtype.kind != \"f\" and not (accepted",
        BAD_ARRAYS,
    ),
    Mutant(
        "masked arrays", ARRAYS,
        "if isinstance(obj, np.ma.MaskedArray):", "if False:", BAD_ARRAYS,
    ),
    Mutant(
        "a null pointer is memory", FOREIGN,
        "if cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_OWNDATA):", "if False:", "test_foreign.py -k null",
    ),
    Mutant(
        "what is written to a copy is lost", FOREIGN,
        "np.from_dlpack(obj) if reading else np.from_dlpack(obj, copy=False)", "np.from_dlpack(obj)",
        "test_foreign.py -k copies",
    ),
    Mutant(
        "state of another type", ARRAYS,
        "return (array.dtype == dtype and array.flags.aligned", "return (array.flags.aligned",
        "test_arrays.py -k bad_state",
    ),
    Mutant(
        "state of another memory order", ARRAYS,
        "and (in_order_of(array, param) if kind.like == \"parameter\" else array",
        "and (kind.like == \"parameter\" or array",
        "test_arrays.py -k bad_state",
    ),
    Mutant(
        "arrays that a schedule shrank while they were given", ENGINE,
        "            check_unchanged(group, arrays, labels, fresh, self.flattened)\n", "",
        "test_hostile.py -k 'shrink'",
    ),
    Mutant(
        "arrays that a factory shrank when an option was edited", ENGINE,
        "                check_unchanged(fresh, self.arrays[a:b], labels, states[a:b], self.flattened)\n", "",
        f"test_hostile.py {GAPS} -k factory",
    ),
    Mutant(
        "gradients of another type", "src_c/fastopt_arrays.h",
        "PyArray_TYPE(a) != type || ", "", BAD_ARRAYS,
    ),
    Mutant(
        "gradients of another shape", "src_c/fastopt_arrays.h",
        "if (PyArray_DIMS(a)[i] != dims[i])", "if (PyArray_DIMS(a)[i] < dims[i])", BAD_ARRAYS,
    ),
    Mutant(
        "gradients in any order, aligned or not", "src_c/fastopt_arrays.h",
        " || (PyArray_FLAGS(a) & flags) != flags)", ")", BAD_ARRAYS,
    ),
    Mutant(
        "byte-swapped gradients", "src_c/fastopt_arrays.h",
        "return PyArray_ISNOTSWAPPED(a);", "return 1;", BAD_ARRAYS,
    ),
    Mutant(
        "gradients that are no plain arrays", ENGINE,
        "                if not cnp.PyArray_CheckExact(<object>g):\n                    return False\n", "",
        "test_arrays.py",
    ),
    Mutant(
        "integers as gradients", GRADIENTS,
        "if array.dtype.kind != \"f\" and not is_bf", "if array.dtype.kind not in \"fiu\" and not is_bf",
        "test_arrays.py -k copy_grads",
    ),
    Mutant(
        "a shape that holds as many elements", GRADIENTS,
        "if array.shape != param.shape:", "if array.size != param.size:", BAD_ARRAYS,
    ),
    Mutant(
        "more gradients than parameters", ENGINE,
        "if len(grads) != n:", "if len(grads) < n:", "test_arrays.py -k 'container or number'",
    ),
    Mutant(
        "a parameter whose memory moved", ENGINE,
        "if not (q.p == fo_array_data(q.array) and fits(q.array, q, cnp.NPY_ARRAY_WRITEABLE)):",
        "if not fits(q.array, q, cnp.NPY_ARRAY_WRITEABLE):", CHANGED,
    ),
    Mutant(
        "a parameter that became read-only", ENGINE,
        "if not (q.p == fo_array_data(q.array) and fits(q.array, q, cnp.NPY_ARRAY_WRITEABLE)):",
        "if not (q.p == fo_array_data(q.array) and fits(q.array, q, 0)):", CHANGED,
    ),
    Mutant(
        "a parameter of another shape than it had", ENGINE,
        "if not (q.p == fo_array_data(q.array) and fits(q.array, q, cnp.NPY_ARRAY_WRITEABLE)):",
        "if q.p != fo_array_data(q.array):", CHANGED,
    ),
    Mutant(
        "state of a factory that changed since", ENGINE,
        "        if self.foreign:\n            self.check_states()\n", "", "test_engine.py test_arrays.py -k state",
    ),
    Mutant(
        "a copy of the parameter as it was when the optimizer was made", ENGINE,
        "            if self.copies_first:\n                self.copy_first(&job)\n", "", "test_slots.py",
    ),
    Mutant(
        "a copy of the parameter at every step", OPERANDS,
        "            if q.t == 0:\n", "            if q.t >= 0:\n", "test_slots.py",
    ),
    Mutant(
        "a row for each index of the last axis", GROUP,
        "return sizes[:max(n - 1, 0)]", "return sizes[max(n - 1, 0):]", "test_slots.py",
    ),
    Mutant(
        "state of a row in any memory order", ARRAYS,
        "if kind.like == \"parameter\" else array.flags.c_contiguous))", "if kind.like == \"parameter\" else True))",
        "test_slots.py",
    ),
    Mutant(
        "a row's state read-only", OPERANDS,
        "self.fits_slot(group.kinds[name], state, i, cnp.NPY_ARRAY_WRITEABLE)):",
        "self.fits_slot(group.kinds[name], state, i, 0)):", "test_slots.py",
    ),
    Mutant(
        "only the first number is carried", ENGINE,
        "copy_numbers(w.q.numbers, job.bank[w.place].numbers)", "w.q.numbers[0] = job.bank[w.place].numbers[0]",
        "test_bits.py -k ASGD",
    ),
    Mutant(
        "state whose memory moved", OPERANDS,
        "if <char *>cnp.PyArray_DATA(state) != q.s[k] or not (", "if not (",
        f"test_engine.py test_arrays.py test_hostile.py {GAPS} -k state",
    ),
    Mutant(
        "a lookahead array of another size", ENGINE,
        "if not fits(<PyObject *>array, q, cnp.NPY_ARRAY_WRITEABLE):", "if False:", "test_hostile.py -k lookahead",
    ),

    # --- Which memory is whose
    Mutant(
        "parameters may not even touch", MEMORY,
        "if self.intervals[i - 1].high > self.intervals[i].low:",
        "if self.intervals[i - 1].high >= self.intervals[i].low:", OVERLAPS,
    ),
    Mutant(
        "parameters may share an element", MEMORY,
        "if self.intervals[i - 1].high > self.intervals[i].low:",
        "if self.intervals[i - 1].high > self.intervals[i].low + 8:", OVERLAPS,
    ),
    Mutant(
        "intervals that are not sorted", MEMORY,
        "qsort(self.intervals, self.n, sizeof(Interval), by_address)", "pass", OVERLAPS,
    ),
    Mutant(
        "a gradient may not begin where a parameter ends", MEMORY,
        "if self.intervals[middle].high <= low:", "if self.intervals[middle].high < low:", OVERLAPS,
    ),
    Mutant(
        "a gradient may end in a parameter", MEMORY,
        "return high <= self.gap_high", "return low < self.gap_high", OVERLAPS,
    ),
    Mutant(
        "the last element belongs to nobody", MEMORY,
        "self.append(<char *>cnp.PyArray_DATA(array), cnp.PyArray_NBYTES(array), param, slot)",
        "self.append(<char *>cnp.PyArray_DATA(array), cnp.PyArray_NBYTES(array) - cnp.PyArray_ITEMSIZE(array), param, "
        "slot)", OVERLAPS,
    ),
    Mutant(
        "a remembered gap looked at from below only", OPERANDS,
        "data + grad_bytes(q) <= q.gap_high) or", "data <= q.gap_high) or",
        OVERLAPS,
    ),
    Mutant(
        "gaps remembered although a group was added", OPERANDS,
        "self.params[i].gap_low = self.params[i].gap_high = NULL", "pass", OVERLAPS,
    ),

    # --- The step
    Mutant(
        "a skipped parameter is counted", ENGINE,
        "                if g == <PyObject *>None:\n                    continue",
        "                if g == <PyObject *>None:\n                    q.t += 1\n                    continue",
        SKIPPED,
    ),
    Mutant(
        "a step is counted before it is checked", ENGINE,
        "            self.take_step(grads, list(numbers) if numbers else None, found_inf is not None "
        "and is_found(found_inf))",
        "            self.steps += 1\n            self.take_step(grads, None, False)\n            self.steps -= 1",
        BAD_ARRAYS,
    ),
    Mutant(
        "a step that was left out is counted", ENGINE,
        "            self.skipped += 1\n            return\n", "            self.skipped += 1\n", NONFINITE,
    ),
    Mutant(
        "the optimizer is never busy", ENGINE,
        "self.busy = True\n        self.caller", "self.busy = False\n        self.caller",
        "test_engine.py -k 'two_threads or schedule_that_steps'",
    ),
    Mutant(
        "the optimizer stays busy after an error", ENGINE,
        "and is_found(found_inf))\n        finally:\n            self.leave()\n",
        "and is_found(found_inf))\n        except TypeError:\n            raise\n        self.leave()\n",
        BAD_ARRAYS,
    ),
    Mutant(
        "a long step keeps the interpreter lock", TEAM,
        "    elif is_large(job):\n        with nogil:\n            run_alone(job)\n",
        "    elif is_large(job):\n        run_alone(job)\n", "test_engine.py -k interpreter_lock",
    ),
    Mutant(
        "gradients are not held while others may run", ENGINE,
        "keep_refs = is_large(job) and self.converted is None", "keep_refs = False",
        "test_hostile.py -k gradients_that_another",
    ),
    Mutant(
        "the carried number stands still", ENGINE,
        "            copy_numbers(w.q.numbers, job.bank[w.place].numbers)\n", "", AT_ONCE,
    ),
    Mutant(
        "scalars shared in spite of another count", ENGINE,
        "job.place < 0 or q.t != job.t or q.begun", "job.place < 0 or q.begun", SKIPPED,
    ),
    Mutant(
        "scalars shared in spite of another past", ENGINE,
        "\n                or not same_numbers(q.numbers, job.numbers)):", "):", SKIPPED,
    ),
    Mutant(
        "scalars shared in spite of another second number", SCALARS,
        "for k in range(MAX_NUMBERS):\n        if a[k]", "for k in range(1):\n        if a[k]",
        "test_engine.py -k differ_in_any_number",
    ),
    Mutant(
        "groups that share their scalars", ENGINE,
        "            job.place = -1\n", "            pass\n", SKIPPED,
    ),
    Mutant(
        "one group is edited although another is refused", ENGINE,
        "edited = edited or []\n            edited.append((k, fresh, self.lacking(fresh, fresh.slots)))\n",
        "self.commit_groups([(k, fresh, self.lacking(fresh, fresh.slots))])\n",
        "test_optimizer.py -k 'after_an_edit or switched_on'",
    ),
    Mutant(
        "steps of a dict that was refused", ENGINE,
        "        before = [dict(mine) for mine in self.options]\n",
        "        before = [dict(mine) for mine in self.options]\n        self.steps = steps\n", f"{LOADING} {GAPS}",
    ),
    Mutant(
        "groups of a dict that was refused", ENGINE,
        "                (<dict>mine).clear()\n                (<dict>mine).update(old)\n", "                pass\n",
        f"{LOADING} {GAPS}",
    ),
    Mutant(
        "state of before under a dict without any", ENGINE,
        "        for group in self.groups:\n            self.fill(group, group.slots, &self.team)\n",
        "        for group in self.groups:\n", LOADING,
    ),
    Mutant(
        "loading into state that changed since", ENGINE,
        "            self.check_params(group)\n            self.check_state_of(group)\n",
        "            self.check_params(group)\n", "test_engine.py test_arrays.py test_hostile.py -k state",
    ),
    Mutant(
        "a fill from a parameter that was resized", ENGINE,
        "            self.check_params(group)\n            self.check_state_of(group)\n",
        "            self.check_state_of(group)\n", "test_slots.py",
    ),
    Mutant(
        "a copy before the gradients are looked at", OPERANDS,
        "if job.scan_nonfinite and any_nonfinite(job.work, job.n_work, 0, job.blocks):", "if False:", "test_slots.py",
    ),
    Mutant(
        "an earlier group that a state_factory changed", ENGINE,
        "                self.check_params(earlier)\n                self.check_state_of(earlier)\n",
        "                pass\n", "test_slots.py",
    ),
    Mutant(
        "a scale of zero", ENGINE,
        "and float(grad_scale) > 0)", "and float(grad_scale) >= 0)",
        f"test_optimizer.py {GAPS} -k grad_scale",
    ),
    Mutant(
        "state always in C order", OPERANDS,
        'order="C" if array.flags.c_contiguous else "F")\n        place', 'order="C")\n        place',
        "test_optimizer.py -k switched_on",
    ),

    # --- The walk over the arrays
    Mutant(
        "shares that leave out what does not divide", WALK,
        "return blocks // n * k + blocks % n * k // n", "return blocks // n * k", CUT,
    ),
    Mutant(
        "shares whose beginning overflows", WALK,
        "return blocks // n * k + blocks % n * k // n", "return blocks * k // n", "proof/test_large.py -k shares",
    ),
    Mutant(
        "shares that begin one block too late", WALK,
        "shares[k].next = share_begin(job.blocks, k, n_threads)",
        "shares[k].next = share_begin(job.blocks, k, n_threads) + (k > 0)", CUT,
    ),
    Mutant(
        "chunks that go on into the next share", WALK,
        "end = min(begin + job.chunk, share.end)", "end = begin + job.chunk", CUT,
    ),
    Mutant(
        "nobody does what another left", WALK,
        "for i in range(job.n_shares):", "for i in range(1):", CUT,
    ),
    Mutant(
        "an array is walked beyond its end", WALK,
        "min((end - w.first_block) * per_block, w.q.n))", "(end - w.first_block) * per_block)", CUT,
    ),
    Mutant(
        "an array that was cut is begun anew", WALK,
        "walk_array(job, i, max(0, begin - w.first_block) * per_block,", "walk_array(job, i, 0,", CUT,
    ),
    Mutant(
        "blocks of as many elements for both types", WALK,
        "return BLOCK >> shift_of(w.q)", "return BLOCK >> 3", CUT,
    ),
    Mutant(
        "the last block only if it is full", WALK,
        "return ((q.n << shift_of(q)) + BLOCK - 1) // BLOCK", "return (q.n << shift_of(q)) // BLOCK",
        bits("Lion"),
    ),
    Mutant(
        "tiles that are full only", PROGRAM,
        "if n <= 0:", "if n < tile:", bits("SGD"),
    ),
    Mutant(
        "the same gradients for every tile", PROGRAM,
        "        g += size\n", "        pass\n", bits("SGD"),
    ),
    Mutant(
        "state from its beginning in every piece", PROGRAM,
        "<real *>state[k - STATE] + first", "<real *>state[k - STATE]", bits("Lion"),
    ),
    Mutant(
        "all state flushed as the first", PROGRAM,
        "stage.f[0], stage.d[0] = low.f[k], low.d[k]", "stage.f[0], stage.d[0] = low.f[0], low.d[0]", FLUSHES,
    ),
    Mutant(
        "no flush of arrays that are walked whole", WALK,
        "if w.program.bare and first == 0 and not scalars.flush:", "if w.program.bare and first == 0:", FLUSHES,
    ),
    Mutant(
        "the last element may be a NaN", WALK,
        "last = min((end - work[i].first_block) * per_block, work[i].q.n)",
        "last = min((end - work[i].first_block) * per_block, work[i].q.n - 1)", NONFINITE,
    ),
    Mutant(
        "writing begins while others still look for NaN", WALK,
        "            fo_set_flag(&job.found)\n        fo_barrier()\n",
        "            fo_set_flag(&job.found)\n", NONFINITE,
    ),
    Mutant(
        "a NaN is looked for by the caller alone", WALK,
        "if any_nonfinite(job.work, job.n_work, share_begin(job.blocks, k, n),\n",
        "if k == 0 and any_nonfinite(job.work, job.n_work, share_begin(job.blocks, k, n),\n", NONFINITE,
    ),

    # --- Sums
    Mutant(
        "lanes are joined by neighbours", SUM_KERNELS,
        "lanes[j] = lanes[j] + lanes[j + 8]", "lanes[j] = lanes[2 * j] + lanes[2 * j + 1]", TREE,
    ),
    Mutant(
        "the last half of the lanes the other way round", SUM_KERNELS,
        "lanes[j] = lanes[j] + lanes[j + 2]", "lanes[j] = lanes[j] + lanes[3 - j]", TREE,
    ),
    Mutant(
        "the elements of a vector the other way round", LANES, "a[j] = x[j];", "a[j] = x[FO_WIDE - 1 - j];", TREE,
    ),
    Mutant(
        "lanes that go on in the next tile", SUM_KERNELS,
        """    cdef fo_wide a
    cdef Py_ssize_t i, j, k, size
    for k in range((n + SUM_TILE - 1) // SUM_TILE):
        size = min(n - SUM_TILE * k, SUM_TILE)
        for j in range(WIDES):
            lanes[j] = fo_wide_none()
""",
        """    cdef fo_wide a
    cdef Py_ssize_t i, j, k, size
    for j in range(WIDES):
        lanes[j] = fo_wide_none()
    for k in range((n + SUM_TILE - 1) // SUM_TILE):
        size = min(n - SUM_TILE * k, SUM_TILE)
""", TREE,
    ),
    Mutant(
        "the elements that fill no lanes are left out", SUM_KERNELS,
        "            if FO_WIDE * j < size:\n                a = part",
        "            if False:\n                a = part", TREE,
    ),
    Mutant(
        "tiles of one element less", SUM_KERNELS,
        """        size = min(n - SUM_TILE * k, SUM_TILE)
        for j in range(WIDES):
            lanes[j] = fo_wide_none()
        for i in range(size // SUM_LANES):
            for j in range(WIDES):
                a = wide""",
        """        size = min(n - SUM_TILE * k, SUM_TILE - 1)
        for j in range(WIDES):
            lanes[j] = fo_wide_none()
        for i in range(size // SUM_LANES):
            for j in range(WIDES):
                a = wide""", TREE,
    ),
    Mutant(
        "sums of tiles are squared again", SUM_KERNELS,
        "lanes[j] = lanes[j] + wide(x + FO_WIDE * j)\n",
        "lanes[j] = lanes[j] + wide(x + FO_WIDE * j) * wide(x + FO_WIDE * j)\n", LEVELS_OF_TREE,
    ),
    Mutant(
        "the rest of the sums of tiles is left out", SUM_KERNELS,
        "            if FO_WIDE * j < size:\n                lanes[j] = lanes[j] + part",
        "            if False:\n                lanes[j] = lanes[j] + part", TREE,
    ),
    Mutant(
        "the largest with its sign", SUM_KERNELS,
        "            a = a & magnitude_bits\n            lanes", "            lanes", LARGEST,
    ),
    Mutant(
        "NaN is not the largest", SUM_KERNELS,
        "min(n - SUM_TILE * k, SUM_TILE), 0x7FFFFFFF)", "min(n - SUM_TILE * k, SUM_TILE), 0x7F800000)", LARGEST,
    ),
    Mutant(
        "the largest but for some lanes", SUM_KERNELS,
        "found = lanes[j] if lanes[j] > found else found", "found = lanes[j] if j < 15 and lanes[j] > found else found",
        LARGEST,
    ),
    Mutant(
        "the largest but for the last elements", SUM_KERNELS,
        "for i in range(n // SUM_LANES * SUM_LANES, n):", "for i in range(n // SUM_LANES * SUM_LANES, n - 1):", LARGEST,
    ),
    Mutant(
        "the sum for the norm", SUM_KERNELS, "    return sqrt(total)\n", "    return total\n", "test_norms.py -k right",
    ),
    Mutant(
        "a tile that begins in a piece is left to the next one", SUMS,
        "tiles_of(min(end - w.first_block, blocks_of(w.q)) * per_block))",
        "min(end - w.first_block, blocks_of(w.q)) * per_block // SUM_TILE)",
        PIECES,
    ),
    Mutant(
        "a tile is summed beyond the end of its array", SUMS,
        "n = min(last * SUM_TILE, w.q.n) - start", "n = last * SUM_TILE - start", PIECES,
    ),
    Mutant(
        "the sums of an array over those of the one before", SUMS,
        "return job.sums + i + job.work[i].first_block // TILE_BLOCKS",
        "return job.sums + job.work[i].first_block // TILE_BLOCKS", PIECES,
    ),
    Mutant(
        "sums of arrays in the room of all", SUMS,
        "return join(job.sum, job.sums + job.n_work, job.sums, job.n_work)",
        "return join(job.sum, job.sums, job.sums, job.n_work)", PIECES,
    ),
    Mutant(
        "on one thread the first tile alone", SUMS, "if w.q.n > SUM_TILE or w.q.n == 0:", "if w.q.n == 0:",
        LEVELS_OF_TREE,
    ),
    Mutant(
        "the sum of no elements is what lay there", SUMS, "if w.q.n > SUM_TILE or w.q.n == 0:", "if w.q.n > SUM_TILE:",
        "test_norms.py test_clipping.py",
    ),
    Mutant(
        "a team clips by sums of tiles", WALK, "                join_tiles(job)\n", "", "test_clipping.py",
    ),
    Mutant(
        "one level of the tree alone", SUMS,
        "    while n > 1:\n        sum.join(to, x, n)\n", "    if n > 1:\n        sum.join(to, x, n)\n", LEVELS_OF_TREE,
    ),
    Mutant(
        "threads that step where they have to sum", WALK,
        "        done = take_shares(job, k, sum_blocks)\n", "        done = take_shares(job, k, step_blocks)\n",
        "test_norms.py -k bits_of_a_norm_are",
    ),
    Mutant(
        "a norm in the caller's floating-point environment", SUMS,
        "        cdef double found\n        try:\n            launch(team, &self.job)",
        "        cdef double found\n        fo_fenv_leave(caller)\n        try:\n            launch(team, &self.job)",
        "test_engine.py -k norms_do_not_depend",
    ),
    Mutant(
        "a norm leaves its floating-point environment behind", SUMS,
        "            fo_fenv_leave(caller)\n", "            pass\n", "test_engine.py -k norms_do_not_depend",
    ),
    Mutant(
        "a norm of arrays that no kernel can walk", SUMS,
        "if not has_form(a):", "if False:", "test_norms.py -k refused",
    ),
    Mutant(
        "the norm of order 2 for every order", SUMS,
        "        return MAXIMUM\n", "        return SQUARES\n", "test_norms.py -k right",
    ),
    Mutant(
        "the threads of an earlier norm", SUMS,
        "    norm_team.most_threads = most\n", "    pass\n", "test_engine.py -k one_region",
    ),

    # --- Formats
    Mutant(
        "bfloat16 rounds all ties up", FORMATS,
        "u + (0x7FFF + (u >> 16 & 1)) if x[i] == x[i]", "u + 0x8000 if x[i] == x[i]", "test_formats.py -k even_one",
    ),
    Mutant(
        "bfloat16 rounds a NaN", FORMATS,
        "(u >> 16 & 1)) if x[i] == x[i] else u | 0x400000", "(u >> 16 & 1))", "test_formats.py -k 'keep_their_place'",
    ),
    Mutant(
        "one random number for the elements of a block", FORMATS,
        "        halves[i] = <uint16_t>(u >> 16)\n        r += <uint32_t>LATTICE\n",
        "        halves[i] = <uint16_t>(u >> 16)\n", "test_formats.py -k spread_evenly",
    ),
    Mutant(
        "subnormal float16 begin a power of two lower", FORMATS,
        "(bits_of(x[i]) ^ sign) < 0x38800000", "(bits_of(x[i]) ^ sign) < 0x38000000", "test_formats.py -k numpy",
    ),
    Mutant(
        "subnormal float16 are loaded as normal ones", FORMATS,
        " if exponent == 0 else u\n", " if exponent == 1 else u\n", "test_formats.py -k numpy",
    ),
    Mutant(
        "split adds a lower half of another number", FORMATS,
        "float_of(u if float_of(u) == float_of(u) else upper)", "float_of(u)", "test_formats.py -k somebody_else",
    ),
    Mutant(
        "split rounds ties to the even one", FORMATS,
        "(u + (u & 0x8000)) >> 16", "(u + 0x7FFF + (u >> 16 & 1)) >> 16", "test_formats.py -k loses_no_bit",
    ),
    Mutant(
        "e4m3 is cut and not rounded", FORMATS,
        "(((u & 0x7FFFFFFF) + 0x80000) >> 20) - base", "((u & 0x7FFFFFFF) >> 20) - base",
        "test_formats.py -k errors_are_small",
    ),
    Mutant(
        "the largest float32 becomes infinite", FORMATS,
        "<int32_t>(top if top < FORMAT_TOP else FORMAT_TOP)", "<int32_t>top", "test_formats.py -k never_becomes",
    ),
    Mutant(
        "an infinity is the largest of its block", FORMATS,
        "((finite_top_of(x, n) if special else top) + 0x80000)", "(top + 0x80000)",
        "test_formats.py -k errors_are_small",
    ),
    Mutant(
        "a NaN is stored as a number", FORMATS,
        "if (u & 0x7FFFFFFF) >= 0x7F800000:\n", "if (u & 0x7FFFFFFF) == 0x7F800000:\n",
        "test_formats.py -k keep_their_place",
    ),
    Mutant(
        "small second moments become 0", FORMATS,
        "c = c if c > 1 else 1", "c = c if c > 0 else 0", "test_formats.py -k zero_only",
    ),
    Mutant(
        "a second moment of 0 becomes a small one", FORMATS,
        "<uint8_t>(c if u != 0 else 0)", "<uint8_t>c", "test_formats.py -k zero_only",
    ),

    # --- Clipping
    Mutant(
        "a step that does not clip", STAGES,
        "        p[i] = g[i] * factor\n", "        p[i] = g[i]\n", "test_clipping.py -k what_the_factor",
    ),
    Mutant(
        "Keras's factor for all", OPTIMIZER,
        "clip_norm=clip_norm, norm_type=norm_type, clip_form=CLIP_FORMS.get(convention, 0),",
        "clip_norm=clip_norm, norm_type=norm_type, clip_form=1,", "test_clipping.py -k what_the_factor",
    ),
    Mutant(
        "the default factor after unpickling", OPTIMIZER,
        "**saved[\"settings\"], clip_form=form)", "**saved[\"settings\"])", "test_clipping.py -k copies_have",
    ),
    Mutant(
        "a factor above 1", SUMS,
        "    return 1 if factor > 1 else factor     # NaN stays\n", "    return factor\n", "test_clipping.py -k factor",
    ),
    Mutant(
        "a NaN that is taken for 1", SUMS,
        "    return 1 if factor > 1 else factor     # NaN stays\n", "    return factor if factor < 1 else 1\n",
        "test_clipping.py -k propagates",
    ),
    Mutant(
        "Keras's factor of an infinite norm", SUMS,
        "min(1 / norm, 1 / limit) if isfinite(norm) else NAN", "min(1 / norm, 1 / limit)",
        "test_clipping.py -k 'propagates or overflow'",
    ),
    Mutant(
        "optax's factor from PyTorch's norm", SUMS,
        "norm + 1e-6 if form == CLIP_TORCH else norm", "norm + 1e-6", "test_clipping.py -k what_the_factor",
    ),
    Mutant(
        "the norm of scaled gradients", SUMS,
        "job.sum.norm(join_arrays(job)) / clip.grad_scale", "job.sum.norm(join_arrays(job))",
        "test_clipping.py -k of_unscaled",
    ),
    Mutant(
        "the scale of the step before", ENGINE,
        "        self.clip.grad_scale = self.grad_scale\n", "        self.clip.grad_scale = 1\n",
        "test_clipping.py -k of_unscaled",
    ),
    Mutant(
        "finite numbers with infinite squares refused", SUMS,
        "not isfinite(clip.norm) and any_nonfinite(job.work, job.n_work, 0, job.blocks)", "not isfinite(clip.norm)",
        "test_clipping.py -k overflow",
    ),
    Mutant(
        "what is not finite is stepped", SUMS,
        "        job.found = 1         # of finite float64", "        job.found = 0         # of finite float64",
        "test_clipping.py -k nonfinite_is_answered",
    ),
    Mutant(
        "a stage that is left out for good", PROGRAM,
        "        elif by != 1:\n", "        elif False:\n",
        "test_clipping.py -k groups_have",
    ),
    Mutant(
        "a program that is bare whatever the factor", WALK,
        "    if clips_alone and factor == 1:\n", "    if clips_alone:\n",
        "test_clipping.py -k 'groups_have or what_the_factor'",
    ),
    Mutant(
        "a bare program that averages", PROGRAM,
        "program.bare_unclipped = n == (program.clip >= 0) and mean < 0 and", "program.bare_unclipped = "
        "n == (program.clip >= 0) and", "test_whole_step.py -k threads_and_levels",
    ),
    Mutant(
        "a bare program that zeroes", PROGRAM,
        "    program.bare = n == 0 and mean < 0 and not hyper.zeroes\n", "    program.bare = n == 0 and mean < 0\n",
        "test_whole_step.py -k 'share_memory or scaler'",
    ),
    Mutant(
        "short arrays step before they average", PROGRAM,
        "    if n_stages == 0 and program.bare:\n", "    if n_stages == 0:\n", "test_whole_step.py -k when_an",
    ),
    Mutant(
        "an average that begins after the rule", PROGRAM,
        "    if program.mean >= 0 and scalars.mean.copies_first:\n", "    if False:\n",
        "test_whole_step.py -k when_an",
    ),
    Mutant(
        "an average of the first tile", PROGRAM,
        "            operands[MEAN] += size\n", "", "test_whole_step.py -k every_option",
    ),
    Mutant(
        "an average that begins anew", SCALARS,
        "    if begun or (hyper.mean", "    if (hyper.mean", "test_whole_step.py -k when_an",
    ),
    Mutant(
        "thinc's average that begins as the parameter", SCALARS,
        "t == 1 == hyper.ema_start):", "t == 0):", "test_whole_step.py -k when_an",
    ),
    Mutant(
        "an average that does not note that it begun", ENGINE,
        "                    w.q.begun = True\n", "                    pass\n", "test_whole_step.py -k when_an",
    ),
    Mutant(
        "scalars shared by averages that have begun and others", ENGINE,
        "q.t != job.t or q.begun != job.begun\n", "q.t != job.t\n", "test_whole_step.py -k whatever_is_given",
    ),
    Mutant(
        "an average that goes on after it was switched off", ENGINE,
        "                    self.params[a].begun = False\n", "                    pass\n",
        "test_whole_step.py -k switched_off",
    ),
    Mutant(
        "an average that a load leaves begun", ENGINE,
        "                self.params[i].begun = records[i] is not None and MEAN_SLOT in records[i][1]\n", "",
        "test_whole_step.py -k 'anew_with or carry'",
    ),
    Mutant(
        "averages that do not change back", ENGINE,
        "                self.swap(True)\n                return\n", "                return\n",
        "test_whole_step.py -k changes",
    ),
    Mutant(
        "leaving that does not wait", ENGINE,
        "                if monotonic() > until:\n", "                if True:\n",
        "test_whole_step.py -k leaving_waits",
    ),
    Mutant(
        "leaving that cannot be tried again", ENGINE,
        "            self.inside = self.is_swapped()\n", "            self.inside = False\n",
        "test_whole_step.py -k tried_again",
    ),
    Mutant(
        "leaving twice", ENGINE,
        "            if back and not self.averaged:\n", "            if False:\n",
        "test_whole_step.py -k leave_at_once",
    ),
    Mutant(
        "an object made between the look at gradients and the step", ENGINE,
        "        memory = self.gradients  ", "        memory = Memory([], [], [])  ", "test_hostile.py -k rubbish",
    ),
    Mutant(
        "a load among averages", STATE,
        "    plan.refuse_averaged(\"load_state_dict()\")\n", "", "test_whole_step.py -k may_not_happen",
    ),
    Mutant(
        "another's state called ema", STATE,
        "        if name == AVERAGE.name and name not in slots:\n", "        if False:\n",
        "test_whole_step.py -k call_ema",
    ),
    Mutant(
        "averages of a dict without any state that are not missed", STATE,
        "                if records[i] is None or AVERAGE", "                if records[i] is not None and AVERAGE",
        "test_whole_step.py -k warning_that",
    ),
    Mutant(
        "found_inf as a float", GROUP,
        "    return now != 0\n", "    return float(now) != 0\n", "test_whole_step.py -k beyond",
    ),
    Mutant(
        "a step among averages", ENGINE,
        "            if self.averaged:\n                self.refuse_averaged(\"step()\")\n", "",
        "test_whole_step.py -k may_not_happen",
    ),
    Mutant(
        "a pickle among averages", OPTIMIZER,
        "        plan.refuse_averaged(\"pickling or copying\")\n", "", "test_whole_step.py -k may_not_happen",
    ),
    Mutant(
        "a state dict among averages", ENGINE,
        "                state[MEAN_SLOT] = np.array(average, order=\"K\")\n", "                pass\n",
        "test_whole_step.py -k 'changes or may_not'",
    ),
    Mutant(
        "the factor of each for its whole norm", SUMS,
        "/ clip.grad_scale * job.factor, limit)", "/ clip.grad_scale, limit)", "test_whole_step.py -k order_of",
    ),
    Mutant(
        "the factor of each alone", SUMS,
        "            job.sums[i] = job.factor * clip_factor(", "            job.sums[i] = clip_factor(",
        "test_whole_step.py -k 'order_of or levels'",
    ),
    Mutant(
        "Keras' formula for all where it is for each", SUMS,
        "CLIP_ABOVE if clip.form == CLIP_KERAS else clip.form,", "clip.form,",
        "test_whole_step.py -k 'what_the or values'",
    ),
    Mutant(
        "gradients of a skipped step that stay", WALK,
        "            memset(job.work[i].g, 0, grad_bytes(job.work[i].q))\n", "            pass\n",
        "test_whole_step.py -k 'nonfinite or scaler'",
    ),
    Mutant(
        "gradients that are zeroed and overlap", ENGINE,
        "        if self.zeroes:\n            self.check_gradients_apart(job)\n", "",
        "test_whole_step.py -k share_memory",
    ),
    Mutant(
        "gradients that are known to be apart, and others", ENGINE,
        "same and self.apart[i].q == w.q and self.apart[i].g == w.g and self.apart[i].n == grad_bytes(w.q)", "same",
        "test_whole_step.py -k share_memory",
    ),
    Mutant(
        "a read-only gradient that is zeroed", ENGINE,
        "self.zeroes, flags = True, cnp.NPY_ARRAY_WRITEABLE", "self.zeroes = True",
        "test_whole_step.py -k cannot_be_zeroed",
    ),
    Mutant(
        "a clip_value that nothing is below in float32", GROUP,
        "(has_float and <double><float>x == 0)", "False", "test_whole_step.py -k only_has_to",
    ),
    Mutant(
        "Keras' clippings together", GROUP,
        "is not None and not (isinstance(x, FIXED) and x == INFINITY)]) > 1:",
        "is not None and not (isinstance(x, FIXED) and x == INFINITY)]) > 2:", "test_whole_step.py -k one_way",
    ),
    Mutant(
        "steps before the factor is known", WALK,
        "                settle_clip(job)\n                share_out(job, job.n_shares)\n            fo_barrier()\n",
        "                share_out(job, job.n_shares)\n            fo_barrier()\n            if k == 0:\n"
        "                settle_clip(job)\n",
        "test_clipping.py -k 'late or levels'",
    ),
    Mutant(
        "a factor before all is summed", WALK,
        "            fo_barrier()\n            if k == 0:\n                join_tiles(job)\n",
        "            if k == 0:\n                join_tiles(job)\n", "test_clipping.py -k 'late or levels'",
    ),
    Mutant(
        "nothing left to step once all is summed", WALK,
        "                share_out(job, job.n_shares)\n            fo_barrier()\n", "            fo_barrier()\n",
        "test_clipping.py -k levels",
    ),
    Mutant(
        "a step of tensors without the factor that was found before", TENSORS,
        "            job.factor = self.factor\n", "            pass\n", "pytorch/test_clip_option.py -k joins",
    ),
    Mutant(
        "a quick step of tensors that does not clip", TENSORS,
        "            if fits == 1:\n                self.set_up_clip(job)\n            large", "            large",
        "pytorch/test_clip_option.py -k has_the_bits",
    ),
    Mutant(
        "one sum for all placements", TENSORS,
        "if <int>self.parts[job.work[i].q - self.params] == k:", "if k == 0:",
        "pytorch/test_clip_ranks.py -k placements",
    ),
    Mutant(
        "replicas that are added", RANKS,
        "adds = [pattern[dim] for pattern in patterns]", "adds = [True for pattern in patterns]",
        "pytorch/test_clip_ranks.py -k placements",
    ),
    Mutant(
        "a step in spite of a rank that failed", RANKS,
        "if head.status > SKIPS:", "if head.status > FAILED:", "pytorch/test_clip_ranks.py -k fails_on",
    ),
    Mutant(
        "a step in spite of a rank that skips", RANKS,
        "return None if head.status == SKIPS else total", "return total", "pytorch/test_clip_ranks.py -k fails_on",
    ),
    Mutant(
        "the norm of a rank's part under ZeroRedundancyOptimizer", RANKS,
        "in_zero = in_zero or frame.f_code is zero", "pass", "pytorch/test_clip_ranks.py -k refused",
    ),
    Mutant(
        "gradients that stay scaled", FALLBACK,
        "        for param, grad, _ in taken:\n            param.grad = grad\n", "",
        "pytorch/test_clip_option.py -k put_back",
    ),
    Mutant(
        "a sparse gradient with duplicates", FALLBACK,
        "grad = grad.coalesce().values()", "grad = grad._values()", "pytorch/test_clip_option.py -k joins",
    ),
    Mutant(
        "a norm that counts as no work", ENGINE,
        "        job.moved += job.blocks           # gradients are read twice\n", "", "test_engine.py -k one_region",
    ),
    Mutant(
        "a program that goes on clipping", GROUP,
        "or grad_scale != self.grad_scale or clips != self.clips:", "or grad_scale != self.grad_scale:",
        "test_clipping.py -k 'between_steps or groups_have'",
    ),
    Mutant(
        "a limit that is read twice", ENGINE,
        "        return limit\n\n    cdef bint collect", "        return float(now)\n\n    cdef bint collect",
        "test_clipping.py -k read_once",
    ),
    Mutant(
        "a schedule that returns 0", ENGINE,
        "        if not limit > 0:\n", "        if not limit >= 0:\n", "test_clipping.py -k bad_limits",
    ),
    Mutant(
        "the norm of a step before", ENGINE,
        "            self.clipped = self.sums\n", "            self.clipped = self.clipped or self.sums\n",
        "test_clipping.py -k between_steps",
    ),

    # --- Threads, and the floating-point environment
    Mutant(
        "workers keep their floating-point environment", WALK,
        "        saved = fo_fenv_enter()\n", "        pass\n", FOREIGN_MODE,
    ),
    Mutant(
        "workers' floating-point environment is not put back", WALK,
        "        fo_fenv_leave(saved)\n", "        pass\n", FOREIGN_MODE,
    ),
    Mutant(
        "the caller keeps its floating-point environment", "src_c/fastopt_fenv.h",
        "        _mm_setcsr(FO_MXCSR_DEFAULT);\n", "        (void)0;\n", FOREIGN_MODE,
    ),
    Mutant(
        "the caller's floating-point environment is not put back", "src_c/fastopt_fenv.h",
        "        _mm_setcsr(saved.csr);\n", "        (void)0;\n", FOREIGN_MODE,
    ),
    Mutant(
        "subnormals are zero", "src_c/fastopt_fenv.h",
        "#define FO_MXCSR_DEFAULT 0x1f80u", "#define FO_MXCSR_DEFAULT 0x9fc0u", bits("Lion"),
    ),
    Mutant(
        "small steps go to a team", TEAM,
        "if job.moved < serial_blocks or job.blocks < 2 or", "if job.blocks < 2 or", "test_engine.py -k one_region",
    ),
    Mutant(
        "late teams for ever", TEAM,
        "if n_threads > 1 and team.serial_left > 0:", "if False:", "test_engine.py -k too_late",
    ),
    Mutant(
        "as many threads as somebody grants", TEAM,
        "return <int>min(n, job.blocks, MOST_THREADS)", "return <int>min(n, job.blocks)",
        f"{GAPS} -k threads",
    ),
    Mutant(
        "threads beyond the CPUs of the process", THREADS,
        "n = min(n, fo_omp_bound_cpus() or fo_affinity_cpus())", "pass", "test_engine.py -k cpus_that_the_process",
    ),
    Mutant(
        "one place of OpenMP's for all of them", THREADS,
        "n = min(n, fo_omp_bound_cpus() or fo_affinity_cpus())", "n = min(n, fo_affinity_cpus())",
        "test_config.py -k bound",
    ),
    Mutant(
        "a CPU of two places counted twice", "src_c/fastopt_threads.c",
        "different += k == 0 || cpus[k] != cpus[k - 1];", "different += 1;", "test_config.py -k bound",
    ),
    Mutant(
        "the control group's quota is ignored", THREADS,
        "return min(n, quota) if quota else n", "return n", f"test_engine.py {GAPS} -k quota",
    ),
    Mutant(
        "a forked child does not know", "src_c/fastopt_threads.c",
        "    forked_child = 1;\n", "    forked_child = 0;\n", "test_engine.py -k forked",
    ),
    Mutant(
        "the CPUs of the machine for those of the process", "src_c/fastopt_threads.c",
        "        return CPU_COUNT(&fixed);\n", "        return 0;\n", "test_engine.py -k cpus_that_the_process",
    ),
    Mutant(
        "a thread that left a CPU may not come back", "src_c/fastopt_threads.c",
        "        sched_setaffinity(0, sizeof own, &own);\n", "        (void)0;\n",
        f"test_engine.py {GAPS} -k cpu",
    ),
    Mutant(
        "a level without one of its features", "src_c/fastopt_cpu.c",
        "#define V3_1_ECX (BIT(12) | BIT(22)", "#define V3_1_ECX (BIT(22)", f"{GAPS} -k features",
    ),
    Mutant(
        "registers that the system does not save", "src_c/fastopt_cpu.c",
        "ALL(seven.ebx, V4_7_EBX) && ALL(saved, V4_XCR0)", "ALL(seven.ebx, V4_7_EBX)", f"{GAPS} -k features",
    ),
    Mutant(
        "machines of more than 4096 CPUs", "src_c/fastopt_threads.c",
        "cpus <= (size_t)1 << 20", "cpus <= (size_t)1 << 12", f"{GAPS} -k cpus",
    ),
    Mutant(
        "one CPU where the system does not tell", "src_c/fastopt_threads.c",
        "        cpus = online_cpus();\n", "        cpus = 1;\n", f"{GAPS} -k cpus",
    ),
    Mutant(
        "the quota rounded down", OPENMP,
        "return max(1, -(-int(words[0]) // int(words[1])))", "return max(1, int(words[0]) // int(words[1]))",
        "test_engine.py -k quota",
    ),
    Mutant(
        "the widest quota of those above", OPENMP,
        "return min(found, default=None)", "return max(found, default=None)", "test_engine.py -k quota",
    ),
    Mutant(
        "the spin of OpenMP stays in the environment", OPENMP,
        "            os.environ.pop(name, None)\n", "            pass\n", "test_engine.py -k importing",
    ),
    Mutant(
        "FASTOPT_ISA is not heard", LEVELS,
        "    if wanted:\n", "    if False:\n", "test_engine.py -k unknown_level",
    ),
    Mutant(
        "kernels of another build", LEVELS,
        "if table.version != TABLE_VERSION:", "if False:", f"{GAPS} -k build",
    ),

    # --- The optimizers in Python
    Mutant(
        "options that the convention does not have", DECLARE,
        "        if group[key] != only:\n", "        if False:\n", "test_optimizer.py -k options_exist",
    ),
    Mutant(
        "eps_root beside any placement", DECLARE,
        'if group.get("eps_root", 0) != 0 and group.get("eps_placement", "outside") != "outside":', "if False:",
        "test_optimizer.py -k eps_root",
    ),
    Mutant(
        "eps_root edited unseen", DECLARE,
        'DECIDING = ("momentum", "eps_root",', 'DECIDING = ("momentum",', f"test_optimizer.py {GAPS} -k eps_root",
    ),
    Mutant(
        "decay of a kind that the convention does not have", DECLARE,
        "if offered.decay and decoupled not in offered.decay:", "if False:", "test_optimizer.py -k decay",
    ),
    Mutant(
        "anything is a flag", DECLARE,
        "fits, accepted = isinstance(value, (bool, np.bool_)),", "fits, accepted = True,", HYPER,
    ),
    Mutant(
        "zero stands for the default", DECLARE,
        "for key, value in given.items() if value is not None}}", "for key, value in given.items() if value}}",
        "test_optimizer.py -k 'option or library'",
    ),
    Mutant(
        "two parameters of one name", OPTIMIZER,
        "        if clash:\n", "        if False:\n", "test_optimizer.py -k malformed",
    ),
    Mutant(
        "a group with options that do not exist", OPTIMIZER,
        "refuse_unknown(type(self), [key for key in group if key not", "(lambda *_: None)(type(self), [key for key in "
        "group if key not",
        f"test_optimizer.py {GAPS} -k unknown",
    ),
    Mutant(
        "state of parameters that took no step", STATE,
        "if count == 0 and not from_start and not (LOW.name in arrays and arrays[LOW.name].any()):", "if False:",
        LOADING,
    ),
    Mutant(
        "low halves before the first step are not saved", STATE,
        " and not (LOW.name in arrays and arrays[LOW.name].any()):", ":", f"{LEAVES} -k low_halves_that_are_there",
    ),
    Mutant(
        "large counts in float32", STATE,
        "np.float32 if count <= LAST_FLOAT_COUNT else np.float64)", "np.float32)", LOADING,
    ),
    Mutant(
        "groups that count from 0 again", STATE,
        "        groups.append(packed)\n        first = last\n", "        groups.append(packed)\n", LOADING,
    ),
    Mutant(
        "schedules called from 0 in a copy", OPTIMIZER,
        'self._plan.set_steps(saved["state_dict"]["fastopt"]["steps"], 0)', "self._plan.set_steps(0, 0)",
        f"test_optimizer.py {GAPS} -k 'cop or pickle'",
    ),
    Mutant(
        "PyTorch's nesterov without momentum", SGD,
        "(still or not is_zero(group[\"dampening\"]))", "not is_zero(group[\"dampening\"])",
        "test_optimizer.py -k nesterov",
    ),
    Mutant(
        "a buffer that is new at the second step", DECLARE,
        'float(step > 1) if slot.like == "begun"', 'float(step > 2) if slot.like == "begun"', "test_functional.py",
    ),
    Mutant(
        "AMSGrad of the paper corrected", ADAM,
        'return {"bias_correction": False, "eps": 0.0}', 'return {"eps": 0.0}',
        "test_forms.py test_paper.py test_functional.py -k 'amsgrad or paper or path_of_the_class'",
    ),
    Mutant(
        "any product of momenta", STATE,
        "if not low <= number <= high:", "if number < low:", "test_state_dict.py -k product",
    ),

    # --- Loading a state dict
    Mutant(
        "one's own live state is overwritten while it is read", STATE,
        "if plan.state_factory is not None or plan.touches(fit[name]):", "if plan.state_factory is not None:", LOADING,
    ),
    Mutant(
        "state that a factory may hand out is not copied", STATE,
        "if plan.state_factory is not None or plan.touches(fit[name]):", "if plan.touches(fit[name]):",
        "test_hostile.py -k factory",
    ),
    Mutant(
        "a parameter that is listed twice", STATE,
        "if len(set(order)) != len(order):", "if False:", f"{LOADING} {GAPS}",
    ),
    Mutant(
        "state of a parameter in no group", STATE,
        "        if key not in listed:\n", "        if False:\n", f"{LOADING} {GAPS}",
    ),
    Mutant(
        "a dict of another version", STATE,
        'if "version" in own and not (is_number(own["version"]) and own["version"] in READABLE):', "if False:", LOADING,
    ),
    Mutant(
        "a dict of another optimizer", STATE,
        'own["optimizer"] in (name, *cls.family)):', "True):", LOADING,
    ),
    Mutant(
        "momentum that loads uphill", STATE,
        "lambda b, lr: -lr * b", "lambda b, lr: lr * b", MEANING,
    ),
    Mutant(
        "a conversion with another lr", STATE,
        "if rate != as_rate(lr, dtype):", "if False:", MEANING,
    ),
    Mutant(
        "state that means something else is left out", STATE,
        "keeps = ", "continue\n            keeps = ", MEANING,
    ),
    Mutant(
        "weight decay of another kind", STATE,
        "if kind is not None and here.get(merged[key], kind) != kind:", "if False:", MEANING,
    ),
    Mutant(
        "state goes by position where there are names", STATE,
        "names = saved_names(groups) if plan.named else None", "names = None", MEANING,
    ),
    Mutant(
        "a name that changed its group", STATE,
        "if source is None or set(own) != set(names[source]):", "if source is None:", MEANING,
    ),
    Mutant(
        "state of before a load that the loaded options have no slot for", ENGINE,
        "for name in dict.fromkeys([*recorded[k], *present])", "for name in recorded[k]", LOADING,
    ),
    Mutant(
        "an attribute that looks like an option is taken", OPTIMIZER,
        'if not (name.startswith("_") or _declares(type(self), name)):', "if False:", "test_attributes.py",
    ),
    Mutant(
        "a key of a group that looks like an option is taken", GROUP,
        "self.checked and (self.recheck or not same):", "False:", "test_attributes.py",
    ),
    Mutant(
        "state of another shape", STATE,
        "if array.shape != shape and not is_packed(array):", "if array.size != param.size:",
        "test_arrays.py test_state_dict.py -k refused",
    ),
    Mutant(
        "integers and text as state", STATE,
        "if array.dtype.kind not in kinds and not (narrow", "if False and not (narrow", "test_arrays.py -k bad_state",
    ),
    Mutant(
        "counts for other parameters", STATE,
        'if "counts" in own and len(', 'if False and len(', LOADING,
    ),
    Mutant(
        "counts as the state tells them", STATE,
        '    if "counts" in own:\n', "    if False:\n", LOADING,
    ),
    Mutant(
        "a count beyond what is left to count", STATE,
        "0 <= count <= LARGEST:", "0 <= count < 2**63:", f"{LOADING} {GAPS}",
    ),
    Mutant(
        "a step in the middle of loading", OPTIMIZER,
        "self._plan.run(load, type(self), self.convention, self._plan, state_dict, convert)",
        "load(type(self), self.convention, self._plan, state_dict, convert)", LOADING,
    ),

    # --- Checkpoint files
    Mutant(
        "streams go by place where state goes by name", STORED,
        "return [saved[place] for place in places]", "return list(saved)", f"{LEAVES} -k 'added_later or AdamW'",
    ),
    Mutant(
        "a seed of the optimizer's stays where the dict has none", STORED,
        'carried["seed"] = 0 if saved.get("seed") is None else saved["seed"]',
        'carried["seed"] = saved.get("seed", mine.get("seed"))',
        f"{LEAVES} -k storage_is",
    ),
    Mutant(
        "codes are taken in the other memory order", STORED,
        "        if same_order(packed, param):", "        if True:", f"{LEAVES} -k other_memory_order",
    ),
    Mutant(
        "a base may be one too large", STORED,
        "(bases & 0x7FFF) > np.where(bases >> 15, TOP - special, TOP - most)",
        "(bases & 0x7FFF) > np.where(bases >> 15, TOP - special, TOP - most) + 1", f"{LEAVES} -k damaged_state",
    ),
    Mutant(
        "state is encoded for the step to come", STORED,
        "loading.streams[i], loading.counts[i])", "loading.streams[i], loading.counts[i] + 1)",
        f"{LEAVES} -k last_step",
    ),
    Mutant(
        "state is rounded without a word", STORED,
        "    if not lossy:\n", "    if False:\n", f"{LEAVES} -k 'refused_unless or dropped_only'",
    ),
    Mutant(
        "a buffer that has not begun takes the low half with it", STATE,
        "if name in (AVERAGE.name, LOW.name)}", "if name == AVERAGE.name}", f"{LEAVES} -k before_a_buffer",
    ),
    Mutant(
        "bfloat16 is written as the uint16 that holds it", CHECKPOINT,
        '"uint16": "bfloat16"', '"uint16": "uint16"', f"{LEAVES} -k with_and_without",
    ),
    Mutant(
        "decay of bitsandbytes' Adam is added to the gradient", EXCHANGE,
        'options["decoupled_weight_decay"] = form.decay == DECOUPLED', 'options["decoupled_weight_decay"] = False',
        f"{LEAVES} -k brings_its_options",
    ),
    Mutant(
        "mirrors wait for the step after a load", ENGINE,
        "            self.write_mirrors(group)     # of parameters that have got other low halves\n", "",
        f"{LEAVES} -k mirrors_show",
    ),
    Mutant(
        "streams stay those of before", ENGINE,
        "self.params[i].stored.stream = self.streams[i]", "pass", f"{LEAVES} -k 'another and AdamW'",
    ),
    Mutant(
        "a header that was changed", CHECKPOINT,
        "if hashlib.sha256(length + header.replace(found[0], BLANK, 1)).hexdigest().encode() != found[0]:",
        "if False:", "proof/test_damaged_files.py -k flipped",
    ),
    Mutant(
        "an array that was changed", CHECKPOINT,
        'if sha256(array) != value["$sha256"]:', "if False:", "proof/test_damaged_files.py -k flipped",
    ),
    Mutant(
        "a file of another version", CHECKPOINT,
        'document["version"] not in READABLE:', "False:", FORGED,
    ),
    Mutant(
        "a file with two digests", CHECKPOINT,
        "if len(found) != 1:", "if not found:", f"{GAPS} -k digests",
    ),
    Mutant(
        "arrays of nobody in the file", CHECKPOINT,
        "    if arrays:\n", "    if False:\n", FORGED,
    ),
    Mutant(
        "bytes of nobody in the file", CHECKPOINT,
        "    if at != size:\n", "    if False:\n", "proof/test_damaged_files.py -k 'cut_anywhere'",
    ),
    Mutant(
        "a file that is written over, not replaced", CHECKPOINT,
        "os.replace(temporary, target)", "shutil.copyfile(temporary, target)", "test_checkpoint.py -k hard_link",
    ),
    Mutant(
        "a file that need not reach the disk", CHECKPOINT,
        "        file.flush()\n        os.fsync(file.fileno())\n", "", "proof/test_killed_saves.py -k reaches",
    ),
    Mutant(
        "what a failed save wrote is left", CHECKPOINT,
        "                remove(folder)\n        finally:\n", "                pass\n        finally:\n",
        "test_checkpoint.py -k interrupted_save",
    ),
    Mutant(
        "what another is just saving is taken for a leftover", CHECKPOINT,
        "        if lock is not None and lock >= 0:\n            remove(folder)\n            os.close(lock)\n",
        "        remove(folder)\n", AT_THE_SAME_TIME,
    ),
    Mutant(
        "what others keep in a folder is removed, too", CHECKPOINT,
        'os.path.join(glob.escape(folder), ".tmp*")', 'os.path.join(glob.escape(folder), "*")',
        "test_checkpoint.py -k only_looks_like",
    ),
    Mutant(
        "a header that is too long to be read", CHECKPOINT,
        "        if length > LARGEST_HEADER:\n", "        if False:\n", "test_checkpoint.py -k could_not_be_read_again",
    ),
    Mutant(
        "the mode of the file that is replaced", CHECKPOINT,
        "        os.chmod(temporary, stat.S_IMODE(mode))\n", "", "test_checkpoint.py -k mode_of_new_files",
    ),
    Mutant(
        "a link is replaced by a file", CHECKPOINT,
        "os.path.realpath(name)", "os.path.abspath(name)", "test_checkpoint.py -k what_a_link",
    ),
    Mutant(
        "a folder or a pipe is replaced by a file", CHECKPOINT,
        "if not stat.S_ISREG(mode):", "if False:", "test_checkpoint.py -k places",
    ),
    Mutant(
        "a schedule that two groups share is two", CHECKPOINT,
        "if id(value) not in self.known:", "if True:", "test_checkpoint.py -k plateau_goes_on",
    ),

    # --- Functions
    Mutant(
        "step 0", FUNCTIONAL,
        "if not 1 <= count < 2**63:", "if not 0 <= count < 2**63:", "test_functional.py",
    ),
    Mutant(
        "schedules one step ahead", FUNCTIONAL,
        "plan.set_steps(count - 1, 0)", "plan.set_steps(count, 0)", f"test_functional.py {GAPS}",
    ),
    Mutant(
        "a skipped step that says it was taken", FUNCTIONAL,
        "return plan.skipped == 0", "return True", "test_functional.py",
    ),
    Mutant(
        "a product in the memory of a parameter", FUNCTIONAL,
        "        if plan.touches(array):\n", "        if False:\n", "test_functional.py",
    ),
    Mutant(
        "a product in the memory of a gradient", ENGINE,
        "if not memory.is_free(w.g, w.g + grad_bytes(w.q)):", "if False:",
        "test_hostile.py -k product",
    ),
    Mutant(
        "a product that is read-only", FUNCTIONAL,
        "    if not array.flags.writeable:\n", "    if False:\n", f"test_functional.py {GAPS}",
    ),

    # --- Borrowed arrays
    Mutant(
        "an average of a known call that begins at every step", BORROW,
        "q.begun = begun", "q.begun = False", "test_borrowed.py -k 'whole_step_is or begins'",
    ),
    Mutant(
        "an average of a new plan that begins at every step", BORROW,
        "self.params[i].begun = self.has_begun(t + 1)", "self.params[i].begun = False",
        "test_borrowed.py -k 'whole_step_is or begins'",
    ),
    Mutant(
        "an average that begins one step late", BORROW,
        "step > max(group.hyper.ema_start, 1)", "step > max(group.hyper.ema_start, 1) + 1",
        "test_borrowed.py -k 'whole_step_is or begins'",
    ),
    Mutant(
        "read-only gradients of a known call zeroed", BORROW,
        "flags = cnp.NPY_ARRAY_WRITEABLE if self.zeroes else 0", "flags = 0",
        "test_borrowed.py -k 'apart_and_writable or whatever'",
    ),
    Mutant(
        "gradients of a known call zeroed that share memory", BORROW,
        "            self.check_gradients_apart(job)\n", "            pass\n",
        "test_borrowed.py -k 'apart_and_writable or whatever'",
    ),
    Mutant(
        "gradients of a skipped step left as they are", ENGINE,
        "                zero_gradients(job)\n", "                pass\n",
        "test_borrowed.py -k 'whole_step_is or whatever'",
    ),
    Mutant(
        "gradients of a skipped step zeroed after they are given up", ENGINE,
        "            if job.found:\n                zero_gradients(job)\n        finally:\n            if keep_refs:\n"
        "                for i in range(job.n_work):\n                    Py_XDECREF(job.work[i].grad)\n",
        "        finally:\n            if keep_refs:\n                for i in range(job.n_work):\n"
        "                    Py_XDECREF(job.work[i].grad)\n        if job.found:\n            zero_gradients(job)\n",
        "test_borrowed.py -k given_up",
    ),
    Mutant(
        "grad_scale of a known call that is not checked", BORROW,
        "return isfinite(scale) and scale > 0", "return True", "test_borrowed.py -k 'bad_binding or whatever'",
    ),
    Mutant(
        "the grad_scale of the call before", BORROW,
        "        self.grad_scale = scale\n", "", "test_borrowed.py -k 'whole_step_is or whatever'",
    ),
    Mutant(
        "a limit that is a schedule, kept", BORROW,
        "and (self.clip_norm is None or type(self.clip_norm) is float)", "", "test_borrowed.py",
    ),
    Mutant(
        "one option around the rule alone, overlooked where a group has no parameters", GROUP,
        'len({*self.keys}) + ("params" in self.options)', "len({*self.keys}) + 1",
        "test_whole_step.py -k by_itself",
    ),
    Mutant(
        "averages that begin as zero", FUNCTIONAL,
        'if name == AVERAGE.name and convention != "thinc":', "if False:", "test_borrowed.py -k state",
    ),
    Mutant(
        "a skipped step of a known call that says it was taken", BORROW,
        "return done == 1", "return True", "test_borrowed.py -k skipped",
    ),
    Mutant(
        "a state that is another one left where it was", BORROW,
        "q.s[k], self.in_order = data, False", "self.in_order = False", "test_borrowed.py",
    ),
    Mutant(
        "arrays exchanged without looking for overlaps", BORROW,
        "            if x[i - 1].high > x[i].low:\n                return False\n", "            pass\n",
        "test_borrowed.py -k 'view or exchanged or whatever'",
    ),
    Mutant(
        "gaps remembered although arrays were exchanged", BORROW,
        "self.params[i].gap_low = self.params[i].gap_high = NULL", "pass", "test_borrowed.py -k whatever",
    ),
    Mutant(
        "read-only state of a known call", BORROW,
        "(cnp.PyArray_CheckExact(<object>array) and fits(array, q, cnp.NPY_ARRAY_WRITEABLE))",
        "(cnp.PyArray_CheckExact(<object>array) and fits(array, q, 0))", "test_borrowed.py -k whatever",
    ),
    Mutant(
        "the step of the call before", BORROW,
        "q.t = call.step - 1", "pass", "test_borrowed.py -k 'path_of_the_class or whatever'",
    ),
    Mutant(
        "a number that was kept not written", BORROW,
        "(<double *>at.data)[0] = number", "pass", "test_borrowed.py -k numbers",
    ),
    Mutant(
        "a number written after its array is given up", BORROW,
        "            self.give_numbers(job)\n        finally:\n            for i in range(n):\n"
        "                Py_XDECREF(self.refs[i])",
        "        finally:\n            for i in range(n):\n"
        "                Py_XDECREF(self.refs[i])\n        self.give_numbers(job)",
        "test_borrowed.py -k given_up",
    ),
    Mutant(
        "a plan with a schedule kept", BORROW,
        "group.alike and group.settled and", "group.alike and", "test_borrowed.py -k 'read_once or lists_of'",
    ),
    Mutant(
        "another float taken for the one of the call before", BORROW,
        "return memcmp(&x, &y, sizeof(double)) == 0", "return True", "test_borrowed.py",
    ),
    Mutant(
        "arrays kept alive by a function", BORROW,
        "self.arrays = self.states = None", "pass", "test_borrowed.py -k alive",
    ),
    Mutant(
        "another lr, the same stages", BORROW,
        "    group.stale = True\n", "", "test_borrowed.py",
    ),
    Mutant(
        "a rebound array that is not looked for among gradients", ENGINE,
        "            self.remap(memory)\n            self.write_mirror(q)\n", "            self.write_mirror(q)\n",
        "test_borrowed.py -k rebound",
    ),

    # --- Tensors
    Mutant(
        "a large step holds no gradients", TENSORS,
        "large = fits == 1 and is_large(job)", "large = False", "pytorch/test_tensors.py -k another_thread_drops",
    ),
    Mutant(
        "versions that are not counted", TENSORS,
        "                fo_shim_bump(&self.shim, binding.owner)\n", "                pass\n",
        "pytorch/test_tensors.py -k versions_count",
    ),
    Mutant(
        "an inference tensor with other data is found when it is written to", TENSORS_H,
        "        || (s->version_counter != NULL && *s->version_counter(handle) == NULL) ||", "        ||",
        "pytorch/test_tensors.py -k usual_way_too",
    ),
    Mutant(
        "slots of large tensors that lie as the parameter does", ARENA,
        "like = (<Py_ssize_t>t.data & ~(BLOCK - 1)) + (place + 1) * (PAGE // 4)",
        "like = <Py_ssize_t>t.data & ~(BLOCK - 1)",
        "pytorch/test_tensors.py -k side_by_side",
    ),
    Mutant(
        "state of empty tensors at the address of a neighbour", ARENA,
        "        if size == 0:", "        if False:",
        "pytorch/test_tensors.py -k empty_tensors",
    ),
    Mutant(
        "a piece of pages for one small tensor", ARENA,
        "lone = known is None and like < 0", "lone = False", "pytorch/test_tensors.py -k takes_no_more",
    ),
    Mutant(
        "a large tensor displaces the piece that others share", ARENA,
        "        if at.size <= self.most:", "        if True:", "pytorch/test_tensors.py -k displaces",
    ),
    Mutant(
        "state that the plan keeps alive", ARENA,
        "weak_reference(piece)", "piece.__array__", "pytorch/test_tensors.py -k given_back",
    ),
    Mutant(
        "memory let go of twice where PyTorch makes no tensor of it", TENSORS_H,
        "    if (!gone) /* it", "    if (1) /* it", "pytorch/test_tensors.py -k is_not_made",
    ),
    Mutant(
        "memory kept for ever where PyTorch makes no tensor of it", TENSORS_H,
        "    if (!gone) /* it", "    if (0) /* it", "pytorch/test_tensors.py -k is_not_made",
    ),
    Mutant(
        "the compiler looks into what a kept plan asks for", "fastopt/torch.py",
        "    spec_of, record_of, Host.local, Host.fit, Host.finish, Host.is_read, Host.check_each, "
        "Host.check_zeroing,\n    Host.check_zeroed, Host.zero, Host.mirror_of,  # which", "    # which",
        "pytorch/test_compile.py -k kept_plan_asks",
    ),

    # --- Schedules
    Mutant(
        "a warm-up that is one step longer", SCHEDULES,
        "        if step < self.steps:\n", "        if step <= self.steps:\n", "test_schedules.py",
    ),
    Mutant(
        "stairs one step after the milestone", SCHEDULES,
        "bisect_right(self.milestones, step))", "bisect_right(self.milestones, step - 1))", "test_schedules.py",
    ),
    Mutant(
        "the next schedule one step after the boundary", SCHEDULES,
        "i = bisect_right(self.boundaries, step)", "i = bisect_right(self.boundaries, step - 1)", "test_schedules.py",
    ),
    Mutant(
        "a restart one step late", SCHEDULES,
        "while step >= period:", "while step > period:", "test_schedules.py",
    ),
    Mutant(
        "a curve that nearly begins at its value", SCHEDULES,
        "return a if w == 1.0 else b + (a - b) * w", "return b + (a - b) * w", "test_schedules.py",
    ),
    Mutant(
        "a decay that goes on beyond its end", SCHEDULES,
        "left = max(self.total_steps - step, 0) / self.total_steps",
        "left = abs(self.total_steps - step) / self.total_steps", "test_schedules.py",
    ),
    Mutant(
        "a phase of no length", SCHEDULES,
        "        if step == peak:  # said apart, since a phase can have no length\n", "        if False:\n",
        "test_schedules.py",
    ),
    Mutant(
        "patience that ends one update early", SCHEDULES,
        "if self.bad_updates > self.patience:", "if self.bad_updates >= self.patience:", "test_schedules.py",
    ),
    # --- Tensors: their tests need PyTorch
    Mutant(
        "gradients that share memory are clipped twice in one pass", CLIPPING,
        "return self.memory.sort() == 0 ", "return self.memory.sort() >= 0 ", "pytorch/test_clip_functions.py",
    ),
    Mutant(
        "a norm that is not finite is an error after the write", CLIPPING,
        "if isfinite(norm) or not only_finite:", "if True:", "pytorch/test_clip_functions.py",
    ),
    Mutant(
        "clipped gradients count no version", CLIPPING,
        "fo_shim_bump(&self.shim, PyList_GET_ITEM(<PyObject *>grads, i))", "pass",
        "pytorch/test_clip_functions.py",
    ),
    Mutant(
        "gradients are enlarged to the norm", CLIPPING,
        "RESCALE, 1 if factor > 1 else factor, 0, grads)", "RESCALE, factor, 0, grads)",
        "pytorch/test_clip_functions.py",
    ),
    Mutant(
        "a gradient with gaps is clipped as if it had none", CLIPPING,
        "        if not found:\n            return -1\n", "        if not found:\n            break\n",
        "pytorch/test_clip_functions.py",
    ),
    Mutant(
        "an average of another shape changes places", TENSORS_PY,
        "    if (average.shape, average.layout) != (param.shape, param.layout) or average.dtype",
        "    if average.layout != param.layout or average.dtype", f"{WHOLE} -k change_places",
    ),
    Mutant(
        "an average of inference mode changes places", TENSORS_PY,
        "for tensor, name in ((average, what), (param, label)):", "for tensor, name in ((param, label),):",
        f"{WHOLE} -k 'change_places or checked_before_it'",
    ),
    Mutant(
        "gradients in the memory of a parameter are zeroed", TENSORS_PY,
        "if (one[4] or other[4]) and share(", "if one[4] and other[4] and share(", f"{WHOLE} -k memory_of_a_parameter",
    ),
    Mutant(
        "sparse gradients of two parameters are zeroed twice", TENSORS_PY,
        "if zeroed and seen.setdefault(id(tensor), label) is not label:", "if False:", f"{WHOLE} -k of_all_kinds",
    ),
    Mutant(
        "a view in a graph is detached after the step", TENSORS_PY,
        "if grad.grad_fn is not None and grad._is_view():", "if False:", f"{WHOLE} -k view_in_a_graph",
    ),
    Mutant(
        "a skipped step zeroes without looking", FALLBACK,
        "    if grads:\n        Host.check_zeroed(grads, params)\n", "", f"{WHOLE} -k 'skipped or of_all_kinds'",
    ),
    Mutant(
        "an average beside PyTorch's step stays of the type before a cast", FALLBACK,
        "        kept = kept.to(dtype)  # of", "        pass  # of", f"{WHOLE} -k checked_before_it",
    ),
    Mutant(
        "an average beside PyTorch's step that began before its first step is forgotten", FALLBACK,
        "if kept is None and start == 0:", "if False:", f"{WHOLE} -k pytorchs_step_from_the_start",
    ),
    Mutant(
        "a sparse parameter has an average", FALLBACK,
        "    if param.layout != torch.strided:\n        raise TensorLayoutError(f\"ema_decay",
        "    if False:\n        raise TensorLayoutError(f\"ema_decay", f"{WHOLE} -k sparse_parameters",
    ),
    Mutant(
        "a step of another thread that was let in while averages came goes on", "fastopt/torch.py",
        "        self._refuse_averaged(\"step()\")\n        ranks = ", "        ranks = ",
        f"{WHOLE} -k takes_no_step_inside",
    ),
    Mutant(
        "the counts of fastopt's SGD are lost", "fastopt/torch.py",
        "if count and (saved.get(\"ema_decay\") is not None or", "if count and (",
        f"{WHOLE} -k 'go_to_and_come_from and SGD'",
    ),
    Mutant(
        "SGD needs state for averages of a model", "fastopt/torch.py",
        "if counts and not self.state.get(param):", "if not self.state.get(param):", f"{WHOLE} -k whole_or_not",
    ),
    Mutant(
        "ZeroRedundancyOptimizer zeroes its own part", "fastopt/torch.py",
        "if self._in_zero and group.get(\"zero_grads\"):", "if False:", "pytorch/test_clip_ranks.py -k no_norm_each",
    ),
    Mutant(
        "shards are clipped each by its norm", TENSORS_PY,
        "return any(mesh.size(dim) > 1 and not placement", "return any(mesh.size(dim) > 99 and not placement",
        "pytorch/test_clip_ranks.py -k no_norm_each",
    ),
    Mutant(
        "a copy that fails in the middle loses the parameter", ENGINE,
        "        copy(first, kept)\n        raise\n", "        raise\n", f"{WHOLE} -k copy_that_fails",
    ),
    Mutant(
        "a plan steps averages", TENSORS,
        "        if self.paused:\n", "        if False:\n", f"{WHOLE} -k takes_no_step_inside",
    ),
    Mutant(
        "gradients are kept after they were zeroed", TENSORS,
        "            self.leave()\n            self.to_zero = None\n", "            self.leave()\n",
        f"{WHOLE} -k no_gradient_is_kept",
    ),
    Mutant(
        "random numbers by the place among what is stepped compiled", TENSORS,
        "        q.stored.stream = self.streams[i]\n", "        q.stored.stream = i\n",
        f"{TORCH_STORED} -k by_the_place",
    ),
    Mutant(
        "options of storage that were edited are not noticed", TENSORS,
        "if storage_of(fresh) != storage_of(group):", "if False:",
        f"{TORCH_STORED} -k 'layout_of_state or seed_can_be_edited'",
    ),
    Mutant(
        "stochastic rounding without a count of steps", TORCH,
        "counted = averages or draws(spec)", "counted = averages",
        f"{TORCH_STORED} -k 'of_one_seed or seed_can_be_edited'",
    ),
    Mutant(
        "codes that follow a parameter into another order of memory", TORCH,
        "if self._orders.get(param, order) != order:", "if False:", f"{TORCH_STORED} -k do_not_follow",
    ),
    Mutant(
        "codes of another order of memory are taken over", TORCH_STATE,
        "            if order == order_of(own):", "            if True:", f"{TORCH_STORED} -k in_which_order",
    ),
    Mutant(
        "tensors lose bits without being allowed to", STORED,
        "    if not lossy:\n        raise", "    if False:\n        raise", f"{TORCH_STORED} -k loses_bits",
    ),
    Mutant(
        "the seed of a state dict is not taken over", TORCH,
        "rounds = carried_options(mine, saved)", "rounds = {}", f"{TORCH_STORED} -k 'goes_on_to_the_bit and AdamW'",
    ),
    Mutant(
        "numbers of bfloat16 parameters rounded by loading", TORCH,
        "            if param.dtype == torch.bfloat16:  # in which", "            if False:  # in which",
        f"{TORCH_STORED} -k 'goes_on_to_the_bit and NAdam'",
    ),
    Mutant(
        "float64 state in 8 bits", TORCH,
        "    if own.dtype == torch.float64:\n        raise", "    if False:\n        raise",
        f"{TORCH_STORED} -k float64_is",
    ),
    Mutant(
        "what is left to PyTorch is not stored as asked", TORCH,
        "for key in LAYOUT if self._stores([group]) else ():", "for key in ():",
        f"{TORCH_STORED} -k in_another_way",
    ),

    # --- Parameters, gradients and state in fewer bits
    Mutant(
        "a thread begins in the middle of a block", STORAGE,
        "    first -= first % FORMAT_TILE\n    last -= last % FORMAT_TILE if last < n else 0\n    if stored.p",
        "    if stored.p", "test_storage.py -k cuts_and_threads",
    ),
    Mutant(
        "codes lie where the bases are", STORAGE,
        "            a[k] += beside_bytes(stored.s[k], n)\n", "", "test_storage.py -k 'bits_of_their_twin and Adam'",
    ),
    Mutant(
        "an average follows what was rounded away", STORAGE,
        "and (stored.mirror != NULL or program.mean >= 0)", "and stored.mirror != NULL",
        "test_storage.py -k 'bits_of_their_twin and Adam'",
    ),
    Mutant(
        "a mirror shows what was rounded away", STORAGE,
        "and (stored.mirror != NULL or program.mean >= 0)", "and program.mean >= 0",
        "test_storage.py -k 'bits_of_their_twin and Adam'",
    ),
    Mutant(
        "all state of a parameter has the same random numbers", STORAGE,
        "keys[k] = stream_key(stored.seed, stored.stream, stored.names[k]",
        "keys[k] = stream_key(stored.seed, stored.stream, stored.name",
        "test_storage.py -k 'bits_of_their_twin and Adam'",
    ),
    Mutant(
        "the seed is the same for all", STORAGE,
        "parts[3] = seed, stream, name, t", "parts[3] = 0, stream, name, t", "test_storage.py -k same_seed",
    ),
    Mutant(
        "all parameters have the same random numbers", OPERANDS,
        "stored.stream, stored.name = <uint32_t>i, ", "stored.stream, stored.name = 0, ",
        "test_storage.py -k same_seed",
    ),
    Mutant(
        "the lower half of an average is lost in its parameter's place", STORAGE,
        "kept[i] = <uint32_t>halves[i] << 16 | <uint16_t>low[i]", "kept[i] = <uint32_t>halves[i] << 16",
        "test_storage.py -k averages_change_places",
    ),
    Mutant(
        "a state dict in the place of averages has their lower halves", ENGINE,
        "                    state[LOW_SLOT] = low\n", "                    pass\n",
        "test_storage.py -k averages_change_places",
    ),
    Mutant(
        "a mirror stays as it was while averages are in place", STORAGE,
        "        if stored.mirror != NULL:\n            put(stored.copy, stored.mirror, NULL, loaded(",
        "        if False:\n            put(stored.copy, stored.mirror, NULL, loaded(",
        "test_storage.py -k averages_change_places",
    ),
    Mutant(
        "a short gradient is zeroed in part", STORAGE,
        "memset(g + at * width, 0, size * width)", "memset(g + at * width, 0, size)",
        "test_storage.py -k 'bits_of_their_twin and SGD'",
    ),
    Mutant(
        "gradients to be zeroed are known by their place alone", ENGINE,
        " and self.apart[i].n == grad_bytes(w.q)\n", "\n", "test_storage.py -k zeroed_gradients_share",
    ),
    Mutant(
        "a gradient is taken to be as long as a float32", WALK,
        "    return q.n * q.stored.g.size if", "    return q.n << shift_of(q) if", "test_storage.py -k right_behind",
    ),
    Mutant(
        "a gradient is read in the format of the last one", ENGINE,
        "        q.stored.g = format\n", "        if format != NULL:\n            q.stored.g = format\n",
        "test_storage.py -k 'another_type or long_ones'",
    ),
    Mutant(
        "squares are rounded to the nearest beside float32", ARRAYS,
        'BFLOAT16_STOCHASTIC if kind.narrow == "square" else BFLOAT16\n    if kind.storage is None',
        "BFLOAT16\n    if kind.storage is None",
        "test_storage.py -k 'bits_of_their_twin and Adam'",
    ),
    Mutant(
        "a mirror is written before the low halves are", ENGINE,
        "                    self.write_mirrors(group)\n", "", "test_storage.py -k mirror_is_a_copy",
    ),
    Mutant(
        "a mirror that was moved is written to", ENGINE,
        "        self.check_mirror(q)\n        self.add_work", "        self.add_work",
        "test_storage.py -k changed_later",
    ),
    Mutant(
        "first values are written without their block", OPERANDS,
        "q.s[k] + beside_bytes(q.stored.s[k], q.n), program_stored", "q.s[k], program_stored",
        "test_storage.py -k first_values",
    ),
    Mutant(
        "lookahead forgets the low halves", STORAGE,
        "program.rule.f32(target, loaded(stored.p, room[2], p, stored.low, at, size)",
        "program.rule.f32(target, loaded(BFLOAT16 if stored.p != NULL else NULL, room[2], p, NULL, at, size)",
        "test_storage.py -k lookahead",
    ),
    Mutant(
        "state_dtype can be edited", ENGINE,
        "if before != after and (before or after):", "if False:", "test_storage.py -k cannot_be_edited",
    ),
    Mutant(
        "a function takes bfloat16 and float16", BORROW,
        "        self.plain = True\n", "        pass\n", "test_storage.py -k functions_step",
    ),
]  # fmt: skip
"""In the order of what has to be built for them: little changes from one to the next."""
