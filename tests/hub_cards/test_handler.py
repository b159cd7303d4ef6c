"""Inference Endpoints: the real InferenceClient against a server that runs handler.py as their toolkit does."""

import base64
import io
import json
import re
import shutil
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError
from PIL import Image
from transformers import pipeline

import modeling_rats  # noqa: F401  # registers the task for the reference
from hub_cards import handler
from hub_cards.handler import EndpointHandler
from modeling_rats import PartDictionary, PartEntry, RatsForPartSegmentation
from modeling_rats.part_dictionary import model_fingerprint


class Toolkit(BaseHTTPRequestHandler):
    """Reads a request and answers as huggingface_inference_toolkit does: images by their type, JSON, errors as 400."""

    handler: EndpointHandler
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            is_image = self.headers.get("Content-Type", "").startswith("image/")
            data = {"inputs": Image.open(io.BytesIO(body))} if is_image else json.loads(body)
            status, answer = 200, self.handler(data)
        except Exception as error:
            status, answer = 400, {"error": str(error)}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@contextmanager
def served(folder):
    """The address of an endpoint of a model folder."""
    loaded = EndpointHandler(str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfThisModel", (Toolkit,), {"handler": loaded}))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def endpoint(saved_model):
    with served(saved_model) as address:
        yield address


@pytest.fixture(scope="module")
def client(endpoint):
    return InferenceClient(model=endpoint, token="hf_none")


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def as_text(path):
    return base64.b64encode(path.read_bytes()).decode()


def test_the_client_gets_what_the_pipeline_gives(client, saved_model, photo):
    expected = pipeline("part-segmentation", model=str(saved_model))(Image.open(photo))
    for given in (photo, str(photo)):  # raw bytes would go without a content type
        parts = client.image_segmentation(given)
        assert [(part.label, part.score) for part in parts] == [(part["label"], part["score"]) for part in expected]
        for part, wanted in zip(parts, expected, strict=True):
            assert part.mask.mode == "L" and np.array_equal(np.array(part.mask), np.array(wanted["mask"]))


def test_parameters_arrive(client, saved_model, photo):
    every = client.image_segmentation(photo)
    threshold = sorted(part.score for part in every)[1]
    fewer = client.image_segmentation(photo, threshold=threshold)
    assert len(fewer) == len(every) - 1 and {part.label for part in fewer} < {part.label for part in every}


def test_several_images_are_answered_one_by_one(client, endpoint, photo, tmp_path):
    Image.open(photo).resize((30, 20)).save(tmp_path / "small.png")
    loaded = [as_text(photo), "data:image/png;base64," + as_text(tmp_path / "small.png")]
    answers = json.loads(client._inner_post(request(endpoint, {"inputs": loaded})))
    assert len(answers) == 2
    assert [Image.open(io.BytesIO(base64.b64decode(parts[0]["mask"]))).size for parts in answers] == [(60, 40), (30, 20)]
    assert {"label", "score", "mask", "box", "area", "register", "registers", "head"} == answers[0][0].keys()


def request(endpoint, payload):
    from huggingface_hub.inference._common import RequestParameters

    return RequestParameters(
        url=endpoint,
        task="image-segmentation",
        model=endpoint,
        json=payload,
        data=None,
        headers={"Content-Type": "application/json"},
    )


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({}, "has no 'inputs'"),
        ({"inputs": "not base64!"}, "is no base64"),
        ({"inputs": base64.b64encode(b"no image").decode()}, "is no image that can be read"),
        ({"inputs": 7}, "is a int; it must be base64"),
        ({"inputs": "/etc/hostname"}, "is no base64|is no image"),
        ({"inputs": "http://127.0.0.1/photo.png"}, "is no base64"),
        (
            {"inputs": "PHOTO", "parameters": {"subtask": "semantic"}},
            "Parameters subtask are not known; there are size, threshold",
        ),
        ({"inputs": "PHOTO", "parameters": {"size": {"height": 4096, "width": 4096}}}, "each at most 1024"),
        ({"inputs": "PHOTO", "parameters": {"size": {"height": 60, "width": 60}}}, "do not fit"),
        ({"inputs": "PHOTO", "parameters": {"size": {"shortest_edge": 64}}}, "size=.*shortest_edge.* must be"),
        ({"inputs": base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode()}, "is no image"),
        ({"inputs": "PHOTO", "parameters": {"threshold": "high"}}, "do not fit"),
        ({"inputs": "PHOTO", "parameters": [1]}, "'parameters' is a list"),
        ({"inputs": ["PHOTO"] * 17}, "17 images were sent; one request takes 16"),
        ({"inputs": ["PHOTO", "CUT"]}, r"Image 1 of the request cannot be decoded .*cut off"),
    ],
)
def test_what_cannot_be_answered_is_told(client, endpoint, photo, payload, reason):
    cut = base64.b64encode(photo.read_bytes()[:2000]).decode()
    payload = json.loads(json.dumps(payload).replace("PHOTO", as_text(photo)).replace("CUT", cut))
    with pytest.raises(BadRequestError) as refused:
        client._inner_post(request(endpoint, payload))
    assert re.search(reason, refused.value.server_message)


def test_a_huge_image_is_refused_before_it_is_decoded(saved_model, monkeypatch):
    monkeypatch.setattr(handler, "MAX_PIXELS", 1000)
    png = io.BytesIO()
    Image.new("RGB", (50, 50)).save(png, format="PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="50 x 50 pixels; at most 1,000"):
        object.__new__(EndpointHandler)({"inputs": base64.b64encode(png.getvalue()).decode()})
    monkeypatch.setattr(handler, "MAX_FILE_BYTES", 30)
    with pytest.raises(ValueError, match="more than 30 bytes"):
        object.__new__(EndpointHandler)({"inputs": base64.b64encode(png.getvalue()).decode()})


def test_a_photo_lies_as_it_is_displayed(client, tmp_path):
    photo = Image.new("RGB", (60, 40))
    exif = photo.getexif()
    exif[0x0112] = 6  # turned by a quarter
    photo.save(tmp_path / "turned.jpg", exif=exif)
    assert client.image_segmentation(tmp_path / "turned.jpg")[0].mask.size == (40, 60)


def test_a_dictionary_in_the_repository_names_parts(saved_model, tmp_path):
    folder = tmp_path / "repository"
    shutil.copytree(saved_model, folder)
    model = RatsForPartSegmentation.from_pretrained(folder)
    vectors = torch.eye(2, model.config.hidden_size)
    entries = [PartEntry("wheel", threshold=-1.0), PartEntry("window", threshold=-1.0)]
    PartDictionary(entries, vectors, {"fingerprint": model_fingerprint(model)}).save_pretrained(folder / "dictionary")
    parts = EndpointHandler(str(folder))({"inputs": Image.new("RGB", (64, 64), "red")})
    assert parts and all(part["label"] == part["name"] and part["name"] in ("wheel", "window") for part in parts)
    assert all(-1 <= part["name_score"] <= 1 for part in json.loads(json.dumps(parts)))


# Models that were fine-tuned to segment


def test_a_segmenter_answers_as_its_pipeline_does(segmenter, photo):
    """In the task that it was trained for, unless another one is asked for."""
    reference = pipeline("image-segmentation", model=str(segmenter))
    with served(segmenter) as address:
        client = InferenceClient(model=address, token="hf_none")
        for asked, options in (({}, {"subtask": "semantic"}), ({"subtask": "instance", "threshold": 0.0},) * 2):
            found, expected = client.image_segmentation(photo, **asked), reference(Image.open(photo), **options)
            assert [(one.label, one.score) for one in found] == [(one["label"], one["score"]) for one in expected] != []
            for one, wanted in zip(found, expected, strict=True):
                assert one.mask.mode == "L" and np.array_equal(np.array(one.mask), np.array(wanted["mask"]))
        for parameters, reason in (
            ({"min_area": 3}, "min_area are not known; there are subtask, threshold"),
            ({"subtask": "parts", "threshold": "high"}, "do not fit"),
        ):
            with pytest.raises(BadRequestError) as refused:
                client._inner_post(request(address, {"inputs": as_text(photo), "parameters": parameters}))
            assert re.search(reason, refused.value.server_message)


def test_masks_of_a_large_image_have_its_size(segmenter, photo, monkeypatch):
    seen = []
    loaded = EndpointHandler(str(segmenter))
    loaded.segmenter = lambda image, **options: seen.append((image.size, options)) or [{"label": "disc", "mask": image}]
    monkeypatch.setattr(handler, "MAX_SEGMENTED_PX", 30)
    (answer,) = loaded({"inputs": as_text(photo)})
    assert seen == [((30, 20), {"subtask": "semantic"})]
    assert Image.open(io.BytesIO(base64.b64decode(answer["mask"]))).size == (60, 40)


def test_a_segmenter_without_a_record_of_training_takes_the_pipelines_task(segmenter):
    (segmenter / "training.json").unlink()
    assert EndpointHandler(str(segmenter)).defaults == {}
