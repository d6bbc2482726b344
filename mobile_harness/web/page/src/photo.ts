// A photo file: its size, its pixels as far as they are needed, and where it says it was focused.
import exifr from "exifr/dist/lite.esm.mjs";
import { FRAMES, Size } from "./protocol";

const MOST_PIXELS = 4096 ** 2;  // as large as iPhones let a canvas be; 64 MiB of texture
const STRIP_PIXELS = 2 ** 20;
const FARTHEST = 1e6;             // metres; EXIF's infinity is 2 ** 32 - 1
const CLOSE = 2, DISTANT = 3;     // of EXIF's SubjectDistanceRange

export class NoPicture extends Error {}  // a file in which this browser finds none

// Height and width as it is looked at, without decoding it.
export async function sizeOf(file: Blob): Promise<Size> {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await new Promise((done, failed) => { image.onload = done; image.onerror = failed; })
      .catch(() => { throw new NoPicture("this browser finds no picture in it"); });
    return [image.naturalHeight, image.naturalWidth];
  } finally { URL.revokeObjectURL(image.src); }
}

// The largest size in its proportions that this device shows.
export function shownSize([height, width]: Size, mostSide: number): Size {
  const scale = Math.min(1, mostSide / Math.max(height, width), Math.sqrt(MOST_PIXELS / (height * width)));
  return [Math.max(1, Math.floor(height * scale)), Math.max(1, Math.floor(width * scale))];
}

export async function decoded(file: Blob, own: Size, [height, width]: Size): Promise<ImageBitmap> {
  const asked: ImageBitmapOptions = { imageOrientation: "from-image" };
  if (own[0] === height && own[1] === width) return createImageBitmap(file, asked);
  return createImageBitmap(file, { ...asked, resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
}

// The photo [3,h,w] in [-1,1], every pixel the mean of the area that it covers; read strip by strip,
// so that the page answers and no second copy is held. A smaller photo is enlarged bilinearly.
export async function averaged(photo: ImageBitmap, [height, width]: Size): Promise<Float32Array> {
  if (height > photo.height || width > photo.width) return enlarged(photo, [height, width]);
  const sums = new Float64Array(3 * height * width), across = new Float64Array(3 * width);
  const columns = areas(photo.width, width), rows = areas(photo.height, height);
  const most = Math.max(1, Math.floor(STRIP_PIXELS / photo.width));
  const read = reader(photo, most);
  for (let top = 0; top < photo.height; top += most) {
    const count = Math.min(most, photo.height - top);
    const data = read(top, count);
    for (let y = 0; y < count; y++) {
      across.fill(0);
      addAcross(across, data.subarray(4 * y * photo.width), columns);
      addDown(sums, across, rows, top + y);
    }
    await new Promise((done) => setTimeout(done));
  }
  const pixels = height * width, out = new Float32Array(3 * pixels);
  for (let i = 0; i < pixels; i++) {
    for (let c = 0; c < 3; c++) out[c * pixels + i] = sums[3 * i + c] / 127.5 - 1;
  }
  return out;
}

// Reads so many rows of a photo from one on, `most` at once, on white where it lets light through.
function reader(photo: ImageBitmap, most: number): (top: number, count: number) => Uint8ClampedArray {
  const strip = document.createElement("canvas");
  strip.width = photo.width; strip.height = most;
  const context = strip.getContext("2d", { willReadFrequently: true, alpha: false })!;
  return (top, count) => {
    context.fillStyle = "#fff";
    context.fillRect(0, 0, photo.width, count);
    context.drawImage(photo, 0, -top);
    return context.getImageData(0, 0, photo.width, count).data;
  };
}

function enlarged(photo: ImageBitmap, [height, width]: Size): Float32Array {
  const data = reader(photo, photo.height)(0, photo.height), out = new Float32Array(3 * height * width);
  const columns = Array.from({ length: width }, (_, x) => between(x, width, photo.width));
  for (let y = 0; y < height; y++) {
    const { low, high, share } = between(y, height, photo.height);
    const upper = 4 * low * photo.width, lower = 4 * high * photo.width;
    for (let x = 0; x < width; x++) {
      const column = columns[x];
      for (let c = 0; c < 3; c++) {
        const left = 4 * column.low + c, right = 4 * column.high + c;
        const above = mixed(data[upper + left], data[upper + right], column.share);
        const below = mixed(data[lower + left], data[lower + right], column.share);
        out[c * height * width + y * width + x] = mixed(above, below, share) / 127.5 - 1;
      }
    }
  }
  return out;
}

// Between which two of `few` pixels the centre of one of `many` lies, and how near to the second.
function between(place: number, many: number, few: number): { low: number; high: number; share: number } {
  const centre = Math.min(few - 1, Math.max(0, ((place + 0.5) * few) / many - 0.5)), low = Math.floor(centre);
  return { low, high: Math.min(few - 1, low + 1), share: centre - low };
}

function mixed(a: number, b: number, share: number): number { return a + share * (b - a); }

interface Areas { first: Int32Array; part: Float64Array; rest: Float64Array }

// Each of `full` pixels lies in one of fewer `small` ones, and maybe partly in the next; as shares of
// what these are means of.
function areas(full: number, small: number): Areas {
  const scale = small / full;
  const first = new Int32Array(full), part = new Float64Array(full), rest = new Float64Array(full);
  for (let i = 0; i < full; i++) {
    first[i] = Math.min(small - 1, Math.floor(i * scale));
    part[i] = first[i] === small - 1 ? scale : Math.min(scale, first[i] + 1 - i * scale);
    rest[i] = scale - part[i];
  }
  return { first, part, rest };
}

function addAcross(sums: Float64Array, row: Uint8ClampedArray, { first, part, rest }: Areas): void {
  for (let x = 0, from = 0; x < first.length; x++, from += 4) {
    const to = 3 * first[x], here = part[x], beyond = rest[x];
    sums[to] += here * row[from]; sums[to + 1] += here * row[from + 1]; sums[to + 2] += here * row[from + 2];
    if (beyond > 0) for (let c = 0; c < 3; c++) sums[to + 3 + c] += beyond * row[from + c];
  }
}

function addDown(sums: Float64Array, row: Float64Array, { first, part, rest }: Areas, y: number): void {
  const to = row.length * first[y], here = part[y], beyond = rest[y];
  for (let k = 0; k < row.length; k++) sums[to + k] += here * row[k];
  if (beyond > 0) for (let k = 0; k < row.length; k++) sums[to + row.length + k] += beyond * row[k];
}

// The focal position by what the camera wrote, if it did: metres, or that it was nothing near.
export async function noted(file: Blob): Promise<{ position: number; words: string } | undefined> {
  const tags = await exifr.parse(file, { exif: true, translateValues: false }).catch(() => undefined);
  const metres = Number(tags?.SubjectDistance);
  if (metres > 0) {
    const position = Math.round((1 - Math.min(20, 1 / metres) / 20) * (FRAMES - 1));
    return { position, words: metres < FARTHEST ? `the camera noted ${metres.toFixed(2)} m` : "the camera noted infinity" };
  }
  const range = Number(tags?.SubjectDistanceRange);
  return range === CLOSE || range === DISTANT ? { position: FRAMES - 1, words: "the camera noted no macro" } : undefined;
}
