"""Numbers of rows that come again.

In bf16 on a CPU matrix products are oneDNN's, which makes a kernel for every new shape, in 1 to 10 ms, and
keeps the last thousand. Feedback has another number of tokens in each batch, and so the shapes of its packed
rows and of their logits would all be new: 50 to 70 ms a step (ONEDNN_VERBOSE=2 tells). Rounded up they
soon come again. What is added reaches no result. Padded rows, heads that are not linear, and generation are
left as they are.
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
    """The next multiple of 16, from 1,024 on of a 32nd of the power of two below."""
    step = max(16, 2 ** (count.bit_length() - 6))
    return -(-count // step) * step
