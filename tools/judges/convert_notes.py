"""The network of basic-pitch as safetensors, and what the original makes of sounds.

    pip install --no-deps --target PACKAGES basic-pitch==0.4.0 onnx ml_dtypes protobuf
    PYTHONPATH=PACKAGES python tools/judges/convert_notes.py PACKAGES/basic_pitch        # writes the weights
    PYTHONPATH=PACKAGES python tools/judges/convert_notes.py PACKAGES/basic_pitch --check [--golden FILE]

`--check` needs onnxruntime as well: it runs the original and our network on music, silence, noise and tones of
several lengths and prints the largest difference, as a share of the largest element. `--golden` stores a part of
the original's numbers for the tests. Neither package is part of diffdpo.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.encoders.notes import NOTES_SAMPLE_RATE, NOTES_WEIGHTS, load_notes
from tools.judges.sounds import parse_arguments, sounds

GRAPH = "basic_pitch/saved_models/icassp_2022/nmp.onnx"
OUTPUTS = ("StatefulPartitionedCall:1", "StatefulPartitionedCall:2", "StatefulPartitionedCall:0")
"""Notes, onsets, contours."""
PARTS = ("note", "onset", "contour")
STEP = 61
"""The golden file keeps every STEP-th number of each output."""


def initializers(path: Path) -> list[tuple[str, np.ndarray]]:
    """The graph's constants by name, in its order."""
    import onnx
    from onnx import numpy_helper

    return [(row.name, numpy_helper.to_array(row)) for row in onnx.load(str(path)).graph.initializer]


def convolutions(path: Path) -> list[tuple[np.ndarray, np.ndarray, tuple[int, int]]]:
    """Weight, bias and strides of every convolution, in the order of the graph."""
    import onnx

    constants = dict(initializers(path))
    rows = []
    for node in onnx.load(str(path)).graph.node:
        if node.op_type == "Conv":
            (strides,) = [attribute.ints for attribute in node.attribute if attribute.name == "strides"]
            rows.append((constants[node.input[1]], constants[node.input[2]], tuple(strides)))
    return rows


def convert(path: Path) -> dict[str, np.ndarray]:
    """The weights under the names of `NoteNetwork`.

    The graph computes minus the imaginary part and squares it; the sign does not matter here either.
    """
    layers = convolutions(path)
    shapes = [layer[0].shape for layer in layers]
    filters = [layer[0] for layer in layers if layer[0].shape == (36, 1, 1, 256)][:2]
    low_pass = layers[shapes.index((1, 1, 1, 256))][0]
    constants = initializers(path)
    (scale,) = [array for name, array in constants if array.shape == (309, 1, 1)]
    norm = [array for name, array in constants if "batch_normalization" in name and array.shape == (1,)]
    state = {
        "transform.filters": np.concatenate(filters)[:, :, 0],
        "transform.low_pass": low_pass[:, :, 0],
        "transform.scale": scale.reshape(-1),
        "input_scale": next(array for array in norm if array[0] > 0),
        "input_shift": next(array for array in norm if array[0] < 0),
    }
    names = {
        "contour.0": (8, 8, 3, 39),
        "contour.2": (1, 8, 5, 5),
        "note.0": (32, 1, 7, 7),
        "note.2": (1, 32, 7, 3),
        "attack.0": (32, 8, 5, 5),
        "onset": (1, 33, 3, 3),
    }
    for name, shape in names.items():
        state[f"{name}.weight"], state[f"{name}.bias"], _ = layers[shapes.index(shape)]
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def original(path: Path) -> Any:
    """A function from samples at 22,050 Hz to notes, onsets and contours, by onnxruntime on its own windows."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(samples: np.ndarray) -> list[np.ndarray]:
        width, overlap = 43_844, 30 * 256
        y = np.concatenate([np.zeros(overlap // 2, np.float32), samples])
        starts = range(0, len(y), width - overlap)
        windows = [np.pad(y[at : at + width], (0, max(0, width - len(y[at:])))) for at in starts]
        outputs = session.run(list(OUTPUTS), {"serving_default_input_2:0": np.stack(windows)[..., None]})
        count = int(len(samples) * 86 / 22_050)
        return [output[:, 15:-15].reshape(-1, output.shape[2])[:count] for output in outputs]

    return run


def check(path: Path, golden: Path | None) -> None:
    """Compare the outputs of both on every sound; print, and store what the tests compare."""
    torch.set_num_threads(1)
    network, run = load_notes(NOTES_WEIGHTS), original(path)
    stored, worst = {}, 0.0
    for name, samples in sounds(NOTES_SAMPLE_RATE).items():
        begin = time.process_time()
        notes = network.transcribe(torch.from_numpy(samples))
        seconds = time.process_time() - begin
        for part, values in zip(PARTS, run(samples), strict=True):
            ours = getattr(notes, part).numpy()
            assert ours.shape == values.shape, (name, part, ours.shape, values.shape)
            error = float(np.abs(ours - values).max() / np.abs(values).max())
            worst = max(worst, error)
            stored[f"{name}/{part}"] = values.reshape(-1)[::STEP].copy()
            print(
                f"{name:14s} {part:8s} {error:.1e}   largest {values.max():.3f}   {seconds:.2f} processor s"
            )
    print(f"largest difference {worst:.1e} of the largest element")
    if golden:
        save_file(
            stored,
            golden,
            metadata={"source": "basic-pitch 0.4.0 (Apache-2.0) by onnxruntime", "step": str(STEP)},
        )


if __name__ == "__main__":
    arguments = parse_arguments(__doc__)
    graph = arguments.package / GRAPH
    if arguments.check:
        check(graph, arguments.golden)
    else:
        save_file(
            convert(graph), NOTES_WEIGHTS, metadata={"source": "basic-pitch 0.4.0", "license": "Apache-2.0"}
        )
        print(f"{NOTES_WEIGHTS}: {NOTES_WEIGHTS.stat().st_size} bytes")
