"""Sample with numpy and onnxruntime alone.

hybvit export fashion-mnist --out exported && python examples/sample_onnx.py exported samples.npy
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def sample(folder: str, x: np.ndarray, steps: int = 20, labels: np.ndarray | None = None) -> np.ndarray:
    """DPM-Solver++(2M): noise x, float32 [n, C, H, W] -> uint8 [n, C, H, W]; labels int64 [n] for a model that takes them."""
    about = json.loads(Path(folder, "model.json").read_text())
    denoiser = onnxruntime.InferenceSession(Path(folder, about["graphs"]["denoiser"]["file"]))
    abar = np.array(about["alpha_bar"])  # abar_0..abar_T: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise
    signal, noise, T = np.sqrt(abar), np.sqrt(1 - abar), len(abar) - 1
    if about["no_label"] is not None and labels is None:
        labels = np.full(len(x), about["no_label"])
    before = h_before = None
    times = [*np.rint(T - np.arange(steps) * (T / steps)).astype(int), 0]
    for t, s in zip(times[:-1], times[1:], strict=True):
        inputs = {"x_t": x, "t": np.full(len(x), t)} | ({} if labels is None else {"y": labels})
        x0 = denoiser.run(None, inputs)[0].clip(-1, 1)
        if s == 0:
            break
        h = np.log(signal[s] / noise[s]) - np.log(signal[t] / noise[t])
        d = x0 if before is None else x0 + np.float32(h / (2 * h_before)) * (x0 - before)
        x = np.float32(noise[s] / noise[t]) * x - np.float32(signal[s] * np.expm1(-h)) * d
        before, h_before = x0, h
    return np.rint((x0 + 1) * 127.5).astype(np.uint8)


if __name__ == "__main__":
    if len(sys.argv) != 3 or not Path(sys.argv[1], "model.json").is_file():
        sys.exit("usage: sample_onnx.py FOLDER OUT.npy, with the FOLDER of `hybvit export`")
    shape = json.loads(Path(sys.argv[1], "model.json").read_text())["image_shape"]
    np.save(sys.argv[2], sample(sys.argv[1], np.random.default_rng(0).standard_normal((64, *shape), dtype=np.float32)))
