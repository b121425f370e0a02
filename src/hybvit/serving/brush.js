// The mask is painted on a canvas with a cell for each pixel of the model, and goes to the server row by row as 0s and 1s.
// gradio calls this with the component's element and its props.
const canvas = element.querySelector("canvas"), image = element.querySelector("img");
const paint = canvas.getContext("2d");
const side = canvas.width, width = Math.max(1, Math.round(side / 8));
const mask = new Uint8Array(side * side);
let cursor = [side >> 1, side >> 1], painting = false;

const between = (low, value, high) => Math.min(Math.max(value, low), high);
const corner = (middle) => between(0, Math.round(middle - width / 2), side - width);

function show() {
  paint.clearRect(0, 0, side, side);
  paint.fillStyle = "#ff3d7fb8";
  mask.forEach((on, i) => on && paint.fillRect(i % side, Math.floor(i / side), 1, 1));
  if (canvas.matches(":focus-visible")) {
    paint.strokeStyle = "#1d6fd8";
    paint.strokeRect(corner(cursor[0]) + 0.5, corner(cursor[1]) + 0.5, width - 1, width - 1);
  }
}

function stamp([x, y]) {
  for (let row = corner(y); row < corner(y) + width; row++) {
    mask.fill(1, row * side + corner(x), row * side + corner(x) + width);
  }
  show();
}

function tell() {
  props.value = { ...props.value, mask: mask.join("") };
}

function clear() {
  mask.fill(0);
  show();
  tell();
}

function at(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * side, ((event.clientY - box.top) / box.height) * side];
}

canvas.addEventListener("pointerdown", (event) => {
  painting = true;
  canvas.setPointerCapture(event.pointerId);
  stamp(at(event));
});
canvas.addEventListener("pointermove", (event) => painting && stamp(at(event)));
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => {
    painting = false;
    tell();
  });
}
canvas.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (step) {
    cursor = cursor.map((place, k) => between(0, place + step[k], side - 1));
    show();
  } else if (event.key === " ") {
    stamp(cursor);
    tell();
  } else if (event.key === "Delete") {
    clear();
  } else {
    return;
  }
  event.preventDefault();
});
canvas.addEventListener("focus", show);
canvas.addEventListener("blur", show);
element.querySelector(".clear").addEventListener("click", clear);
image.addEventListener("load", clear); // another picture
