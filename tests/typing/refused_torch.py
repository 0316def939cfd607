"""What type checkers have to refuse of fastopt.torch, also where PyTorch, and with it its tensors, is not installed."""

from typing import Any

import fastopt.torch

params: Any = ...

fastopt.torch.nonsense  # error
fastopt.torch.Adam(params, bettas=3)  # error
fastopt.torch.AdamW(params, fallback="quiet")  # error
fastopt.torch.SGD(params, n_threads="all")  # error
fastopt.torch.SGD(params, clip_norm="1.0")  # error
fastopt.torch.SGD(params, momentum="much")  # error
fastopt.torch.Lion(params, amsgrad=True)  # error
fastopt.torch.RMSprop()  # error
