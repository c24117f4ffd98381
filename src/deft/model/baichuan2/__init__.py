"""Baichuan2 (Yang et al. 2023, arXiv 2309.10305) without its authors' remote code: the 7B and the 13B layout.

Importing this enters it with transformers' Auto classes; deft does so itself when it meets such a checkpoint.
"""

from deft.model.baichuan2.registration import register

register()
