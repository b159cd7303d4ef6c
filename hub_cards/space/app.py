"""The demo as a Space of the Hub, or on any machine: python app.py

Settings, as environment variables (in a Space: its variables):
    RATS_MODEL: Hub name or folder of the model. Necessary.
    RATS_REVISION: branch, tag or commit of it on the Hub (main).
    RATS_DICTIONARY: Hub name or folder of its part dictionary; by default the folder `dictionary` of the model, if it has one.
    RATS_EXAMPLES: folder of example pictures; by default the rendered ones beside this file.
"""

import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from demo_page import AT_ONCE, CLEANED_EVERY_S, KEPT_S, DemoPage
from part_viewer import PartViewer
from picture_upload import MAX_FILE_BYTES, UploadRefused, read_upload
from safe_server import RequestGuard, keep_forgetting
from starlette.middleware import Middleware
from transformers import AutoImageProcessor
from transformers.utils import cached_file

from modeling_rats import RatsForPartSegmentation
from modeling_rats.part_dictionary import ENTRIES_FILE, PartDictionary

MAIN = "main"
MAX_WAITING = 100  # requests; one more is told so
VISITORS = 200  # of whom something is remembered
DICTIONARY = "dictionary"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
STYLE = """
@media (min-width: 800px) {  /* on a narrow screen picture, views and settings follow one another */
  #main {display: grid; grid-template-columns: minmax(260px, 1fr) 3fr; grid-template-rows: auto 1fr; align-items: start}
  #views {grid-column: 2; grid-row: 1 / span 2}
}
.legend {list-style: none; padding: 0; margin: 0}
.swatch {display: inline-block; width: 1em; height: 1em; margin-right: .5em; border: 1px solid #888; vertical-align: -2px}
"""


def find_examples(folder: Path) -> list[Path]:
    """The pictures of a folder, in order of their names.

    Raises:
        FileNotFoundError: If it holds none.
    """
    pictures = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise FileNotFoundError(
            f"The folder of example pictures {folder} holds none; it must hold {', '.join(SUFFIXES)} files. Name another."
        )
    return pictures


def load_viewer(model: str, revision: str, dictionary: str | None, examples: list[Path]) -> PartViewer:
    """Load a model, of which no code is run, its dictionary and the example pictures."""
    loaded = RatsForPartSegmentation.from_pretrained(
        model, revision=revision, use_safetensors=True, attn_implementation="eager"
    ).eval()
    processor = AutoImageProcessor.from_pretrained(model, revision=revision)
    known = _load_dictionary(model, revision, dictionary)
    pictures = [(path.stem, read_upload(path)) for path in examples]
    name = Path(model).resolve().name if Path(model).is_dir() else model
    told = name if revision == MAIN else f"{name} at {revision}"
    return PartViewer(loaded, processor, pictures, None if known is None else known.with_model(loaded, processor), told)


def _load_dictionary(model: str, revision: str, dictionary: str | None) -> PartDictionary | None:
    if dictionary:
        return PartDictionary.from_pretrained(dictionary)
    file = f"{DICTIONARY}/{ENTRIES_FILE}"
    if cached_file(model, file, revision=revision, _raise_exceptions_for_missing_entries=False) is None:
        return None
    return PartDictionary.from_pretrained(model, revision=revision, subfolder=DICTIONARY)


def _leave(number: int, frame: object) -> None:
    """End as at Ctrl-C, so that visitors' files are deleted; a second signal does not hinder that."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit()


def main() -> None:
    """Read the settings, load everything, and serve until interrupted."""
    model = os.environ.get("RATS_MODEL")
    if not model:
        sys.exit(
            "RATS_MODEL is not set; it must be the Hub name or the folder of a RATS model. In a Space set it as a variable."
        )
    revision = os.environ.get("RATS_REVISION") or MAIN
    try:
        examples = find_examples(Path(os.environ.get("RATS_EXAMPLES") or Path(__file__).with_name("examples")))
        viewer = load_viewer(model, revision, os.environ.get("RATS_DICTIONARY"), examples)
    except (OSError, ValueError, UploadRefused) as error:
        sys.exit(f"The demo cannot start: {error}")
    signal.signal(signal.SIGTERM, _leave)
    with TemporaryDirectory(prefix="rats-demo-") as files:
        os.environ["GRADIO_TEMP_DIR"] = files  # by default all of gradio's apps on a machine share one
        page = DemoPage(viewer, [str(path) for path in examples])
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // AT_ONCE))
        page.blocks.queue(max_size=MAX_WAITING, api_open=False)  # closed, or programs could go past the queue
        guard = Middleware(RequestGuard, max_upload_bytes=MAX_FILE_BYTES)
        page.blocks.launch(
            prevent_thread_lock=True,
            max_file_size=MAX_FILE_BYTES,
            state_session_capacity=VISITORS,
            app_kwargs={"middleware": [guard]},
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=["api"],
            css=STYLE,
        )
        keep_forgetting(page.blocks, Path(files), KEPT_S, CLEANED_EVERY_S)
        page.blocks.block_thread()


if __name__ == "__main__":
    main()
