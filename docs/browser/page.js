// What the page does: drawn strokes to the bars of the labels, and the button to 64 new digits.
import * as digits from "./digits.js";

const $ = (id) => document.getElementById(id);
const drawing = $("drawing"), pen = drawing.getContext("2d", { willReadFrequently: true });
const say = (text) => { $("status").textContent = text; };
Object.assign(pen, { lineWidth: 26, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
const model = await digits.open();

function showLabels(probabilities) {
  const top = Math.max(...probabilities);
  $("labels").replaceChildren(...probabilities.map((p, k) => {
    const row = document.createElement("li"), bar = document.createElement("i");
    const [name, share] = [model.about.classes[k], `${(100 * p).toFixed(1)} %`].map((text) => Object.assign(document.createElement("span"), { textContent: text }));
    bar.style.width = `${100 * p}%`;
    row.classList.toggle("top", p > 0 && p === top);
    row.append(name, bar, share);
    return row;
  }));
}

let reading = Promise.resolve(); // one run of a session at a time
const read = () => (reading = reading.then(async () => {
  const image = digits.toImage(drawing);
  showLabels(image ? await digits.classify(model, image) : Array(10).fill(0));
}));

let last = null;
const place = (event) => [event.offsetX, event.offsetY].map((value) => (value * drawing.width) / drawing.clientWidth);
drawing.addEventListener("pointerdown", (event) => { drawing.setPointerCapture(event.pointerId); last = place(event); stroke(event); });
drawing.addEventListener("pointermove", (event) => { if (last) stroke(event); });
for (const end of ["pointerup", "pointercancel"]) drawing.addEventListener(end, () => { last = null; read(); });
function stroke(event) {
  pen.beginPath();
  pen.moveTo(...last);
  pen.lineTo(...(last = place(event)));
  pen.stroke();
}
$("clear").addEventListener("click", () => { pen.clearRect(0, 0, drawing.width, drawing.height); read(); });

async function showGrid(x) { // 8 rows of 8 digits of 8 x 8 pixels, two pixels apart
  const picture = new ImageData(81, 81), at = $("grid").getContext("2d");
  for (let i = 3; i < picture.data.length; i += 4) picture.data[i] = 255;
  x.forEach((value, i) => {
    const image = i >> 6, row = 10 * (image >> 3) + ((i >> 3) & 7), column = 10 * (image & 7) + (i & 7);
    const start = 4 * (81 * (row + 1) + column + 1);
    picture.data.fill(Math.round((value + 1) * 127.5), start, start + 3);
  });
  at.putImageData(picture, 0, 0);
  await new Promise((done) => setTimeout(done)); // lets the browser paint
}

async function draw() {
  $("draw").disabled = true;
  const steps = Math.min(200, Math.max(1, Math.round($("steps").value) || 20)), started = performance.now();
  await digits.sample(model, digits.normal(64 * 64, Math.round($("seed").value) || 0), steps, showGrid);
  say(`64 digits in ${steps} steps: ${((performance.now() - started) / 1000).toFixed(1)} s.`);
  $("draw").disabled = false;
}
$("draw").addEventListener("click", draw);
showLabels(Array(10).fill(0));
await draw();
