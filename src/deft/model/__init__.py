"""Models: finding and loading them, and what training, scoring and evaluation all stand on.

Importing this makes transformers' Auto classes know Baichuan2; transformers itself is not imported for that.
"""

from deft.model.baichuan2.registration import register_when_transformers_is_loaded

register_when_transformers_is_loaded()
