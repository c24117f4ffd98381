"""Whether the weights of a checkpoint are whole, and which shapes they have.

In: weight files, or a model made from them. Out: shapes, or a `UserError` that names the file. Only headers are read
where that is enough, and `.bin` files as plain tensors: no code from a checkpoint ever runs.
"""

import zipfile
from pathlib import Path
from typing import Any

from deft.errors import UserError, first_line


def check_weight_files(files: list[Path]) -> None:
    """Check that weight files are whole, reading only their headers.

    Raises:
        UserError: naming the first that is cut short or is no such file.
    """
    from safetensors import SafetensorError, safe_open

    for file in files:
        fix = "copy or download that file again"
        if not file.is_file():
            raise UserError(f"{file} is missing", fix=fix)
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} is damaged", got=str(error), fix=fix) from error
        else:
            with file.open("rb") as stream:
                packed = stream.read(2) == b"PK"
            if file.stat().st_size == 0 or (packed and not zipfile.is_zipfile(file)):
                raise UserError(f"{file} is damaged", got=f"{file.stat().st_size} bytes", fix=fix)


def check_pickles(files: list[Path]) -> None:
    """After a failure, look for a `.bin` file that does not read as plain tensors.

    Raises:
        UserError: naming it.
    """
    import torch

    for file in files:
        if file.suffix == ".bin":
            try:
                torch.load(file, map_location="meta", weights_only=True)
            except Exception as error:
                fix = "deft reads tensors only, no other pickled objects: convert it to safetensors"
                raise UserError(f"{file} cannot be read as weights", got=first_line(error), fix=fix) from error


def check_finite(model: Any, folder: Path) -> None:
    """Check that all weights of a model are numbers.

    Raises:
        UserError: naming the first that holds NaN or an infinite number.
    """
    import torch

    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.is_meta or not weight.numel():
            continue
        least, most = torch.aminmax(weight.detach())  # a NaN is both
        if not (torch.isfinite(least) and torch.isfinite(most)):
            what = f"the weights in {folder} are damaged: they hold NaN or infinite numbers"
            raise UserError(what, got=name, fix="fetch the model again, or take an earlier checkpoint")


def adapter_embeddings(file: Path) -> int | None:
    """Return the rows of the embedding that was saved with an adapter, if one was; only shapes are read."""
    for key, shape in tensor_shapes(file).items():
        if key.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight")):
            return shape[0]
        if "lora_embedding_A" in key:
            return shape[1]
    return None


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a weight file."""
    import torch
    from safetensors import safe_open

    if file.suffix != ".safetensors":
        check_pickles([file])
        state = torch.load(file, map_location="meta", weights_only=True)
        return {key: tuple(tensor.shape) for key, tensor in state.items()}
    with safe_open(file, framework="pt") as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118 (not a dict)
