"""Every public chat template, tried on conversations of many kinds: is what deft trains what is served?"""
