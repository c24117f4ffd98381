"""Enter Baichuan2 with transformers' Auto classes, without importing transformers before anyone else does.

In: nothing. Out: `AutoConfig`, `AutoModelForCausalLM` and `AutoTokenizer` that know `model_type: "baichuan"` after
`import deft.model`, whichever of the two is imported first. Importing transformers' configurations takes seconds
(torch comes with them), and `deft models` or `deft pull` need none of it. So the configuration is entered once
transformers has loaded its own table of them, and the model when the first configuration is made: no Auto class asks
for a model without one, and transformers' modules are then whole.
"""

import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODEL_TYPE = "baichuan"
CONFIGURATIONS = "transformers.models.auto.configuration_auto"


def register_when_transformers_is_loaded() -> None:
    """Enter the configuration now if transformers has its table loaded, else as soon as it has."""
    if CONFIGURATIONS in sys.modules:
        register_configuration()
    else:
        sys.meta_path.insert(0, AfterConfigurations())


class AfterConfigurations(MetaPathFinder):
    """An import hook for one module: it is found as always, and `register_configuration` follows its execution."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for `CONFIGURATIONS` once, and for nothing else."""
        if fullname != CONFIGURATIONS or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                register_configuration()

            loader.exec_module = execute_and_register
        return spec


@cache
def register_configuration() -> None:
    """Enter the configuration."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from deft.model.baichuan2.configuration import Baichuan2Config

    AutoConfig.register(MODEL_TYPE, Baichuan2Config, exist_ok=True)


@cache
def register() -> None:
    """Enter the configuration, the model and the tokenizer."""
    from transformers.models.auto.modeling_auto import AutoModel, AutoModelForCausalLM

    from deft.model.baichuan2.configuration import Baichuan2Config
    from deft.model.baichuan2.modelling import BaichuanForCausalLM, BaichuanModel
    from deft.model.baichuan2.tokenization import register_tokenizer

    register_configuration()
    AutoModel.register(Baichuan2Config, BaichuanModel, exist_ok=True)
    AutoModelForCausalLM.register(Baichuan2Config, BaichuanForCausalLM, exist_ok=True)
    register_tokenizer()
