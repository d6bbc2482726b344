// Images drawn by the graphics processor: one pass of a fragment shader, four samples a pixel.
import { Painter, resize, sumOf } from "./paint";
import { IMAGES } from "./protocol";

const SHARPER = -0.5;  // of the two sizes of the photo that a smaller picture is mixed of
const CORNERS = `#version 300 es
void main() { gl_Position = vec4(ivec2(gl_VertexID & 1, gl_VertexID >> 1) * 4 - 1, 0, 1); }`;
const IMAGE = `#version 300 es
precision highp float;
precision highp sampler2DArray;
uniform highp sampler2D photo;
uniform sampler2DArray layers;
uniform vec2 start, extent, size;
uniform vec3 which, weights;
out vec4 colour;
void main() {
  vec2 place = start + extent * vec2(gl_FragCoord.x, size.y - gl_FragCoord.y) / size;
  vec4 sampled = texture(photo, place, ${SHARPER.toFixed(1)});
  vec3 seen = 2.0 * (sampled.rgb + 1.0 - sampled.a) - 1.0;
  vec4 change = vec4(0.0);
  for (int i = 0; i < 3; i++) if (weights[i] != 0.0) change += weights[i] * texture(layers, vec3(place, which[i]));
  colour = vec4(clamp(seen + change.rgb + seen * change.a, -1.0, 1.0) * 0.5 + 0.5, 1.0);
}`;

// Undefined where there is no WebGL2 that takes the shaders, or the processor would only play its
// part, slower than plain.ts.
export function glPainter(): Painter | undefined {
  const canvas = document.createElement("canvas");
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false, failIfMajorPerformanceCaveat: true });
  if (!gl || gl.isContextLost()) return undefined;
  const program = linked(gl);
  if (!program) return undefined;
  gl.useProgram(program);
  const at = (name: string) => gl.getUniformLocation(program, name);
  const [start, extent, size, which, weights] = ["start", "extent", "size", "which", "weights"].map(at);
  gl.uniform1i(at("layers"), 1);
  let full = { width: 1, height: 1 }, photoTexture: WebGLTexture, layersTexture: WebGLTexture;

  function texture(unit: number, kind: number, smaller: number): WebGLTexture {
    const made = gl!.createTexture();
    gl!.activeTexture(gl!.TEXTURE0 + unit);
    gl!.bindTexture(kind, made);
    for (const [name, value] of [
      [gl!.TEXTURE_MIN_FILTER, smaller], [gl!.TEXTURE_MAG_FILTER, gl!.LINEAR],
      [gl!.TEXTURE_WRAP_S, gl!.CLAMP_TO_EDGE], [gl!.TEXTURE_WRAP_T, gl!.CLAMP_TO_EDGE],
    ]) gl!.texParameteri(kind, name, value);
    return made!;
  }

  return {
    kind: "WebGL2", canvas, mostPixels: Infinity,
    mostSide: gl.getParameter(gl.MAX_TEXTURE_SIZE) as number,
    get lost() { return gl.isContextLost(); },
    load(photo) {
      full = { width: photo.width, height: photo.height };
      gl.deleteTexture(photoTexture);
      photoTexture = texture(0, gl.TEXTURE_2D, gl.LINEAR_MIPMAP_LINEAR);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, photo);
      gl.generateMipmap(gl.TEXTURE_2D);
      photo.close();
    },
    know({ layers, size: [height, width] }) {
      gl.deleteTexture(layersTexture);
      layersTexture = texture(1, gl.TEXTURE_2D_ARRAY, gl.LINEAR);
      gl.texImage3D(gl.TEXTURE_2D_ARRAY, 0, gl.RGBA16F, width, height, IMAGES, 0, gl.RGBA, gl.FLOAT, layers);
    },
    draw(part, look) {
      resize(canvas, part);
      const sum = sumOf(look);
      gl.viewport(0, 0, part.width, part.height);
      gl.uniform2f(start, part.left / full.width, part.top / full.height);
      gl.uniform2f(extent, part.across / full.width, part.down / full.height);
      gl.uniform2f(size, part.width, part.height);
      gl.uniform3fv(which, sum.layers);
      gl.uniform3fv(weights, sum.weights);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    },
  };
}

function linked(gl: WebGL2RenderingContext): WebGLProgram | undefined {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, CORNERS], [gl.FRAGMENT_SHADER, IMAGE]] as const) {
    const shader = gl.createShader(kind)!;
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  return gl.getProgramParameter(program, gl.LINK_STATUS) ? program : undefined;
}
