"""The page: what is where, and what happens on which event. What it shows is made by `part_viewer`."""

import json
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from demo_api import offer_api
from part_viewer import PartOptions, PartViewer, ViewedPicture
from picture_upload import PictureField, Upload, UploadRefused

KEPT_S, CLEANED_EVERY_S = 600, 60  # how long files stay, and what is remembered of a visitor after the last click
AT_ONCE = 2  # events that compute at the same time, whatever their kind
TOGETHER: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": AT_ONCE}
INPUT_SCALES = (1.0, 1.5, 2.0)  # resolutions to choose from, by the model's own
MAX_INPUT_PX = 1024
TITLE = "RATS: parts without labels"
WELCOME = f"""# {TITLE}
Pick a picture and click on it: the register that owns the place lights up, here and on other pictures. Nobody told the model
what a part is. [How it works](https://arxiv.org/abs/2606.14701)

Your picture is processed on this server, and nowhere else. It is kept for you to look at: its file for ten minutes, what was
made of it until ten minutes after your last click. Nobody else sees it, and nothing is learnt from it."""
ATTENTION = "One head of one layer, counted from 0. A map's colour goes from 0 to its largest value; in the table black is 1."
DOWNLOAD = "Masks at the size of your picture: a PNG of register numbers + 1 (0: no part), and COCO's JSON."
GALLERY: dict[str, Any] = {"columns": 4, "height": "auto", "object_fit": "contain", "format": "jpeg", "allow_preview": False}
ENTRY_COLUMNS = ["entry", "share of the picture", "score", "made of segments", "registers"]


class DemoPage:
    """The page for a model.

    Args:
        viewer: With the model and its example pictures.
        examples: Files of the example pictures.

    Attributes:
        blocks: The page, to be launched.
    """

    def __init__(self, viewer: PartViewer, examples: Sequence[str]):
        self.viewer, self.config = viewer, viewer.config
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CLEANED_EVERY_S, KEPT_S)) as self.blocks:
            gr.Markdown(WELCOME)
            self.viewed = gr.State(None)  # until its visitor is forgotten, see `safe_server`
            self.shown_tab = gr.State("parts")
            with gr.Row(elem_id="main"):
                with gr.Column(scale=1, min_width=260):
                    self._lay_out_picture(examples)
                with gr.Column(scale=3, min_width=300, elem_id="views"), gr.Tabs() as self.tabs:
                    self.tab = {
                        "parts": self._lay_out_parts(),
                        "compare": self._lay_out_compare(),
                        "gallery": self._lay_out_gallery(),
                        "dictionary": self._lay_out_dictionary(),
                        "attention": self._lay_out_attention(),
                        "download": self._lay_out_download(),
                    }
                with gr.Column(scale=1, min_width=260):
                    self._lay_out_controls()
            gr.Markdown(f"Model: {viewer.model_name}")
            self._listen()
            offer_api(viewer, self.picture, self.controls, **TOGETHER)

    # What is where

    def _lay_out_picture(self, examples: Sequence[str]) -> None:
        self.picture = PictureField(label="Picture", sources=["upload", "clipboard"], height=240, elem_id="picture")
        if examples:
            gr.Examples([[path] for path in examples], [self.picture], examples_per_page=len(examples), elem_id="examples")

    def _lay_out_controls(self) -> None:
        patch = max(self.config.patch_height_width)
        sizes = [round(scale * self.viewer.input_px / patch) * patch for scale in INPUT_SCALES]
        sizes = [sizes[0], *(size for size in sizes[1:] if size <= MAX_INPUT_PX)]
        self.size = gr.Radio(sizes, value=sizes[0], label="Resolution (pixels)", elem_id="size")
        most = self.config.num_registers
        self.max_parts = gr.Slider(1, max(most, 2), max(most, 2), step=1, label="Most parts", elem_id="most-parts")
        self.merge_threshold = gr.Slider(
            0.5, 1.0, 1.0, step=0.01, label="Merge registers whose maps agree", info="correlation; 1: none", elem_id="merging"
        )
        self.min_area_percent = gr.Slider(0, 20, 0, step=0.5, label="Least part (% of the picture)", elem_id="least-area")
        self.smooth = gr.Checkbox(False, label="Smooth borders", elem_id="smooth")
        has_dictionary = self.viewer.dictionary is not None
        self.named = gr.Checkbox(False, label="Names from the dictionary", visible=has_dictionary, elem_id="named")
        self.controls: list[Any] = [
            self.size,
            self.max_parts,
            self.merge_threshold,
            self.min_area_percent,
            self.smooth,
            self.named,
        ]

    def _lay_out_parts(self) -> gr.Tab:
        with gr.Tab("Parts", id="parts") as tab:
            with gr.Row():
                self.overlay = _drawn("Parts: click on one", "overlay")
                self.register_map = _drawn("Its register here", "register-map")
            # Any may be chosen: the visitor's own choices are gone once the visitor is forgotten, and a choice must be known.
            every = list(range(self.config.num_registers))
            self.register = gr.Radio(every, label="Register", visible=False, elem_id="register")
            self.in_examples = _drawn("The same register on other pictures", "in-examples")
            self.legend = gr.HTML(elem_id="legend")
        return tab

    def _lay_out_compare(self) -> gr.Tab:
        with gr.Tab("Compare", id="compare") as tab:
            self.compare = gr.ImageSlider(label="Picture and parts", format="jpeg", interactive=False, elem_id="compare")
        return tab

    def _lay_out_gallery(self) -> gr.Tab:
        with gr.Tab("All registers", id="gallery") as tab:
            self.gallery = gr.Gallery(label="Registers in use: pick one", elem_id="gallery", **GALLERY)
        return tab

    def _lay_out_dictionary(self) -> gr.Tab:
        names = [] if self.viewer.dictionary is None else self.viewer.dictionary.names
        with gr.Tab("Dictionary", id="dictionary", visible=bool(names)) as tab:
            self.entry = gr.Dropdown(names, value=names[0] if names else None, label="Entry", elem_id="entry")
            with gr.Row():
                self.entry_map = _drawn("The entry here", "entry-map")
                self.entry_in_examples = _drawn("On other pictures", "entry-in-examples")
            self.entries = gr.Dataframe(headers=ENTRY_COLUMNS, interactive=False, wrap=True, elem_id="entries")
        return tab

    def _lay_out_attention(self) -> gr.Tab:
        layers, heads = list(range(self.config.num_hidden_layers)), list(range(self.config.num_attention_heads))
        with gr.Tab("Attention", id="attention") as tab:
            gr.Markdown(ATTENTION)
            self.layer = gr.Radio(layers, value=layers[-1], label="Layer", elem_id="layer")
            self.head = gr.Radio(heads, value=0, label="Head", elem_id="head")
            self.compress = gr.Gallery(label="Compress: what registers take from patches", elem_id="compress", **GALLERY)
            self.communicate = _drawn("Communicate: what registers (rows) take from one another", "communicate")
            self.broadcast = gr.Gallery(label="Broadcast: what patches take from registers", elem_id="broadcast", **GALLERY)
        return tab

    def _lay_out_download(self) -> gr.Tab:
        with gr.Tab("Download", id="download") as tab:
            gr.Markdown(DOWNLOAD)
            self.files = gr.File(label="Masks", file_count="multiple", interactive=False, elem_id="files")
        return tab

    # What happens when

    def _listen(self) -> None:
        segmented = [self.viewed, self.overlay, self.legend, self.register, self.register_map, self.in_examples]
        of_register = [self.register, self.register_map, self.in_examples]
        asked = [self.viewed, self.entry, self.layer, self.head]
        tab_views = [
            self.shown_tab,
            self.compare,
            self.gallery,
            self.entry_map,
            self.entry_in_examples,
            self.entries,
        ]
        tab_views += [self.compress, self.communicate, self.broadcast, self.files]
        unlisted: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "trigger_mode": "always_last"}
        unlisted |= TOGETHER

        seen_anew, shown = [self.picture.change, self.size.change], [self.picture, *segmented]
        new = gr.on(seen_anew, self.new_picture, [self.picture, *self.controls], shown, **unlisted)
        changes = [control.change for control in self.controls[1:]]
        other = gr.on(changes, self.other_parts, [self.viewed, self.register, *self.controls], segmented, **unlisted)
        for event in (new, other):
            event.then(self.show_tab_again, [self.shown_tab, *asked], tab_views, **unlisted)
        self.overlay.select(self.pick_place, [self.viewed], of_register, **unlisted)
        self.register.input(self.show_register, [self.viewed, self.register], of_register, **unlisted)
        self.gallery.select(self.pick_from_gallery, [self.viewed], [self.tabs, *of_register], **unlisted)
        for name, tab in self.tab.items():
            tab.select(partial(self.show_tab, name), asked, tab_views, **unlisted)
        self.entry.change(partial(self.show_tab, "dictionary"), asked, tab_views, **unlisted)
        self.entries.select(self.pick_entry, None, self.entry, **unlisted)
        for choice in (self.layer, self.head):
            choice.input(partial(self.show_tab, "attention"), asked, tab_views, **unlisted)

    def new_picture(self, upload: Upload | UploadRefused | None, size: int, *controls: Any) -> dict:
        """Look at a picture, and show its parts and the register of the largest; or say why not, and show nothing."""
        if isinstance(upload, Upload):
            return self._segmented(self.viewer.view(upload.image, upload.name, int(size), PartOptions.of(*controls)), None)
        if upload is not None:
            gr.Warning(upload.message)
        nothing = [self.picture, self.viewed, self.overlay, self.register_map, self.in_examples, self.legend]
        return {self.register: gr.Radio(value=None, visible=False), **dict.fromkeys(nothing)}

    def other_parts(self, viewed: ViewedPicture | None, register: int | None, size: int, *controls: Any) -> dict:
        """Show the parts of the same picture that other settings give."""
        if viewed is None and register is None:  # no picture yet
            return {self.viewed: None}
        viewed = _remembered(viewed)
        return self._segmented(self.viewer.view_again(viewed, PartOptions.of(*controls)), register)

    def _segmented(self, viewed: ViewedPicture, register: int | None) -> dict:
        present = [part["register"] for part in viewed.segments]
        chosen = register if register is not None and register in present else (present or [viewed.register_at(0, 0)])[0]
        parts = {self.overlay: self.viewer.overlay(viewed), self.legend: self.viewer.legend(viewed)}
        return {self.viewed: viewed} | parts | self.show_register(viewed, chosen)

    def pick_place(self, viewed: ViewedPicture | None, place: gr.SelectData) -> dict:
        """Show the register of the part that was clicked at."""
        viewed = _remembered(viewed)
        x, y = place.index
        shown = viewed.shown
        return self.show_register(viewed, viewed.register_at(min(max(x, 0), shown.width - 1), min(max(y, 0), shown.height - 1)))

    def show_register(self, viewed: ViewedPicture | None, register: int) -> dict:
        """Show one register, here and on the example pictures."""
        viewed = _remembered(viewed)
        present = [part["register"] for part in viewed.segments]
        present += [] if register in present else [register]
        choices = [(self.viewer.name_of(viewed, one), one) for one in present]
        return {
            self.register: gr.Radio(choices, value=register, visible=True),
            self.register_map: self.viewer.register_map(viewed, register),
            self.in_examples: self.viewer.register_in_examples(viewed, register),
        }

    def pick_from_gallery(self, viewed: ViewedPicture | None, picked: gr.SelectData) -> dict:
        """Show the register of a picture in the gallery, where all of it is seen."""
        viewed = _remembered(viewed)
        return {self.tabs: gr.Tabs(selected="parts"), **self.show_register(viewed, viewed.segments[picked.index]["register"])}

    def pick_entry(self, picked: gr.SelectData) -> str:
        """The entry of the row that was picked."""
        return picked.row_value[0]

    def show_tab_again(self, name: str, *asked: Any) -> dict:
        """What the open tab shows of a picture or of parts that have changed; another one may have been opened meanwhile."""
        views = self.show_tab(name, *asked)
        del views[self.shown_tab]
        return views or {self.shown_tab: gr.skip()}

    def show_tab(self, name: str, viewed: ViewedPicture | None, entry: str | None, layer: int, head: int) -> dict:
        """What a tab shows; the first one is kept up to date anyway."""
        views: dict[Any, Any] = {}
        if name == "dictionary" and entry is not None:
            views |= {self.entries: self.viewer.entries(viewed), self.entry_in_examples: self.viewer.entry_in_examples(entry)}
            views |= {self.entry_map: None if viewed is None else self.viewer.entry_map(viewed, entry)}
        elif name == "compare":
            views[self.compare] = None if viewed is None else (viewed.shown, self.viewer.overlay(viewed))
        elif name == "gallery":
            views[self.gallery] = None if viewed is None else self.viewer.gallery(viewed)
        elif name == "attention":
            maps = (None, None, None) if viewed is None else self.viewer.attention(viewed, layer, head)
            views |= dict(zip((self.compress, self.communicate, self.broadcast), maps, strict=True))
        elif name == "download":
            views[self.files] = None if viewed is None else self._write_files(viewed)
        return {self.shown_tab: name, **views}

    def _write_files(self, viewed: ViewedPicture) -> list[str]:
        """Files in gradio's own folder, from which it deletes them after a while."""
        folder = Path(self.files.GRADIO_CACHE) / uuid.uuid4().hex
        folder.mkdir(parents=True)
        stem, (part_map, told) = Path(viewed.name).stem, self.viewer.mask_files(viewed)
        part_map.save(folder / f"{stem}-parts.png")
        (folder / f"{stem}-parts.json").write_text(json.dumps(told), encoding="utf-8")
        return [str(path) for path in sorted(folder.iterdir())]


def _drawn(title: str, elem_id: str) -> gr.Image:
    """A picture below its title, which gradio would lay over it."""
    with gr.Column(min_width=250):
        gr.Markdown(f"**{title}**")
        shown: dict[str, Any] = {"show_label": False, "interactive": False, "format": "jpeg", "buttons": ["fullscreen"]}
        return gr.Image(label=title, alt_text=title, elem_id=elem_id, **shown)


def _remembered(viewed: ViewedPicture | None) -> ViewedPicture:
    if viewed is None:
        raise gr.Error("This picture is not kept any more. Pick it again.", print_exception=False)
    return viewed
