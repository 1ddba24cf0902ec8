"""Memory settings that make training on a CPU faster and change no number.

Activations of tens of megabytes are freed and asked for again at each step. glibc gives such blocks
back to the system, which then clears and maps every page anew; here it is told to keep them.
`benchmarks/allocator.py` measures it.
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory; does nothing where the C library is another."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc admits
    libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
    libc.mallopt(M_TOP_PAD, 256 * 2**20)
