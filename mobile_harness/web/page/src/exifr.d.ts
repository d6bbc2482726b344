declare module "exifr/dist/lite.esm.mjs" {
  const exifr: { parse(file: Blob, options: object): Promise<Record<string, unknown> | undefined> };
  export default exifr;
}
