// The page: takes pictures, asks the network, shows what it says. `ceitModel` and `ceitRuntime` come from the files
// beside the page; `KINDS`, `IS_WHOLE` and `bare` from files.js; `takeRows`, `turned`, `seen`, `normalised` and
// `probabilities` from pixels.js.
"use strict";

const about = JSON.parse(document.getElementById("about").textContent);
const MAX_BYTES = 40e6, MAX_PIXELS = 64e6, MAX_SIDE = 16384, STRIP_PIXELS = 4e6, SHOWN = 5, SHOWN_PICTURES = 100;
const NO_MEMORY = "this browser has too little memory left: close other pages and load this one again";

const list = document.getElementById("answers"), state = document.getElementById("state");
const warning = document.getElementById("warning");
const chooser = document.getElementById("chooser"), place = document.getElementById("place");
let session, ort, asked;

async function unpacked(base64) {
  const letters = atob(base64), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function start() {
  for (const [name, file] of [["ceitModel", "model.js"], ["ceitRuntime", "runtime.js"]]) {
    if (!(name in globalThis)) {
      throw new Error(`${file} is missing: unpack the whole folder first, on a phone open it from a web server`);
    }
  }
  const address = URL.createObjectURL(new Blob([await unpacked(ceitRuntime.module)], { type: "text/javascript" }));
  ort = await import(address);
  URL.revokeObjectURL(address);
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = 1; // more would need headers of a server
  ort.env.wasm.wasmBinary = await unpacked(ceitRuntime.wasm);
  session = await ort.InferenceSession.create(await unpacked(ceitModel), { executionProviders: ["wasm"] });
  if (!readsTruly()) {
    warning.textContent = "This browser changes the pixels that a page reads, as a protection against tracking. "
      + "Answers may differ from those of ceit predict.";
  }
}

// Whether pixels come back as they were drawn.
function readsTruly() {
  const side = 16, pen = canvas(side, side);
  const pixels = pen.createImageData(side, side);
  for (let i = 0; i < pixels.data.length; i++) pixels.data[i] = i % 4 === 3 ? 255 : (i * 37) % 256;
  pen.putImageData(pixels, 0, 0);
  const back = pen.getImageData(0, 0, side, side).data;
  release(pen);
  return pixels.data.every((value, i) => value === back[i]);
}

function canvas(width, height) {
  const element = Object.assign(document.createElement("canvas"), { width, height });
  const pen = element.getContext("2d", { willReadFrequently: true, alpha: false });
  if (!pen) throw new Error(NO_MEMORY);
  return pen;
}

// Gives the memory of a canvas back, which phones have for a few, and free late by themselves.
function release(pen) {
  pen.canvas.width = pen.canvas.height = 0;
}

// What went wrong, in the middle of a sentence; browsers and the runtime have several names for a lack of memory.
function reason(error) {
  return /RangeError|out of memory/i.test(String(error)) ? NO_MEMORY : error.message;
}

// A file as a picture that can be decoded, its kind, and how it lies then. Throws a sentence for what is none, not
// whole, or too large.
async function opened(file) {
  if (file.size > MAX_BYTES) {
    throw new Error(`it is ${mega(file.size)} MB, this page takes up to ${mega(MAX_BYTES)} MB`);
  }
  const bytes = new Uint8Array(await file.arrayBuffer()), start = String.fromCharCode(...bytes.subarray(0, 32));
  const kind = Object.keys(KINDS).find((name) => KINDS[name].test(start));
  if (!kind) throw new Error("it is no picture that this page knows: give a PNG, JPEG, WebP, GIF, BMP or AVIF");
  if (IS_WHOLE[kind] && !IS_WHOLE[kind](bytes)) throw new Error(`this ${kind} breaks off: copy or download it again`);
  const { pieces, orientation } = bare(bytes, kind);
  return { kind, orientation, blob: new Blob(pieces) };
}

function mega(count) {
  return (count / 1e6).toFixed(count < 1e7 ? 1 : 0);
}

// Width and height as the header says, so that a huge picture is never decoded.
async function sizeOf(blob, kind) {
  const address = URL.createObjectURL(blob), image = new Image();
  try {
    await new Promise((done, failed) => {
      image.onload = done;
      image.onerror = () => failed(new Error(`this ${kind} is damaged, or this browser does not read it`));
      image.src = address;
    });
    return [image.naturalWidth, image.naturalHeight];
  } finally {
    URL.revokeObjectURL(address);
  }
}

// The file as a picture of the network's channels, upright, transparency on white, colours as they are stored.
async function read(file) {
  const { kind, orientation, blob } = await opened(file), [width, height] = await sizeOf(blob, kind);
  if (width * height > MAX_PIXELS) {
    throw new Error(`it has ${mega(width * height)} megapixels, this page takes up to ${mega(MAX_PIXELS)}`);
  }
  const side = Math.max(width, height);
  if (side > MAX_SIDE) { // a wider canvas loses pixels, in some browsers without an error
    throw new Error(`its longer side has ${side} pixels, this page takes up to ${MAX_SIDE}`);
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch (error) {
    if (error instanceof TypeError) throw error; // of the call, whatever the picture
    throw new Error(`this ${kind} is damaged, or this browser does not read it`);
  }
  let picture;
  try {
    picture = drawn(bitmap);
  } finally {
    bitmap.close();
  }
  return { picture: turned(picture, orientation), isJpeg: kind === "JPEG" };
}

// The pixels of a bitmap on white.
function drawn(bitmap) {
  const { width, height } = bitmap, channels = about.in_chans, rows = Math.max(1, Math.floor(STRIP_PIXELS / width));
  const picture = { width, height, channels, data: new Uint8Array(width * height * channels) };
  const pen = canvas(width, Math.min(rows, height)); // in strips: phones allow no large canvas
  try {
    for (let top = 0; top < height; top += rows) {
      const count = Math.min(rows, height - top);
      pen.fillStyle = "#ffffff";
      pen.fillRect(0, 0, width, count);
      pen.drawImage(bitmap, 0, -top);
      takeRows(picture, pen.getImageData(0, 0, width, count).data, top);
    }
    return picture;
  } finally {
    release(pen);
  }
}

async function classified(file) {
  const { picture, isJpeg } = await read(file), input = seen(picture, about, isJpeg);
  const [height, width] = about.image_hw;
  const values = normalised(input, about.mean, about.std);
  const images = new ort.Tensor("float32", values, [1, about.in_chans, height, width]);
  const { logits } = await session.run({ images });
  const shares = probabilities(logits.data, about.temperature);
  if (!shares.every(Number.isFinite)) throw new Error("the network's answer is not a number: its weights are damaged");
  const answers = shares.map((share, i) => ({ label: about.class_names[i], probability: share }));
  return { input, answers: answers.sort((one, other) => other.probability - one.probability) };
}

function element(name, text, ...classes) {
  const made = document.createElement(name);
  made.textContent = text;
  made.classList.add(...classes);
  return made;
}

// What the network saw, in its own pixels.
function view({ width, height, channels, data }) {
  const pen = canvas(width, height), pixels = pen.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let channel = 0; channel < 3; channel++) {
      pixels.data[4 * i + channel] = data[i * channels + (channels === 3 ? channel : 0)];
    }
    pixels.data[4 * i + 3] = 255;
  }
  pen.putImageData(pixels, 0, 0);
  pen.canvas.setAttribute("role", "img");
  pen.canvas.setAttribute("aria-label", "what the model sees");
  if (Math.max(width, height) <= 64) pen.canvas.classList.add("small");
  return pen.canvas;
}

function bars(answers) {
  const table = element("table", "");
  for (const { label, probability } of answers.slice(0, SHOWN)) {
    const row = table.insertRow(), name = element("th", label), bar = element("td", ""), share = element("td", "");
    name.scope = "row";
    bar.append(element("span", "", "bar"));
    bar.firstChild.style.width = `${100 * probability}%`;
    share.textContent = `${(100 * probability).toFixed(1)}%`;
    share.dataset.probability = String(probability);
    row.append(name, bar, share);
  }
  return table;
}

// A card that waits for its answer; pictures are asked about one after another. A folder gets its answer at once.
function card(file) {
  const made = element("li", ""), name = file.name || "the pasted picture";
  if (file.isDirectory) {
    const advice = `${name} is a folder: open it and choose the pictures in it.`;
    made.append(element("h2", name), element("p", advice, "fault"));
    made.dataset.done = "";
    return made;
  }
  made.append(element("h2", name), element("p", "waiting", "soft"));
  asked = asked.then(async () => {
    try {
      await started;
      const { input, answers } = await classified(file);
      made.lastChild.replaceWith(view(input), bars(answers));
    } catch (error) {
      made.lastChild.replaceWith(element("p", `${name} cannot be classified: ${reason(error)}.`, "fault"));
    }
    made.dataset.done = "";
  });
  return made;
}

function take(files) {
  const pictures = [...files];
  list.prepend(...pictures.slice(0, SHOWN_PICTURES).map(card));
  state.textContent = "";
  if (pictures.length > SHOWN_PICTURES) {
    state.textContent = `${pictures.length - SHOWN_PICTURES} of ${pictures.length} pictures are left out: this page `
      + `takes ${SHOWN_PICTURES} at a time, ceit predict any number.`;
  } else if (!pictures.length) {
    state.textContent = "That is no file. Save the picture first, then choose or drop it.";
  }
}

// What was dropped: files, and in the place of a folder, which no browser reads as a file, its entry.
function dropped(transfer) {
  return [...transfer.items].filter((item) => item.kind === "file").map((item) => {
    const entry = item.webkitGetAsEntry?.();
    return entry?.isDirectory ? entry : item.getAsFile();
  });
}

chooser.addEventListener("change", () => {
  take(chooser.files);
  chooser.value = ""; // the same file may be chosen again
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    place.classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") take(dropped(event.dataTransfer));
  });
}

const started = start();
asked = started.then(
  () => {
    state.textContent = "";
    chooser.disabled = false;
    document.body.dataset.ready = "";
  },
  (error) => {
    state.textContent = "";
    const isOld = !("DecompressionStream" in globalThis && "WebAssembly" in globalThis);
    warning.textContent = `The model cannot be started: ${reason(error)}.`
      + (isOld ? " This page needs a browser of 2023 or newer." : "");
  },
);
