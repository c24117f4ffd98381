"""Baichuan2 (Yang et al. 2023, arXiv 2309.10305) without its authors' remote code: the 7B and the 13B layout."""
