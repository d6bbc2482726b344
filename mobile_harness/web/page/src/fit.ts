// At which size and which way round a photo is analysed, as pocketfocus/models/analyse.py does:
// never squashed or cut; a small one is enlarged.
import { Fit, Size } from "./protocol";

// Into that of a file's sizes of which it fills most; where a file takes any, as about as many pixels
// as `usual` has.
export function fitted([height, width]: Size, sizes: Size[] | null, usual: Size, multiple: number): Fit {
  const scaled = (scale: number): Size => [side(height * scale), side(width * scale)];
  if (!sizes) {
    const size = scaled(Math.sqrt((usual[0] * usual[1]) / (height * width)));
    const up = (pixels: number) => Math.ceil(pixels / multiple) * multiple;
    return { size, taken: [up(size[0]), up(size[1])], transposed: false };
  }
  const fits = [false, true].flatMap((transposed) => sizes.map((taken): Fit => {
    const [down, across] = transposed ? [taken[1], taken[0]] : taken;
    return { size: scaled(Math.min(down / height, across / width)), taken, transposed };
  }));
  const area = ([h, w]: Size) => h * w;
  const better = (a: Fit, b: Fit) => area(b.size) - area(a.size) || area(a.taken) - area(b.taken);
  return fits.sort(better)[0];
}

function side(pixels: number): number { return Math.max(1, Math.round(pixels)); }
