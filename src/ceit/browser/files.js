// What the bytes of a picture file say before it is decoded: its kind, whether it is whole, how the picture lies. And
// the bytes without what browsers do not agree on.
"use strict";

// The first bytes of what browsers decode, as text of one character a byte.
const KINDS = {
  PNG: /^\x89PNG\r\n\x1a\n/, JPEG: /^\xff\xd8\xff/, GIF: /^GIF8[79]a/, WebP: /^RIFF[^]{4}WEBP/,
  BMP: /^BM[^]{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0/,
  AVIF: /^[^]{4}ftyp(avif|avis)/, HEIC: /^[^]{4}ftyp(heic|heix|mif1)/, TIFF: /^(II\*\0|MM\0\*)/,
};

// Safari converts by a colour profile whatever it is told, not all browsers heed the orientation of a PNG or WebP, and
// of an animated PNG Pillow takes the picture that programs without animation show.
const PROFILE = "ICC_PROFILE\0";
const LEFT_OUT = new Set([PROFILE, "ICCP", "iCCP", "cICP", "sRGB", "gAMA", "cHRM", "EXIF", "eXIf", "acTL"]);
const WEBP_FLAGS = 0x20 | 0x08; // a profile, and EXIF

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

// The parts of a file that are whole: each its kind, begin and end.
const PARTS = {
  JPEG: profiles,
  PNG: (bytes) => chunks(bytes, 8, 0),
  WebP: (bytes) => chunks(bytes, 12, 4),
};

function asText(bytes, begin, length) {
  return String.fromCharCode(...bytes.subarray(begin, begin + length));
}

// The chunks of a PNG, or of a WebP with its other order of fields.
function chunks(bytes, first, sizeAt) {
  const view = new DataView(bytes.buffer), found = [], isPng = sizeAt === 0;
  for (let begin = first, end; begin + 8 <= bytes.length; begin = end) {
    const size = view.getUint32(begin + sizeAt, !isPng);
    end = begin + 8 + size + (isPng ? 4 : size % 2);
    if (end <= bytes.length) found.push({ kind: asText(bytes, begin + 4 - sizeAt, 4), begin, end });
  }
  return found;
}

// The segments of a JPEG that hold its colour profile: they stand before the first scan.
function profiles(bytes) {
  const found = [];
  for (let begin = 2, end; bytes[begin] === 0xff && bytes[begin + 1] !== 0xda; begin = end) {
    end = bytes[begin + 1] === 0xff ? begin + 1 : begin + 2 + ((bytes[begin + 2] << 8) | bytes[begin + 3]);
    const isProfile = bytes[begin + 1] === 0xe2 && asText(bytes, begin + 4, PROFILE.length) === PROFILE;
    if (isProfile) found.push({ kind: PROFILE, begin, end });
  }
  return found;
}

// The bytes to decode, in pieces, and the EXIF orientation by which the decoded pixels are yet to be turned. The head
// of a WebP is changed where it stands.
function bare(bytes, kind) {
  const parts = PARTS[kind] ? PARTS[kind](bytes) : [], left = parts.filter((part) => LEFT_OUT.has(part.kind));
  const exif = left.find((part) => part.kind.toUpperCase() === "EXIF");
  const orientation = exif ? orientationOf(bytes.subarray(exif.begin + 8, exif.end)) : 1;
  const pieces = [];
  let at = 0;
  for (const { begin, end } of left) {
    pieces.push(bytes.subarray(at, begin));
    at = end;
  }
  pieces.push(bytes.subarray(at));
  if (kind === "WebP" && left.length) { // its head tells how long the rest is, and what is in it
    const view = new DataView(bytes.buffer), lost = left.reduce((sum, { begin, end }) => sum + end - begin, 0);
    view.setUint32(4, view.getUint32(4, true) - lost, true);
    if (asText(bytes, 12, 4) === "VP8X") bytes[20] &= ~WEBP_FLAGS;
  }
  return { pieces, orientation };
}

// The orientation in EXIF data, 1 to 8; 1 where none is declared, or none that can be read.
function orientationOf(exif) {
  const start = asText(exif, 0, 6) === "Exif\0\0" ? 6 : 0, isLittle = exif[start] === 0x49;
  const view = new DataView(exif.buffer, exif.byteOffset + start, exif.length - start);
  const fits = (at, size) => at + size <= view.byteLength;
  const directory = fits(0, 8) && view.getUint16(2, isLittle) === 42 ? view.getUint32(4, isLittle) : Infinity;
  const count = fits(directory, 2) ? view.getUint16(directory, isLittle) : 0;
  for (let i = 0, at = directory + 2; i < count && fits(at, 12); i++, at += 12) {
    const type = view.getUint16(at + 2, isLittle);
    if (view.getUint16(at, isLittle) !== 0x0112) continue;
    const value = type === 3 ? view.getUint16(at + 8, isLittle) : type === 4 ? view.getUint32(at + 8, isLittle) : 1;
    return 2 <= value && value <= 8 ? value : 1;
  }
  return 1;
}
