// The page: takes pictures, asks the network, shows what it says. `ceitModel` and `ceitRuntime` come from the files
// beside the page; `seen`, `normalised` and `probabilities` from pixels.js.
"use strict";

const about = JSON.parse(document.getElementById("about").textContent);
const MAX_BYTES = 40e6, MAX_PIXELS = 64e6, MAX_SIDE = 16384, STRIP_PIXELS = 4e6, SHOWN = 5, SHOWN_PICTURES = 100;

// The first bytes of what browsers decode, as text of one character a byte.
const KINDS = {
  PNG: /^\x89PNG\r\n\x1a\n/, JPEG: /^\xff\xd8\xff/, GIF: /^GIF8[79]a/, WebP: /^RIFF[^]{4}WEBP/,
  BMP: /^BM[^]{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0/,
  AVIF: /^[^]{4}ftyp(avif|avis)/, HEIC: /^[^]{4}ftyp(heic|heix|mif1)/, TIFF: /^(II\*\0|MM\0\*)/,
};

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
    if (!(name in globalThis)) throw new Error(`${file} is missing: it must lie in the folder of this page`);
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
  return pixels.data.every((value, i) => value === back[i]);
}

function canvas(width, height) {
  const element = Object.assign(document.createElement("canvas"), { width, height });
  return element.getContext("2d", { willReadFrequently: true, alpha: false });
}

// Whether a file goes on to the end of its picture: some browsers fill up with grey what a download has lost. What
// comes after it, such as the film of a motion photo, does not matter.
const IS_WHOLE = {
  JPEG(bytes) {
    let at = 2;
    while (at + 1 < bytes.length) {
      const marker = bytes[at + 1];
      if (bytes[at] !== 0xff) at++; // of a scan
      else if (marker === 0xd9) return true;
      else if (marker === 0xff) at++; // filling
      else if (marker === 0 || (0xd0 <= marker && marker <= 0xd7)) at += 2; // of a scan, too
      else at += 2 + ((bytes[at + 2] << 8) | bytes[at + 3]);
    }
    return false;
  },
  PNG: (bytes) => chunks(bytes, 8, 0).some(({ kind }) => kind === "IEND"),
  WebP: (bytes) => bytes.length >= new DataView(bytes.buffer).getUint32(4, true) + 8,
};

// The chunks of a PNG, or of a WebP with its other order of fields, that are whole: each its kind, begin and end.
function chunks(bytes, first, sizeAt) {
  const view = new DataView(bytes.buffer), found = [], isPng = sizeAt === 0;
  for (let begin = first, end; begin + 8 <= bytes.length; begin = end) {
    const size = view.getUint32(begin + sizeAt, !isPng), kindAt = begin + 4 - sizeAt;
    end = begin + 8 + size + (isPng ? 4 : size % 2);
    if (end <= bytes.length) {
      found.push({ kind: String.fromCharCode(...bytes.subarray(kindAt, kindAt + 4)), begin, end });
    }
  }
  return found;
}

// The bytes as Pillow takes them: of an animated PNG the picture that programs without animation show.
function still(bytes, kind) {
  const animation = kind === "PNG" && chunks(bytes, 8, 0).find((chunk) => chunk.kind === "acTL");
  return animation ? [bytes.subarray(0, animation.begin), bytes.subarray(animation.end)] : [bytes];
}

// Whether a WebP says that it is to be turned, which not all browsers heed.
function isTurnedWebp(bytes) {
  const exif = chunks(bytes, 12, 4).find(({ kind }) => kind === "EXIF");
  if (!exif) return false;
  const text = String.fromCharCode(...bytes.subarray(exif.begin + 8, Math.min(exif.end, exif.begin + 4096)));
  return /\x12\x01\x03\0\x01\0\0\0[\x02-\x08]\0|\x01\x12\0\x03\0\0\0\x01\0[\x02-\x08]/.test(text);
}

// A file as a picture that can be decoded, and its kind. Throws a sentence for what is none, not whole, or too large.
async function opened(file) {
  if (file.size > MAX_BYTES) {
    throw new Error(`it is ${mega(file.size)} MB, this page takes up to ${mega(MAX_BYTES)} MB`);
  }
  const bytes = new Uint8Array(await file.arrayBuffer()), start = String.fromCharCode(...bytes.subarray(0, 32));
  const kind = Object.keys(KINDS).find((name) => KINDS[name].test(start));
  if (!kind) throw new Error("it is no picture that this page knows: give a PNG, JPEG, WebP, GIF, BMP or AVIF");
  if (IS_WHOLE[kind] && !IS_WHOLE[kind](bytes)) throw new Error(`this ${kind} breaks off: copy or download it again`);
  if (kind === "WebP" && isTurnedWebp(bytes)) {
    throw new Error("this WebP is to be turned, which not all browsers do: save it as a PNG or JPEG");
  }
  return { kind, blob: new Blob(still(bytes, kind)) };
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
  const { kind, blob } = await opened(file), [width, height] = await sizeOf(blob, kind);
  if (width * height > MAX_PIXELS) {
    throw new Error(`it has ${mega(width * height)} megapixels, this page takes up to ${mega(MAX_PIXELS)}`);
  }
  const side = Math.max(width, height);
  if (side > MAX_SIDE) { // a wider canvas loses pixels, in some browsers without an error
    throw new Error(`its longer side has ${side} pixels, this page takes up to ${MAX_SIDE}`);
  }
  const asStored = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, asStored);
  } catch {
    throw new Error(`this ${kind} is damaged, or this browser does not read it`);
  }
  try {
    const channels = about.in_chans, rows = Math.max(1, Math.floor(STRIP_PIXELS / bitmap.width));
    const data = new Uint8Array(bitmap.width * bitmap.height * channels);
    const picture = { width: bitmap.width, height: bitmap.height, channels, data };
    const pen = canvas(bitmap.width, Math.min(rows, bitmap.height)); // in strips: phones allow no large canvas
    for (let top = 0; top < bitmap.height; top += rows) {
      const count = Math.min(rows, bitmap.height - top);
      pen.fillStyle = "#ffffff";
      pen.fillRect(0, 0, bitmap.width, count);
      pen.drawImage(bitmap, 0, -top);
      takeRows(picture, pen.getImageData(0, 0, bitmap.width, count).data, top);
    }
    return { picture, isJpeg: kind === "JPEG" };
  } finally {
    bitmap.close();
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

// A card that waits for its answer; pictures are asked about one after another.
function card(file) {
  const made = element("li", ""), name = file.name || "the pasted picture";
  made.append(element("h2", name), element("p", "waiting", "soft"));
  asked = asked.then(async () => {
    try {
      await started;
      const { input, answers } = await classified(file);
      made.lastChild.replaceWith(view(input), bars(answers));
    } catch (error) {
      made.lastChild.replaceWith(element("p", `${name} cannot be classified: ${error.message}.`, "fault"));
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
    if (name === "drop") take(event.dataTransfer.files);
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
    warning.textContent = `The model cannot be started: ${error.message}. This page needs a browser of 2023 or newer.`;
  },
);
