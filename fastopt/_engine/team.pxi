# Whether a job goes to a team of threads, and what is learnt from teams that came too late.

cdef enum:
    LONG_BLOCKS = 1_000_000   # a step that reads and writes more takes a millisecond
    LATE = 19                 # what a late team counts, where one on time takes off 1: more than one in twenty add up
    LATE_TEAMS = 8            # so many in a row, and steps go on alone
    FEWEST_ALONE = 128        # for so many steps at first
cdef int most_alone = 1024    # and for so many at most

cdef struct Team:             # what a plan knows of its teams
    int most_threads          # 0: automatic
    int serial_left           # steps still to take on one thread, since teams came too late
    int late_score            # of the last teams: LATE for each late one, less 1 for each on time
    int backoff               # what serial_left begins with the next time


def set_most_alone(int steps):
    """Set how many steps at most go on one thread after a team came too late; returns the old number. For tests."""
    global most_alone
    old, most_alone = most_alone, steps
    return old


cdef int most_threads(n_threads) except -1:
    """The threads that a setting allows, 0 for None; raises what any other value is."""
    whole = isinstance(n_threads, int) or isinstance(n_threads, np.integer)
    if n_threads is None:
        return 0
    if not whole or isinstance(n_threads, bool) or n_threads < 1:
        raise HyperparameterError(f"n_threads={n_threads!r} must be None (automatic) or an int >= 1")
    return min(n_threads, MOST_THREADS)


cdef int threads_for(const Team *team, const Job *job) except -1:
    cdef Py_ssize_t n
    if job.moved < serial_blocks or job.blocks < 2 or not fo_have_openmp() or fo_in_forked_child():
        return 1
    n = team.most_threads if team.most_threads else automatic_threads()
    return <int>min(n, job.blocks, MOST_THREADS)


cdef int launch(Team *team, Job *job) except -1:
    """Run a job: on how many threads, and whether the GIL is given up for it, is decided here."""
    cdef int n_threads = threads_for(team, job)
    cdef bint late
    if n_threads > 1 and team.serial_left > 0:
        team.serial_left -= 1
        n_threads = 1
    if n_threads > 1:
        # A virtual machine's system may wake a thread on the CPU of the caller, beside an idle one, time and again.
        job.cpu = fo_cpu() if job.moved > LONG_BLOCKS or team.late_score >= 2 * LATE else -1
        with nogil:
            late = run_team(job, n_threads)
        if not job.found:
            judge(team, late)
    elif is_large(job):
        with nogil:
            run_alone(job)
    else:
        run_alone(job)
    return 0


cdef void judge(Team *team, bint late) noexcept:
    """Where more than one team in twenty comes too late to be of use, other work has the cores: alone for a while.

    Not at once: a thread that slept has to be woken, and it may take the system some steps to give it a core.
    """
    team.late_score = team.late_score + LATE if late else max(team.late_score - 1, 0)
    if team.late_score >= LATE_TEAMS * LATE:
        team.serial_left = min(team.backoff, most_alone)
        team.backoff = min(2 * team.backoff, most_alone)
        team.late_score = LATE_TEAMS * LATE // 2      # the next time, half as many are enough
    elif not late:
        team.backoff = max(team.backoff - 1, FEWEST_ALONE)
