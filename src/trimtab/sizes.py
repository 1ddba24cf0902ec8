"""Numbers of rows that come again.

In bf16 on a CPU matrix products are oneDNN's, which makes a kernel for every new shape, in 1 to 10 ms, and
keeps the last thousand. Feedback has another number of tokens in each batch, and so all shapes of a step would
be new: 50 to 70 ms a step. Rounded up they soon come again. What is added reaches no result.
"""

import torch
from torch import Tensor


def rounds_up(of: Tensor) -> bool:
    """Whether matrix products with this tensor are of that kind."""
    if of.device.type != "cpu":
        return False
    is_autocast = torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if is_autocast else of.dtype) == torch.bfloat16


def rounded_up(count: int) -> int:
    """The next of 32 to 64 numbers between a power of two and the next, but a multiple of 16."""
    step = max(16, 2 ** (count.bit_length() - 6))
    return -(-count // step) * step
