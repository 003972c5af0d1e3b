// From a decoded picture to the numbers that the network takes: what ceit.data.preprocessing does with Pillow, to the
// bit, so that the page answers as `ceit predict` does. Pictures are {width, height, channels, data}, 8 bits a channel,
// row by row, the channels of a pixel side by side. Boxes are [left, top, right, bottom], and sizes [height, width].
"use strict";

const PRECISION_BITS = 22; // Pillow sums integers: a pixel's 8 bits, two more for overshoots, and these, are 32

// Kernels and how far they reach, as Pillow has them.
const FILTERS = {
  bilinear: { reach: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    reach: 2,
    weight(signed) {
      const x = Math.abs(signed), a = -0.5;
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
  lanczos: { reach: 3, weight: (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

// Python's round: halves go to the even neighbour.
function rounded(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

// The rows of RGBA pixels, from `first` on, put on white into a picture of one or three channels. Pillow's luma.
function takeRows(picture, rgba, first) {
  const { width, channels, data } = picture;
  let at = first * width * channels;
  for (let i = 0; i < rgba.length; i += 4) {
    if (channels === 3) {
      data[at++] = rgba[i];
      data[at++] = rgba[i + 1];
      data[at++] = rgba[i + 2];
    } else {
      data[at++] = (rgba[i] * 19595 + rgba[i + 1] * 38470 + rgba[i + 2] * 7471 + 0x8000) >> 16;
    }
  }
}

// The picture upright, by its EXIF orientation.
function turned(picture, orientation) {
  if (orientation === 1) return picture;
  const { channels } = picture, isLying = orientation >= 5; // width and height change places
  const width = isLying ? picture.height : picture.width, height = isLying ? picture.width : picture.height;
  const data = new Uint8Array(picture.data.length);
  const isFromRight = [2, 3, 7, 8].includes(orientation), isFromBelow = [3, 4, 6, 7].includes(orientation);
  let at = 0;
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const x = isLying ? row : column, y = isLying ? column : row;
      const line = isFromBelow ? picture.height - 1 - y : y, along = isFromRight ? picture.width - 1 - x : x;
      const from = (line * picture.width + along) * channels;
      for (let channel = 0; channel < channels; channel++) data[at++] = picture.data[from + channel];
    }
  }
  return { width, height, channels, data };
}

// Which input pixels make each output pixel, and with what whole-number weights.
function coefficients(inSize, from, to, outSize, filter) {
  const scale = Math.fround(to - from) / outSize, stretch = Math.max(scale, 1), reach = filter.reach * stretch;
  const parts = [];
  for (let out = 0; out < outSize; out++) {
    const center = from + (out + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const last = Math.min(inSize, Math.trunc(center + reach + 0.5));
    const weights = [];
    let total = 0;
    for (let i = first; i < last; i++) {
      const weight = filter.weight((i - center + 0.5) * (1 / stretch));
      weights.push(weight);
      total += weight;
    }
    const whole = weights.map((weight) => {
      const share = total === 0 ? weight : weight / total;
      return Math.trunc((share < 0 ? -0.5 : 0.5) + share * 2 ** PRECISION_BITS);
    });
    parts.push({ first, weights: Int32Array.from(whole) });
  }
  return parts;
}

// The picture with `parts.length` columns, or rows, each made of the old ones as its part says.
function resampled(picture, parts, isAcross) {
  const { channels } = picture, lines = isAcross ? picture.height : picture.width;
  const width = isAcross ? parts.length : picture.width, height = isAcross ? picture.height : parts.length;
  const data = new Uint8Array(width * height * channels), step = isAcross ? channels : picture.width * channels;
  const index = (inWidth, along, line) => (isAcross ? line * inWidth + along : along * inWidth + line) * channels;
  parts.forEach(({ first, weights }, along) => {
    for (let line = 0; line < lines; line++) {
      const from = index(picture.width, first, line), to = index(width, along, line);
      for (let channel = 0; channel < channels; channel++) {
        let sum = 1 << (PRECISION_BITS - 1), at = from + channel;
        for (let i = 0; i < weights.length; i++, at += step) sum += picture.data[at] * weights[i];
        data[to + channel] = Math.min(Math.max(sum >> PRECISION_BITS, 0), 255);
      }
    }
  });
  return { width, height, channels, data };
}

// Pillow's Image.resize. Which pictures lose rows first depends on its version: ceit.browser.folder.rows_first.
function resized(picture, [height, width], name, rowsFirst, box = [0, 0, picture.width, picture.height]) {
  const [left, top, right, bottom] = box.map(Math.fround); // as Pillow takes them
  const isWide = width !== picture.width || left !== 0 || right !== width;
  const isTall = height !== picture.height || top !== 0 || bottom !== height;
  if (!isWide && !isTall) return picture;
  if (name === "nearest") return nearest(picture, [height, width], [left, top, right, bottom]);
  const filter = FILTERS[name];
  const across = (from) => resampled(from, coefficients(from.width, left, right, width, filter), true);
  const down = (from) => resampled(from, coefficients(from.height, top, bottom, height, filter), false);
  const lost = { rows: picture.height - height, columns: picture.width - width };
  const losesMany = rowsFirst === "many" && lost.rows > 2 * lost.columns;
  const isTallest = rowsFirst === "tall" && picture.height > 100 * picture.width;
  const passes = [...(isWide ? [across] : []), ...(isTall ? [down] : [])];
  if (lost.rows > 0 && (losesMany || isTallest)) passes.reverse();
  return passes.reduce((from, pass) => pass(from), picture);
}

function nearest(picture, [height, width], [left, top, right, bottom]) {
  const { channels } = picture, data = new Uint8Array(width * height * channels);
  const across = Math.fround(right - left) / width, down = Math.fround(bottom - top) / height;
  let at = 0, y = top + down * 0.5;
  for (let row = 0; row < height; row++, y += down) {
    let x = left + across * 0.5;
    for (let column = 0; column < width; column++, x += across) {
      const from = (Math.floor(y) * picture.width + Math.floor(x)) * channels;
      for (let channel = 0; channel < channels; channel++) data[at++] = picture.data[from + channel];
    }
  }
  return { width, height, channels, data };
}

// Pillow's Image.reduce: the mean of each block of `across` x `down` pixels, smaller blocks at the right and below.
function reducedBy(picture, across, down) {
  const { channels } = picture;
  const width = Math.ceil(picture.width / across), height = Math.ceil(picture.height / down);
  const data = new Uint8Array(width * height * channels);
  let at = 0;
  for (let row = 0; row < height; row++) {
    const top = row * down, bottom = Math.min(top + down, picture.height);
    for (let column = 0; column < width; column++) {
      const left = column * across, right = Math.min(left + across, picture.width);
      const count = (right - left) * (bottom - top);
      const multiplier = Math.trunc(Math.fround(2 ** 32 / (count * 256))), half = Math.trunc(count / 2);
      for (let channel = 0; channel < channels; channel++) {
        let sum = half;
        for (let y = top; y < bottom; y++) {
          let from = (y * picture.width + left) * channels + channel;
          for (let x = left; x < right; x++, from += channels) sum += picture.data[from];
        }
        data[at++] = Math.floor((sum * multiplier) / 2 ** 24);
      }
    }
  }
  return { width, height, channels, data };
}

// ceit.data.image: a picture made smaller until it just covers [height, width]; smaller ones stay as they are.
function reduced(picture, [coverHeight, coverWidth], rowsFirst) {
  if (picture.width <= coverWidth || picture.height <= coverHeight) return picture;
  let height = coverHeight, width = coverWidth;
  if (picture.width * height <= picture.height * width) {
    height = Math.max(height, Math.floor((width * picture.height) / picture.width));
  } else {
    width = Math.max(width, Math.floor((height * picture.width) / picture.height));
  }
  const across = Math.trunc(picture.width / width / 2) || 1, down = Math.trunc(picture.height / height / 2) || 1;
  if (across === 1 && down === 1) return resized(picture, [height, width], "bicubic", rowsFirst);
  const box = [0, 0, picture.width / across, picture.height / down];
  return resized(reducedBy(picture, across, down), [height, width], "bicubic", rowsFirst, box);
}

// ceit.data.preprocessing.fit: resized in proportion to cover [height, width] / crop, then the centre is cut out.
function fitted(picture, [height, width], crop, interpolation, rowsFirst) {
  const leastHeight = Math.trunc(height / crop), leastWidth = Math.trunc(width / crop);
  let coverHeight = leastHeight, coverWidth = leastWidth;
  if (picture.width * coverHeight <= picture.height * coverWidth) {
    coverHeight = Math.max(coverHeight, Math.floor((coverWidth * picture.height) / picture.width));
  } else {
    coverWidth = Math.max(coverWidth, Math.floor((coverHeight * picture.width) / picture.height));
  }
  const left = rounded((coverWidth - width) / 2), top = rounded((coverHeight - height) / 2);
  if (coverWidth * coverHeight > 16 * leastWidth * leastHeight) { // of a thin picture only what is kept
    const across = picture.width / coverWidth, down = picture.height / coverHeight;
    const right = Math.min((left + width) * across, picture.width);
    const bottom = Math.min((top + height) * down, picture.height);
    const box = [left * across, top * down, right, bottom];
    return resized(picture, [height, width], interpolation, rowsFirst, box);
  }
  return cut(resized(picture, [coverHeight, coverWidth], interpolation, rowsFirst), left, top, [height, width]);
}

function cut(picture, left, top, [height, width]) {
  const { channels } = picture, data = new Uint8Array(width * height * channels);
  for (let row = 0; row < height; row++) {
    const from = ((top + row) * picture.width + left) * channels;
    data.set(picture.data.subarray(from, from + width * channels), row * width * channels);
  }
  return { width, height, channels, data };
}

// What the network sees of a picture, as ceit.inference.Predictor.pixels. Of a large JPEG Pillow decodes an eighth, a
// quarter or a half of the size. A browser decodes all of it, and the means of its pixels come nearest to that.
function seen(picture, { image_hw: [height, width], crop, interpolation, rows_first: rowsFirst }, isJpeg) {
  const cover = [2 * Math.trunc(height / crop), 2 * Math.trunc(width / crop)];
  const larger = Math.min(Math.floor(picture.height / cover[0]), Math.floor(picture.width / cover[1]));
  const factor = isJpeg ? [8, 4, 2, 1].find((one) => larger >= one) || 1 : 1;
  const decoded = factor === 1 ? picture : reducedBy(picture, factor, factor);
  return fitted(reduced(decoded, cover, rowsFirst), [height, width], crop, interpolation, rowsFirst);
}

// (pixels / 255 - mean) / std in float32, one plane a channel.
function normalised({ width, height, channels, data }, mean, std) {
  const plane = width * height, values = new Float32Array(channels * plane);
  for (let channel = 0; channel < channels; channel++) {
    const m = Math.fround(mean[channel]), s = Math.fround(std[channel]);
    for (let i = 0; i < plane; i++) {
      const share = Math.fround(data[i * channels + channel] / 255);
      values[channel * plane + i] = Math.fround(Math.fround(share - m) / s);
    }
  }
  return values;
}

// The softmax of logits that the temperature divides.
function probabilities(logits, temperature) {
  const scaled = Array.from(logits, (logit) => logit / temperature), most = scaled.reduce((a, b) => Math.max(a, b));
  const powers = scaled.map((value) => Math.exp(value - most));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}
