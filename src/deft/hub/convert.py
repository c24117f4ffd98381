"""A GGUF file of an embedded model in; safetensors, tokenizer and generation config of the same model out.

torch and transformers are imported when a file is converted, which happens once: `hub` itself needs neither.
"""

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from deft.errors import UserError
from deft.files import cannot_write
from deft.hub.quiet import quiet_transformers

CHECK_TEXTS = ("The capital of France is Paris, and 2 + 2 = 4.", "你好，世界！今天天气很好，我们学习机器学习。")


def convert(gguf: Path, folder: Path) -> None:
    """Write the model in a GGUF file as safetensors, with its tokenizer and generation config.

    The weights become float32: a 4-bit value times its scale plus its offset is exact there and in no narrower type,
    it is what a CPU trains in, and so the saved model computes the very logits of the GGUF file (which is checked).

    Raises:
        UserError: if the file cannot be read as a model, or the disk is full.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, GenerationConfig

    with quiet_transformers():
        try:
            with redirect_stderr(io.StringIO()):  # the reader draws a progress bar that nothing switches off
                read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = read_tokenizer(gguf)
        except (ValueError, KeyError, IndexError, RuntimeError) as error:
            fix = "pip install -r requirements.txt (transformers or gguf may be of another version)"
            raise UserError(f"{gguf.name} cannot be read as a model", got=str(error), fix=fix) from error
        settings = read.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            settings.pop(key, None)
        config = type(read.config).from_dict(settings)
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        fresh.load_state_dict(read.state_dict())
        fresh.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
        tokenizer.model_max_length = config.max_position_embeddings
        try:
            fresh.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except SafetensorError as error:
            raise cannot_write(folder, OSError(str(error))) from error
        saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        with torch.inference_mode():
            for text in CHECK_TEXTS:
                input_ids = torch.tensor([tokenizer.encode(text)])
                same = torch.equal(read.eval()(input_ids).logits, saved.eval()(input_ids).logits)
                assert same, f"the converted model computes other logits than {gguf.name} on {text!r}"


def read_tokenizer(gguf: Path) -> Any:
    """Return the tokenizer of a GGUF file, its digits split as the file asks.

    transformers ignores `tokenizer.ggml.pre`. The value `smollm` means that every digit is a word of its own
    (llama.cpp, `LLAMA_VOCAB_PRE_TYPE_SMOLLM`); without it, white space before a digit would be cut differently from
    the model's training.
    """
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        words = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(words)
    return tokenizer
