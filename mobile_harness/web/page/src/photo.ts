// A photo file to what the student takes, and stacks back to pictures.
import exifr from "exifr/dist/lite.esm.mjs";
import { FRAMES } from "./protocol";

const USUAL = 7;  // 40 cm: nearer than most things, which look alike from there on

// The middle of the picture, cut and scaled to H x W by halves, so that no pixel is left out.
export async function fitted(file: Blob, height: number, width: number): Promise<HTMLCanvasElement> {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  const scale = Math.min(bitmap.width / width, bitmap.height / height);
  let across = width * scale, down = height * scale;
  let source: CanvasImageSource = bitmap;
  let left = (bitmap.width - across) / 2, top = (bitmap.height - down) / 2;
  for (;;) {
    const last = across <= 2 * width;
    const canvas = document.createElement("canvas");
    canvas.width = last ? width : Math.round(across / 2);
    canvas.height = last ? height : Math.round(down / 2);
    const context = canvas.getContext("2d", { willReadFrequently: true })!;
    context.imageSmoothingQuality = "high";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(source, left, top, across, down, 0, 0, canvas.width, canvas.height);
    if (last) { bitmap.close(); return canvas; }
    source = canvas; left = top = 0; across = canvas.width; down = canvas.height;
  }
}

export function toTensor(canvas: HTMLCanvasElement): Float32Array {
  const { data } = canvas.getContext("2d")!.getImageData(0, 0, canvas.width, canvas.height);
  const pixels = canvas.width * canvas.height, out = new Float32Array(3 * pixels);
  for (let i = 0; i < pixels; i++) {
    for (let c = 0; c < 3; c++) out[c * pixels + i] = data[4 * i + c] / 127.5 - 1;
  }
  return out;
}

export function drawFrame(canvas: HTMLCanvasElement, stack: Float32Array, frame: number): void {
  const pixels = canvas.width * canvas.height, at = frame * 3 * pixels;
  const image = new ImageData(canvas.width, canvas.height);
  for (let i = 0; i < pixels; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round((stack[at + c * pixels + i] + 1) * 127.5);
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d")!.putImageData(image, 0, 0);
}

// The focal position by what the camera wrote of its focus distance, or the usual one.
export async function guess(file: Blob): Promise<{ position: number; why: string }> {
  const tags = await exifr.parse(file, { pick: ["SubjectDistance"] }).catch(() => undefined);
  const metres = Number(tags?.SubjectDistance);
  if (!(metres > 0)) return { position: USUAL, why: "the photo does not tell; most are sharp from here on" };
  const position = Math.round((1 - Math.min(20, 1 / metres) / 20) * (FRAMES - 1));
  return { position, why: `the camera noted ${metres.toFixed(2)} m` };
}
