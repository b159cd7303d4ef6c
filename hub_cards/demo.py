"""Starts the demo on this machine: the page that `hub_cards.push_space` publishes.

    python -m hub_cards.demo [--model FOLDER_OR_NAME]

Needs gradio: pip install ".[demo]". With a model in a folder no network is needed.
"""

import argparse
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

SPACE = Path(__file__).with_name("space")
CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "rats-tiny-synthetic"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line: hands the settings to the app as a Space does, and runs it."""
    given = _parser().parse_args(arguments)
    if find_spec("gradio") is None:
        raise SystemExit('The demo needs gradio, which is not installed. Run: pip install ".[demo]"')
    settings: Mapping[str, object] = {
        "RATS_MODEL": given.model,
        "RATS_REVISION": given.revision,
        "RATS_DICTIONARY": given.dictionary,
        "RATS_EXAMPLES": given.examples,
        "GRADIO_SERVER_NAME": given.host,
        "GRADIO_SERVER_PORT": given.port,
    }
    os.environ.update({name: str(value) for name, value in settings.items() if value is not None})
    sys.path.insert(0, str(SPACE))  # as Python does for the script that it is started with
    runpy.run_path(str(SPACE / "app.py"), run_name="__main__")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hub_cards.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=CHECKPOINT, help="folder or Hub name (the tiny model of this project)")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--dictionary", help="folder or Hub name of its part dictionary (the model's own, if it has one)")
    parser.add_argument("--examples", type=Path, metavar="FOLDER", help="of example pictures (rendered ones)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at; 0.0.0.0 lets other machines in (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    return parser


if __name__ == "__main__":
    main()
