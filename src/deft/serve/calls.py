"""What a call of the page's functions may hold, checked before Gradio sees it.

In: a call's path and JSON. Out: the fields that Gradio needs, and no others; or a refusal that names the fault.
"""

import math
import re
from http import HTTPStatus
from typing import Any

import gradio as gr

from deft.serve.gate import Refused

SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")


def max_call_bytes(page: gr.Blocks) -> int:
    """Return how long a call's JSON may be, from what the page's text boxes take: a character is at most 12 bytes."""
    longest = sum(box.max_length or 0 for box in page.blocks.values() if isinstance(box, gr.Textbox))
    return 12 * longest + 65_536


def clean_call(page: gr.Blocks, path: str, call: Any) -> dict[str, Any]:
    """Return the checked fields of a call.

    Raises:
        Refused: if it names no session or function of the page, or its values are not those of the controls.
    """
    if not isinstance(call, dict):
        raise Refused(HTTPStatus.BAD_REQUEST, "a call is a JSON object")
    session, trigger = call.get("session_hash"), call.get("trigger_id")
    if not isinstance(session, str) or not SESSION.fullmatch(session):
        raise Refused(HTTPStatus.BAD_REQUEST, "session_hash must be up to 64 letters and digits")
    function = function_of(page, path, call.get("fn_index"))
    values = call.get("data")
    if not isinstance(values, list):
        raise Refused(HTTPStatus.BAD_REQUEST, "data must be a list")
    if len(values) != len(function.inputs):
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"data must have {len(function.inputs)} values")
    return {
        "session_hash": session,
        "fn_index": function._id,
        "trigger_id": trigger if type(trigger) is int else None,
        "data": [clean_value(*each) for each in zip(function.inputs, values, strict=True)],
    }


def function_of(page: gr.Blocks, path: str, index: Any) -> Any:
    """Return the function that a call names by its number, or by its name as the path's end."""
    if index is None:
        name = path.rstrip("/").rpartition("/")[2]
        found = next((each for each in page.fns.values() if each.api_name == name), None)
    else:
        found = page.fns.get(index) if type(index) is int else None
    if found is None:
        raise Refused(HTTPStatus.NOT_FOUND, "the page has no such function")
    return found


def clean_value(control: Any, value: Any) -> Any:
    """Return a value that its control could have, a session's own state as nothing: the server has it."""
    if isinstance(control, gr.State):
        return None
    if isinstance(control, gr.Textbox) and isinstance(value, str) and is_text(value):
        if control.max_length is not None and len(value) > control.max_length:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {control.max_length:,} characters are taken")
        return value
    is_number = type(value) in {int, float} and math.isfinite(value)
    if isinstance(control, gr.Slider) and is_number and control.minimum <= value <= control.maximum:
        return value
    raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"not a value of {type(control).__name__}")


def is_text(value: str) -> bool:
    """Say whether a text is Unicode, without halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
