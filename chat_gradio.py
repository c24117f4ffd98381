"""`python chat_gradio.py`: the chat page, with the options of earlier versions; the page lives in `deft.serve.web`."""

import sys

from deft.cli import run_or_explain
from deft.train.ancestor import Parser


def main() -> None:
    """Serve the page that the options ask for."""
    parser = Parser(prog="chat_gradio.py", description="Chat with a model in the browser.", allow_abbrev=False)
    parser.add_argument("--model_name_or_path", default="models/smollm2-135m", help="folder, hub id or alias")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others need --password")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="a public link through Gradio; needs --password")
    parser.add_argument("--password")
    parser.add_argument("--lang", choices=("en", "zh"), default="en", help="language of the page")
    parser.add_argument("--identity_file", default="model_identity.txt", help="the model's identity or role")
    options = parser.parse_args()
    from deft.serve.assistant import Assistant
    from deft.serve.web import check_reachable, serve_page

    check_reachable(options.host, share=options.share, password=options.password)
    assistant = Assistant(options.model_name_or_path, identity_file=options.identity_file)
    serve_page(
        assistant,
        host=options.host,
        port=options.port,
        share=options.share,
        password=options.password,
        lang=options.lang,
    )


if __name__ == "__main__":
    sys.exit(run_or_explain(main))
