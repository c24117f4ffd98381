"""Enter Baichuan2 with transformers: `AutoConfig`, `AutoModelForCausalLM` and `AutoTokenizer` know it afterwards."""

from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.modeling_auto import AutoModel, AutoModelForCausalLM

from deft.model.baichuan2.configuration import Baichuan2Config
from deft.model.baichuan2.modelling import BaichuanForCausalLM, BaichuanModel
from deft.model.baichuan2.tokenization import register_tokenizer


def register() -> None:
    """Enter the configuration, the model and the tokenizer."""
    AutoConfig.register(Baichuan2Config.model_type, Baichuan2Config, exist_ok=True)
    AutoModel.register(Baichuan2Config, BaichuanModel, exist_ok=True)
    AutoModelForCausalLM.register(Baichuan2Config, BaichuanForCausalLM, exist_ok=True)
    register_tokenizer()
