# Hyperparameters: from the dict that the user edits to the numbers that a rule takes.

def is_number(value):
    """Whether a value is one real number in the range of a double: a scalar, a 0-d array, a tensor of one element."""
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and value.dtype.kind in "fiu" and not isinstance(value, np.ma.MaskedArray)
    if hasattr(value, "__dlpack__") and not isinstance(value, np.generic):
        try:
            value = value.item()
        except Exception:             # whatever a foreign type raises where there is more than one element
            return False
    if isinstance(value, bool) or not isinstance(value, FIXED):
        return False
    try:
        float(value)
    except OverflowError:             # an int beyond the largest double
        return False
    return True


def plain_key(options, tuple names, *more):
    """A key for what depends on these options, by name, and `more` values alone; None if they can make no such key.

    Where two keys are equal, all values are, and their types, too: 1, 1.0 and True are equal. So only None, bool, int,
    float and str make a key, flat tuples of them, and names that a dict lacks; but not -0.0, which is equal to 0.0.
    """
    cdef list key = []
    cdef PyObject *value
    if type(options) is not dict:
        return None
    for name in names:
        value = PyDict_GetItemWithError(options, name)
        if value == NULL:
            key.append(...)
        elif not add_plain(key, <object>value):
            return None
    for one in more:
        if not add_plain(key, one):
            return None
    return tuple(key)


cdef bint add_plain(list key, value) except -1:
    """Append a value and its type to a key; False if it is not plain."""
    kind = type(value)
    if kind is tuple:
        key.append(len(value))        # before its items: where they end has to be in the key
        for item in <tuple>value:     # none of which is a tuple: of many, one in the other, the stack would overflow
            if type(item) is tuple or not add_plain(key, item):
                return False
    elif kind is float:
        if value == 0 and copysign(1.0, value) < 0:
            return False
        key.append(value)
    elif kind is bool or kind is int or kind is str or value is None:
        key.append(value)
    else:
        return False
    key.append(kind)
    return True


MOST_NUMBERS = MAX_NUMBERS        # that a parameter carries from step to step
MOST_STATES = MAX_STATES          # arrays of one parameter


def shape_like(str like, shape):
    """The shape of a state array of a parameter of this shape: see `Slot.like` in declare.py."""
    cdef tuple sizes = tuple(shape)
    cdef Py_ssize_t n = len(sizes)
    if like == "parameter":
        return sizes
    if like == "row":
        return sizes[:max(n - 1, 0)]
    if like == "column":
        return sizes[:max(n - 2, 0)] + sizes[max(n - 1, 0):]
    return (1,)


SCHEDULABLE = ("lr", "betas", "momentum", "weight_decay")
# Options that are pairs -> what rules call the two numbers.
PAIRS = {"betas": ("beta1", "beta2"), "etas": ("eta_minus", "eta_plus"), "step_sizes": ("step_min", "step_max")}
FIXED = (int, float, np.integer, np.floating)     # numbers that cannot change by themselves
MEAN_SLOT = "ema"                 # what the average of a parameter is called in its state
LOW_SLOT = "low"                  # and what a bfloat16 parameter lacks of a float32
AROUND = ("clip_value", "clip_norm_each", "ema_decay", "ema_start", "zero_grads")     # what a group may have or not,
STORAGE = ("state_dtype", "split", "rounding", "seed", "param_dtype", "grad_dtype")   # and these: see storage.pxi


cdef enum:
    MAX_WATCH = 32
    NUMBER = 0                        # kinds of what is watched in a group
    PAIR = 1
    OPTION = 2

NO_SCHEDULES = -1                     # in the place of the steps taken: where a schedule is an error
cdef int no_schedules = NO_SCHEDULES
LEAST_EPS = 2.0**-31                  # one that no faded average of squares reaches up to: see MOMENT in optimizer.py
cdef double least_eps = LEAST_EPS
cdef double LAST_COUNT = 2.0**53  # up to here float64 counts


cdef struct Bounds:                   # a `Range` of declare.py
    double low
    double high
    bint above                        # whether low itself is excluded,
    bint below                        # or high


cdef inline bint is_within(double x, const Bounds *b) noexcept:
    return isfinite(x) and (x > b.low if b.above else x >= b.low) and (x < b.high if b.below else x <= b.high)


cdef int read_numbers(double *numbers, tuple values) except -1:
    """Numbers that a parameter carries, from a tuple; 0 for those left out. All of them, or an error and none."""
    cdef double read[MAX_NUMBERS]
    cdef Py_ssize_t k
    if len(values) > MAX_NUMBERS:
        raise RuntimeError("MAX_NUMBERS in table.pxd is too small")
    for k in range(MAX_NUMBERS):
        read[k] = values[k] if k < len(values) else 0.0
    copy_numbers(numbers, read)
    return 0


cdef int pair_place(spec, dict places, str first, str second) except -3:
    """Where a rule has the two numbers of a pair, one after the other; -2 if it takes neither."""
    cdef int place
    if first not in places and second not in places:
        return -2
    place = places.pop(first, -2)
    if places.pop(second, -2) != place + 1 or place < 0:
        raise DeclarationError(f"{spec.owner}: the rule {spec.rule!r} has to take {first!r} and {second!r} in turn")
    return place


cdef class Group:
    """The hyperparameters of one parameter group: read from its dict, checked, and given to the rule in its order.

    They are read again only if the dict holds another object than last time, or one that can change by itself: a
    schedule (called at every step), a list, or an array.
    """
    cdef public dict options
    cdef readonly object params       # what the dict calls its parameters
    cdef public list slots            # names of the state slots, in the order of the rule
    cdef readonly object kinds        # their names, and those of slots that other options have left -> `Slot`
    cdef int n_slots                  # how many of them it has from the start
    cdef bint alike                   # whether all of them, and of those that are left, are like the parameter
    cdef unsigned int copied          # a bit for each of them that starts as a copy of the parameter
    cdef Hyper hyper
    cdef Program program
    cdef Program stored               # the same over arrays some of which have a format
    cdef readonly object storage      # see `Storage` in declare.py, or None
    cdef bint grad_is_bfloat16        # whether gradients of uint16 hold bfloat16
    cdef int low                      # the place of the low halves among the slots, -1 for none
    cdef int mean                     # the place of the average among the slots, -1 for none
    cdef object clip_norm             # of the plan
    cdef bint around                  # whether one of the options in AROUND was given
    cdef bint are_whole               # whether norms can be taken of its tensors by themselves, as far as was asked
    cdef bint stale                   # whether hyperparameters were read since it was compiled
    cdef double grad_scale            # that it was compiled for,
    cdef bint clips                   # and whether all gradients are clipped by their norm
    cdef Scaled faded                 # per state slot: below it the state is flushed
    cdef bint flushes                 # whether faded state is flushed, unless eps is too small
    cdef int eps, eps_root            # their places in x; -1 where the rule has none
    cdef double numbers[MAX_NUMBERS]  # that a new parameter carries
    cdef Py_ssize_t first, n_params
    cdef int n_watch
    cdef Py_ssize_t n_own             # entries of a dict that has nothing but the class's own
    cdef tuple keys
    cdef list seen                    # options as of the spec
    cdef bint settled                 # whether no schedule, list or array is among them
    cdef list before
    cdef int n_before
    cdef PyObject *key_before[MAX_WATCH]
    cdef PyObject *value_before[MAX_WATCH]
    cdef int kind[MAX_WATCH]
    cdef int target[MAX_WATCH]        # place in x; -1 weight_decay; -2 nowhere
    cdef Bounds bounds[MAX_WATCH][2]  # of each: what is accepted for its one or two numbers,
    cdef list ranges                  # and the same for messages
    cdef str owner
    cdef object check_keys            # see Spec; None if there is nothing to check
    cdef bint checked                 # whether the keys are those of a new group, or were checked
    cdef bint recheck                 # whether their values have to be, too

    def __cinit__(self):
        self.n_watch = 0
        self.n_before = -1

    cdef adopt(self, spec):
        """Take over what the optimizer class derived from the group's options (see `Spec` in declare.py)."""
        cdef const Rule *rule = find_rule(spec.rule)
        cdef list watch = []
        places = {name: i for i, name in enumerate((<bytes>rule.hyper).decode().split())}
        self.eps, self.eps_root = places.get("eps", -1), places.get("eps_root", -1)
        for key, limits in spec.limits.items():
            if key == "weight_decay":
                watch.append((key, NUMBER, -1, limits))
            elif key in PAIRS:
                first, second = PAIRS[key]
                watch.append((key, PAIR, pair_place(spec, places, first, second), limits))
            else:
                watch.append((key, NUMBER, places.pop(key, -2), limits))
        for name in list(places):
            if name not in spec.forms:
                raise DeclarationError(f"{spec.owner}: the rule {spec.rule!r} needs {name!r}, which is neither a "
                                       "hyperparameter of the class nor a constant in the convention's forms")
            self.hyper.x[places.pop(name)] = spec.forms[name]
        for key in spec.watched:
            watch.append((key, OPTION, -2, ()))
        self.adopt_state(spec, rule)
        self.storage = spec.storage
        self.grad_is_bfloat16 = spec.storage is not None and spec.storage.grad_is_bfloat16
        if len(watch) > MAX_WATCH:
            raise RuntimeError("MAX_WATCH in group.pxi is too small")
        rule_alone(&self.program, rule, &SHORT_TABLE.rules[rule - TABLE.rules])
        self.hyper.rule, self.hyper.decay, self.hyper.maximize = rule, spec.decay, spec.maximize
        self.owner = spec.owner
        self.check_keys = spec.check_keys
        self.keys = tuple(key for key, _, _, _ in watch)
        self.seen = [self.options[key] for key, _, _, _ in watch]
        self.n_watch, self.n_own = len(watch), len({*self.keys}) + ("params" in self.options)
        self.ranges = [limits for _, _, _, limits in watch]
        for i, (_, kind, target, _) in enumerate(watch):
            self.kind[i], self.target[i] = kind, target
            for j, (low, high, above, below) in enumerate(self.ranges[i]):
                self.bounds[i][j] = Bounds(low, high, above, below)

    cdef adopt_state(self, spec, const Rule *rule):
        """Take over what is said of the state, if it is what the rule needs."""
        cdef int i
        cdef list names = [slot.name for slot in spec.slots]
        cdef list stepped = [slot for slot in spec.slots
                             if slot.like == "parameter" and slot.name not in (MEAN_SLOT, LOW_SLOT)]
        if len(stepped) != rule.n_states:
            raise DeclarationError(f"{spec.owner}: the rule {spec.rule!r} has {rule.n_states} state slot(s); rule() "
                                   f"names {len(stepped)}: {', '.join([slot.name for slot in stepped]) or 'none'}")
        if tuple(stepped) != spec.slots[:len(stepped)] or len(names) > MAX_SLOTS:
            raise DeclarationError(f"{spec.owner}: rule() has to name the arrays that are like the parameter first, "
                                   f"and at most {MAX_STATES} in all; it names {', '.join(names)}")
        for i, slot in enumerate(stepped):
            if slot.low is not None:
                self.flushes, (self.faded.f[i], self.faded.d[i]) = True, slot.low
            if slot.first == "copy":
                self.copied |= 1 << i
        read_numbers(self.numbers, spec.numbers)
        self.slots, self.kinds, self.n_slots = names, spec.kinds, <int>len(names)
        self.alike = all([slot.like == "parameter" and slot.storage is None for slot in spec.slots])
        self.mean = names.index(MEAN_SLOT) if MEAN_SLOT in names else -1
        self.low = names.index(LOW_SLOT) if LOW_SLOT in names else -1
        self.hyper.averages, self.hyper.mean = self.mean >= 0, spec.mean

    cdef bint refresh(self, int64_t steps) except -1:
        """Read what changed; True if an option did, so that the class has to be asked for another spec."""
        cdef PyObject *value
        cdef int i
        cdef bint changed = False, same = False
        if self.is_as_before():
            return False
        if self.check_keys is not None and self.n_before >= 0:
            same = self.has_keys_as_before()
        self.n_before = -1
        self.settled, self.stale = True, True
        for i in range(self.n_watch):
            value = PyDict_GetItemWithError(self.options, self.keys[i])
            if value == NULL:
                raise HyperparameterError(f"{self.owner}: the parameter group has lost its {self.keys[i]!r}")
            if self.kind[i] == OPTION:
                # What an array holds may have changed, though it is the same object.
                changed = changed or <object>value is not self.seen[i] or hasattr(<object>value, "__dlpack__")
            else:
                self.read(i, <object>value, steps)
        if len(self.options) > self.n_own or self.around:
            changed = self.read_around(steps) or changed
        if self.options.get("params") is not self.params:
            raise ParameterError(f"{self.owner}: the 'params' of a group cannot be exchanged; use add_param_group()")
        if self.check_keys is not None and self.checked and (self.recheck or not same):
            self.recheck = self.check_keys(self.options)
        self.checked = True
        if not changed:
            self.remember()
        return changed

    cdef inline bint is_as_before(self):
        """Whether the dict holds the very objects of last time, and none of them can change by itself.

        In the dict's own order, without a look-up: this is on the way of every step.
        """
        cdef Py_ssize_t place = 0
        cdef int i = 0
        cdef PyObject *key
        cdef PyObject *value
        if not self.settled or len(self.options) != self.n_before:
            return False
        while PyDict_Next(self.options, &place, &key, &value):
            if key != self.key_before[i] or value != self.value_before[i]:
                return False
            i += 1
        return True

    cdef bint has_keys_as_before(self):
        """Whether the dict has the very keys of last time, in their order."""
        cdef Py_ssize_t place = 0
        cdef int i = 0
        cdef PyObject *key
        if len(self.options) != self.n_before:
            return False
        while PyDict_Next(self.options, &place, &key, NULL):
            if key != self.key_before[i]:
                return False
            i += 1
        return True

    cdef remember(self):
        """Note the objects in the dict. They are kept alive: else a new one could turn up at an old one's address."""
        cdef int i
        if len(self.options) > MAX_WATCH:
            return
        self.before = [*self.options.keys(), *self.options.values()]
        self.n_before = <int>len(self.options)
        for i in range(self.n_before):
            self.key_before[i] = PyList_GET_ITEM(<PyObject *>self.before, i)
            self.value_before[i] = PyList_GET_ITEM(<PyObject *>self.before, self.n_before + i)

    cdef read(self, int i, object value, int64_t steps):
        cdef bint scheduled = callable(value), fixed = True
        cdef object now
        key = self.keys[i]
        # A class is callable too, but handing one over is a forgotten pair of brackets.
        if scheduled and (steps == no_schedules or key not in SCHEDULABLE or isinstance(value, type)):
            raise HyperparameterError(f"{self.owner}: {key}={value!r} must be a number")
        now = value(steps) if scheduled else value
        if self.kind[i] == PAIR:
            if not isinstance(now, (tuple, list)) or len(now) != 2:
                first, second = self.ranges[i]
                each = f"each {first}" if first == second else f"the first {first}, the second {second}"
                raise HyperparameterError(f"{self.owner}: {key}={now!r} must be a pair of numbers, {each}")
            for j in range(2):
                part = now[j]
                if callable(part) and steps != no_schedules and key in SCHEDULABLE and not isinstance(part, type):
                    scheduled = True
                    part = part(steps)
                number = self.number(i, j, f"{key}[{j}]", part)
                if self.target[i] >= 0:
                    self.hyper.x[self.target[i] + j] = number
                fixed = fixed and isinstance(part, FIXED)
            fixed = fixed and not isinstance(value, list)
        else:
            number = self.number(i, 0, key, now)
            if self.target[i] >= 0:
                self.hyper.x[self.target[i]] = number
            elif self.target[i] == -1:
                self.hyper.weight_decay = number
            fixed = isinstance(value, FIXED)
        self.settled = self.settled and fixed and not scheduled

    cdef bint read_around(self, int64_t steps) except -1:
        """Read the options that a group may have or not, None being as none; True if another spec is needed."""
        cdef Hyper *hyper = &self.hyper
        cdef bint stores = any([self.options.get(key) is not None for key in STORAGE])
        self.around = stores or any([self.options.get(key) is not None for key in AROUND])
        hyper.clip_value = self.limit("clip_value", steps, hyper.has_float)
        hyper.clip_norm_each = self.limit("clip_norm_each", steps, False)
        decay, start, zeroes = [self.options.get(key) for key in ("ema_decay", "ema_start", "zero_grads")]
        if zeroes is not None and not (isinstance(zeroes, bool) or isinstance(zeroes, np.bool_)):
            raise HyperparameterError(f"{self.owner}: zero_grads={zeroes!r} must be True or False")
        if start is not None and not (is_number(start) and 0 <= float(start) < LAST_COUNT
                                      and float(start).is_integer()):
            raise HyperparameterError(f"{self.owner}: ema_start={start!r} must be a whole number, at least 0")
        hyper.zeroes, hyper.ema_start = bool(zeroes), 1 if start is None else int(start)
        self.settled = self.settled and (start is None or isinstance(start, FIXED))
        if decay is not None:
            now = self.now("ema_decay", decay, steps)
            if not is_number(now) or not 0 <= float(now) <= 1:
                raise HyperparameterError(f"{self.owner}: ema_decay={now!r} must be a number in [0, 1], or a schedule")
            hyper.ema_decay = float(now)
        self.check_alone(self.clip_norm)
        if stores or self.storage is not None:
            self.settled = self.settled and not isinstance(self.options.get("state_dtype"), Mapping)
            if self.storage is None or self.storage.differs(self.options):
                return True
        return (decay is not None) != hyper.averages

    cdef check_alone(self, clip_norm):
        """Raise where gradients are clipped in two ways, of which the library knows one at a time."""
        if self.hyper.mean == MEAN_KERAS:
            limits = [clip_norm, self.options.get("clip_norm_each"), self.options.get("clip_value")]
            if len([x for x in limits if x is not None and not (isinstance(x, FIXED) and x == INFINITY)]) > 1:
                raise ConventionError(f"{self.owner}: only one of clip_norm, clip_norm_each and clip_value, as in "
                                      "Keras, where they are global_clipnorm, clipnorm and clipvalue")

    cdef double limit(self, str key, int64_t steps, bint has_float) except? -1:
        """What something of a gradient is not to exceed: an option that is a number above 0, or else 0."""
        cdef double x
        value = self.options.get(key)
        if value is None:
            return 0
        now = self.now(key, value, steps)
        x = as_limit(now)
        if not x > 0 or (has_float and <double><float>x == 0):
            raise HyperparameterError(f"{self.owner}: {key}={now!r} must be a number above 0"
                                      + (", also in float32" if x > 0 else "") + "; None, or inf: nothing is clipped")
        return x

    cdef now(self, str key, value, int64_t steps):
        """The value of an option at this step, that of a schedule too."""
        if callable(value):
            if steps == no_schedules or isinstance(value, type):
                raise HyperparameterError(f"{self.owner}: {key}={value!r} must be a number")
            self.settled = False
            return value(steps)
        self.settled = self.settled and isinstance(value, FIXED)
        return value

    cdef double number(self, int i, int j, str name, object value) except? -1:
        """`value` as a float within the limits, also after rounding to float32 where the group has such arrays."""
        cdef double x, r
        try:
            if not is_number(value):
                raise TypeError
            x = float(value)
        except (TypeError, OverflowError):
            raise HyperparameterError(f"{self.owner}: {name}={value!r} is not a number") from None
        r = <double><float>x if self.hyper.has_float else x
        if not (is_within(x, &self.bounds[i][j]) and is_within(r, &self.bounds[i][j])):
            rounded = f" ({r!r} in float32)" if x != r and x == x else ""
            raise HyperparameterError(f"{self.owner}: {name}={x!r}{rounded} must be {self.ranges[i][j]}")
        return x

    cdef inline prepare(self, double grad_scale, bint clips=False):
        """Have the program that the options of now, this factor of the loss, and clipping by norm ask for."""
        if self.stale or grad_scale != self.grad_scale or clips != self.clips:
            self.compile(grad_scale, clips)

    cdef compile(self, double grad_scale, bint clips):
        cdef Hyper *hyper = &self.hyper
        cdef Scaled by, shrink
        self.stale = True
        hyper.fades = self.flushes and (self.eps < 0 or hyper.x[self.eps] >= least_eps
                                        or (self.eps_root >= 0 and hyper.x[self.eps_root] >= least_eps))
        scale(&by, 0, grad_scale)
        if hyper.has_float and not (0 < by.f[0] and isfinite(by.f[0])):
            raise HyperparameterError(f"{self.owner}: grad_scale={grad_scale!r} is {by.f[0]!r} in float32")
        scale(&shrink, 0, 1.0 - hyper.x[0] * hyper.weight_decay if hyper.decay == DECAY_LAST else 1.0)
        if not isfinite(shrink.d[0]) or (hyper.has_float and not isfinite(shrink.f[0])):
            raise HyperparameterError(f"{self.owner}: 1 - lr * weight_decay is not finite; "
                                      f"lr={hyper.x[0]!r}, weight_decay={hyper.weight_decay!r}")
        compile(&self.program, hyper, grad_scale, clips, shrink.d[0], &self.faded, self.mean)
        self.stored = self.program
        self.stored.walk, self.stored.bare, self.stored.bare_unclipped = walk_stored, False, False
        self.stale, self.grad_scale, self.clips = False, grad_scale, clips

    cdef compute(self, StepScalars *out, int64_t t, const double *numbers, bint begun):
        """The scalars of step t, or the error."""
        if not compute_scalars(&self.hyper, t, numbers, begun, out):
            raise HyperparameterError(
                f"{self.owner}: the scalars of step {t} are not finite; hyperparameters: "
                + ", ".join(f"{k}={self.options[k]!r}" for k in self.keys))


cdef bint is_found(value) except -1:
    """Whether a value says that a scaler found an infinity: a number that is not 0, or True."""
    now = value
    if hasattr(value, "item"):
        try:
            now = value.item()
        except Exception:             # whatever a foreign type raises where there is more than one element
            now = None
    if isinstance(now, bool):
        return now
    if not isinstance(now, FIXED):
        raise HyperparameterError(f"found_inf={value!r} must be a number, 0 if no infinity was found; or True or False")
    return now != 0
