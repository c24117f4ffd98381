"""A chat template that was never rendered before is rendered in a process of its own first, with limits.

A template is a program: loops, `*` on texts and filters that pad can take hours and all memory, when somebody only
looks at a model that was downloaded. In: a template, and the variables it is given. Out: nothing, or the error that
refuses it. Templates that passed are remembered by their hash.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from deft.errors import UserError
from deft.files import cache_folder, write_text

LARGEST_TEMPLATE = 1_000_000
"""Characters; the longest of real templates have some 30,000."""
TIME_S = 60
"""By the clock, for systems that know no limit of processor time; elsewhere the prober's own, of seconds, comes first,
and a machine that is busy refuses no template for it."""
PROBER = Path(__file__).with_name("probe_template.py")
REMEDY = "give the tokenizer another chat template, such as that of another revision of the model"

passed: set[str] = set()
"""Hashes of the templates that passed in this process."""


def check_template(template: str, template_kwargs: Mapping[str, Any]) -> None:
    """Render a template that is new here, with the variables it is given beside messages, within limits.

    Raises:
        UserError: if it exceeds one of them.
    """
    if len(template) > LARGEST_TEMPLATE:
        raise UserError("the chat template is far too long", got=f"{len(template):,} characters", fix=REMEDY)
    request = json.dumps({"template": template, "kwargs": dict(template_kwargs)}, default=str)
    key = hashlib.sha256(request.encode("utf-8", "surrogatepass") + PROBER.read_bytes()).hexdigest()
    kept = cache_folder("templates")
    if key in passed or (kept is not None and (kept / key).exists()):
        return
    command = [sys.executable, "-I", str(PROBER)]
    try:
        done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=TIME_S, check=False)
        fault = done.stdout.strip() if done.returncode == 0 else "it took too much time or memory"
    except subprocess.TimeoutExpired:
        fault = f"it did not finish within {TIME_S} s"
    if fault:
        raise UserError("the chat template does more work than any conversation needs", got=fault, fix=REMEDY)
    passed.add(key)
    if kept is not None:
        with suppress(OSError, UserError):
            write_text(kept / key, "")
