// The digits model in the browser: its label for an image, and new digits by DPM-Solver++(2M) (method/samplers.py: dpmpp_2m).
// Images are Float32Arrays of n * 64 values in [-1, 1], as model.json says.
import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

export async function open(folder = "./model") {
  const about = await (await fetch(`${folder}/model.json`)).json();
  const session = (name) => ort.InferenceSession.create(`${folder}/${about.graphs[name].file}`);
  return { about, classifier: await session("classifier"), denoiser: await session("denoiser") };
}

function images(model, x) {
  const [c, h, w] = model.about.image_shape;
  return new ort.Tensor("float32", x, [x.length / (c * h * w), c, h, w]);
}

// The probabilities of the classes of one image.
export async function classify(model, x) {
  const { scale, bias } = model.about; // of the calibration: a number, or one for each class
  const of = (values, k) => (Array.isArray(values) ? values[k] : values);
  const { logits } = await model.classifier.run({ x: images(model, x) });
  const calibrated = Array.from(logits.data, (logit, k) => logit * of(scale, k) + of(bias, k));
  const top = Math.max(...calibrated);
  const powers = calibrated.map((logit) => Math.exp(logit - top));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

async function predict(model, x, t) {
  const batch = images(model, x);
  const times = new ort.Tensor("int64", new BigInt64Array(batch.dims[0]).fill(BigInt(t)), [batch.dims[0]]);
  const { x0 } = await model.denoiser.run({ x_t: batch, t: times });
  return x0.data.map((value) => Math.min(1, Math.max(-1, value)));
}

// From standard normal noise to images; `show` is called with the predicted images after each step.
export async function sample(model, noise, steps = 20, show = async () => {}) {
  const abar = model.about.alpha_bar;
  const T = abar.length - 1;
  const signal = abar.map(Math.sqrt);
  const sigma = abar.map((value) => Math.sqrt(1 - value));
  let x = noise, before = null, hBefore = null;
  for (let i = 0; i < steps; i++) {
    const t = Math.round(T - (i * T) / steps), s = i + 1 < steps ? Math.round(T - ((i + 1) * T) / steps) : 0;
    const x0 = await predict(model, x, t);
    await show(x0);
    if (s === 0) return x0;
    const h = Math.log(signal[s] / sigma[s]) - Math.log(signal[t] / sigma[t]);
    const lead = before ? h / (2 * hBefore) : 0, keep = sigma[s] / sigma[t], add = -signal[s] * Math.expm1(-h);
    const d = before ? x0.map((value, j) => value + lead * (value - before[j])) : x0;
    x = x.map((value, j) => keep * value + add * d[j]);
    before = x0;
    hBefore = h;
  }
}

// Standard normal numbers from a seed: mulberry32, then Box and Muller.
export function normal(n, seed) {
  const uniform = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let z = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z;
    return ((z ^ (z >>> 14)) >>> 0) / 4294967296;
  };
  return Float32Array.from({ length: n }, () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
}

// A drawing, as the digits of the data set were made: the part with ink, scaled to 32 x 32 black or white dots; a pixel is the
// number of white dots in 4 x 4. Null where nothing is drawn.
export function toImage(canvas) {
  const { width, height } = canvas, ink = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      if (ink[4 * (y * width + x) + 3] > 127) {
        [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x + 1), Math.min(top, y), Math.max(bottom, y + 1)];
      }
  if (right <= left) return null;
  const scale = 32 / Math.max(bottom - top, (right - left) * 0.8); // of a wide drawing the width is pressed a little
  const wide = Math.min(26, (right - left) * scale), high = (bottom - top) * scale;
  const small = new OffscreenCanvas(32, 32).getContext("2d");
  small.imageSmoothingQuality = "high";
  small.drawImage(canvas, left, top, right - left, bottom - top, (32 - wide) / 2, (32 - high) / 2, wide, high);
  const dots = small.getImageData(0, 0, 32, 32).data;
  const counts = new Float32Array(64);
  for (let i = 0; i < 1024; i++) counts[8 * (i >> 7) + ((i & 31) >> 2)] += dots[4 * i + 3] > 127;
  return counts.map((count) => count / 8 - 1);
}
