"""The device and the number format a model runs on: a name in, or nothing; what this machine has out."""

from typing import TYPE_CHECKING

from deft.errors import UserError, first_line

if TYPE_CHECKING:
    import torch


def choose_device(device: str | None) -> "torch.device":
    """Return the device asked for, or the best there is: CUDA, Apple's MPS, the CPU.

    Raises:
        UserError: if the device is not a device, or not there.
    """
    import torch

    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        got = f"{device}: {first_line(error)}"
        raise UserError("cannot use that device", got=got, fix="cpu, cuda or mps") from error
    return place


def choose_dtype(device: "torch.device") -> "torch.dtype":
    """Return bfloat16 for a GPU that computes in it, float32 otherwise."""
    import torch

    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32
