"""`python chat_gradio.py`: the chat page, with the options of earlier versions; the page lives in `deft.serve.web`."""

import sys
from dataclasses import replace
from pathlib import Path

from deft.ancestor.parser import Parser
from deft.commands.exits import run_or_explain


def main() -> None:
    """Serve the page that the options ask for."""
    parser = Parser(prog="chat_gradio.py", description="Chat with a model in the browser.", allow_abbrev=False)
    parser.add_argument("--model_name_or_path", default="models/smollm2-135m", help="folder, hub id or alias")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others need a password")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="a public link through Gradio; needs a password")
    parser.add_argument("--password", help="others on this computer can read it; better: $DEFT_PASSWORD, or")
    parser.add_argument("--password_file", "--password-file", type=Path, help="a file with the password")
    parser.add_argument(
        "--server_name",
        "--server-name",
        action="append",
        default=[],
        help="a further host name of the page (may repeat)",
    )
    parser.add_argument(
        "--trusted_proxy",
        "--trusted-proxy",
        action="append",
        default=[],
        help="address of a proxy whose X-Forwarded-* headers count (may repeat)",
    )
    parser.add_argument("--lang", choices=("en", "zh"), default="en", help="language of the page")
    parser.add_argument("--identity_file", default="model_identity.txt", help="the model's identity or role")
    options = parser.parse_args()
    from deft.hub.pull import fetch_embedded
    from deft.serve.assistant import Assistant
    from deft.serve.password import find_password
    from deft.serve.server import Address
    from deft.serve.web import serve_page

    address = Address(
        host=options.host,
        port=options.port,
        share=options.share,
        server_names=tuple(options.server_name),
        trusted_proxies=tuple(options.trusted_proxy),
    )
    password = find_password(options.password, options.password_file, needed=address.needs_password)
    address = replace(address, password=password)
    address.check()
    fetch_embedded(options.model_name_or_path)
    assistant = Assistant(options.model_name_or_path, identity_file=options.identity_file)
    serve_page(assistant, address, lang=options.lang)


if __name__ == "__main__":
    sys.exit(run_or_explain(main))
