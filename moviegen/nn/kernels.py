"""Operations with one form for the CPU and one for Ascend; no other file asks for the device.

A form of Ascend's has never run, for want of a card: it is compiled on a CPU as a card would be given it.
"""

from moviegen.nn import backend

# Read where an operation is called or compiled, never at import, so that `--job=audit_ascend` can set it on a CPU.
ON_ASCEND = backend.device() == "Ascend"


def product_dtype(stored: str) -> str:
    """The dtype in which weights that are stored in one are multiplied: a CPU has no products in bfloat16."""
    return "float32" if stored == "bfloat16" and not ON_ASCEND else stored
