"""What type checkers have to refuse: the lines marked as errors, and no other. Each raises an error when it is run."""

import numpy as np

import fastopt
from fastopt import functional, schedules

w, g, m, v = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)
opt = fastopt.Adam(w)

# --- Names that are none

fastopt.nonsense  # error
fastopt.minimise  # error
fastopt.Adam.nonsense  # error
opt.nonsense  # error
opt.lr  # error
functional.nonsense_  # error
schedules.Cosin  # error

# --- Options that are none

fastopt.Adam(w, bettas=3)  # error
fastopt.SGD(w, betas=(0.9, 0.999))  # error
fastopt.Momentum(w, nesterov=True)  # error
fastopt.Adam(w, num_threads=2)  # error
functional.adam_(w, g, m, v, step=1, bettas=3)  # error
functional.adagrad_(w, g, m, step=1, initial_accumulator_value=0.1)  # error
schedules.Cosine(0.1, 10, final=0.0)  # error
fastopt.minimize(lambda w, _: (0.0, w), w, opt, steps=3)  # error

# --- Words that are misspelt, or another class's

fastopt.Adam(w, convention="kreas")  # error
fastopt.AdamW(w, convention="sklearn")  # error
fastopt.Momentum(w, convention="torch")  # error
fastopt.NAG(w, convention="torch")  # error
fastopt.Adam(w, nonfinite="rasie")  # error
fastopt.Adam(w, eps_placement="inner")  # error
fastopt.RMSprop(w, eps_placement="inside_uncorrected")  # error
functional.adam_(w, g, m, v, step=1, convention="kreas")  # error
functional.adam_(w, g, m, v, step=1, nonfinite="rasie")  # error
opt.nonfinite = "rasie"  # error
fastopt.show_config("dict")  # error
schedules.ReduceOnPlateau(0.1, mode="least")  # error

# --- Values of another kind

fastopt.Adam(w, lr="fast")  # error
fastopt.Adam(w, lr=[0.1])  # error
fastopt.Adam(w, betas=0.9)  # error
fastopt.Adam(w, betas=(0.9,))  # error
fastopt.Adam(w, eps=schedules.Constant(1e-8))  # error
fastopt.Adam(w, amsgrad="yes")  # error
fastopt.SGD(w, n_threads="all")  # error
fastopt.SGD(w, maximize="no")  # error
fastopt.SGD(3.0)  # error
fastopt.SGD()  # error
opt.step(3.0)  # error
opt.step()  # error
opt.step(g, grad_scale="large")  # error
opt.n_threads = "all"  # error
opt.clip_norm = "1.0"  # error
opt.grad_norm = 1.0  # error
fastopt.SGD(w, clip_norm="1.0")  # error
opt.steps = 3  # error
functional.adam_(w, g, m, v)  # error
fastopt.norm(3.0)  # error
fastopt.norm(w, "fro")  # error
functional.bind(3, w, [m, v])  # error
functional.bind("adam", w, [m, v]).step(g)  # error
functional.adam_(w, g, m, step=1)  # error
functional.adam_(w, g, m, 3.0, step=1)  # error
functional.adam_(w, g, m, v, step=1.5)  # error
functional.adam_(w, g, m, v, step=1, lr="fast")  # error
fastopt.load(3.5)  # error
fastopt.minibatches("all", 4)  # error
