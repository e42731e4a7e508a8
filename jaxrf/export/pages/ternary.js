// The renderer of ternary networks: marches through the occupancy grid and evaluates the network at
// every sample, as jaxrf.rendering.march.

// Five trits to a byte; the first trit is the lowest digit.
function unpackTrits(packed, count) {
  const trits = new Int8Array(count);
  for (let i = 0; i < count; i++) {
    trits[i] = Math.floor(packed[Math.floor(i / 5)] / 3 ** (i % 5)) % 3 - 1;
  }
  return trits;
}

// A ternary layer of 8-bit activations (Ma et al. 2024): y = (Xq Wq) s_x s_w + b.
function layerCode(name, layer, index) {
  const ins = vec4Count(layer.inputs), outs = vec4Count(layer.outputs);
  return `
void ${name}(vec4 x[${ins}], out vec4 y[${outs}]) {
  float square = 0.0, maximum = 0.0;
  for (int i = 0; i < ${ins}; i++) square += dot(x[i], x[i]);
  float norm = inversesqrt(square / ${float(layer.inputs)} + ${float(META.norm_epsilon)});
  for (int i = 0; i < ${ins}; i++) {
    x[i] *= norm;
    vec4 a = abs(x[i]);
    maximum = max(maximum, max(max(a.x, a.y), max(a.z, a.w)));
  }
  float scale = max(maximum / 127.0, ${float(META.min_scale)});
  // Slightly smaller, so that values halfway between two integers round towards zero.
  float ratio = ${float(1 - 2 ** -20)} / scale;
  for (int i = 0; i < ${ins}; i++) x[i] = clamp(roundEven(x[i] * ratio), -128.0, 127.0);
  float factor = scale * scales[${index}];
  for (int j = 0; j < ${outs}; j++) {
    vec4 sum = vec4(0.0);
    for (int i = 0; i < ${ins}; i++) {
      int at = ${layer.texel} + 4 * (j * ${ins} + i);
      sum.x += dot(x[i], weight(at));
      sum.y += dot(x[i], weight(at + 1));
      sum.z += dot(x[i], weight(at + 2));
      sum.w += dot(x[i], weight(at + 3));
    }
    y[j] = sum * factor + bias(${layer.bias} + j);
  }
}`;
}


const POSITION = {frequencies: META.num_position_frequencies, size: META.position_size};
const DIRECTION = {frequencies: META.num_direction_frequencies, size: META.direction_size};

function traceCode(layers) {
  const {width, color_width, skip} = META, trunk = META.num_trunk_layers;
  const {size: position} = POSITION, {size: direction} = DIRECTION;
  const p = vec4Count(position), d = vec4Count(direction), w = vec4Count(width), c = vec4Count(color_width);
  const code = layers.map((layer, i) => layerCode(`layer${i}`, layer, i));
  const encode = (name, encoding) => encodeCode(name, {...encoding, include_input: META.encode_input, frequency: META.frequency});
  const lines = [];
  for (let i = 0; i < trunk; i++) {
    let input = i ? "h" : "e";
    if (i === skip) {
      const sources = [["e", position], ["h", i ? width : position]];
      lines.push(`vec4 joined[${vec4Count(sources[0][1] + sources[1][1])}];`, joinCode("joined", sources));
      input = "joined";
    }
    lines.push(`layer${i}(${input}, n);`, `for (int k = 0; k < ${w}; k++) h[k] = max(n[k], 0.0);`);
  }
  const color = [];
  if (META.use_directions) {
    color.push(
      `vec4 b[${w}]; layer${trunk + 1}(h, b);`,
      `vec4 colorInput[${vec4Count(width + direction)}];`,
      joinCode("colorInput", [["b", width], ["view", direction]]),
      `vec4 v[${c}]; layer${trunk + 2}(colorInput, v);`,
      `for (int k = 0; k < ${c}; k++) v[k] = max(v[k], 0.0);`,
      `layer${trunk + 3}(v, raw);`);
  } else {
    color.push(`layer${trunk + 1}(h, raw);`);
  }
  const softplus = "max(raw, 0.0) + log(1.0 + exp(-abs(raw)))";
  return `
uniform isampler2D weights;
uniform sampler2D biases;
uniform usampler3D occupied;
uniform float scales[${layers.length}];
const vec3 LOW = ${vec3(META.aabb[0])}, HIGH = ${vec3(META.aabb[1])};
const vec3 OCCUPIED_LOW = ${vec3(META.occupied_aabb[0])}, OCCUPIED_HIGH = ${vec3(META.occupied_aabb[1])};
const ivec3 CELLS = ivec3(${META.grid_resolution.join(", ")});

vec4 weight(int at) { fetches++; return vec4(texelFetch(weights, ivec2(at & 1023, at >> 10), 0)); }
vec4 bias(int at) { fetches++; return texelFetch(biases, ivec2(at, 0), 0); }
${encode("encodePosition", POSITION)}
${META.use_directions ? encode("encodeDirection", DIRECTION) : ""}
${code.join("\n")}

float density(vec3 x, out vec4 h[${w}]) {
  vec4 e[${p}], n[${w}], head[1];
  encodePosition(x, e);
  ${lines.join("\n  ")}
  layer${trunk}(h, head);
  float raw = head[0].x + ${float(META.density_bias)};
  return ${META.activation === "softplus" ? softplus : "max(raw, 0.0)"};
}

vec3 color(vec4 h[${w}], vec4 view[${d || 1}]) {
  vec4 raw[1];
  ${color.join("\n  ")}
  return 1.0 / (1.0 + exp(-raw[0].xyz));
}

vec4 trace(vec3 origin, vec3 direction, out float reached) {
  vec3 safe = mix(direction, vec3(1e-12), lessThan(abs(direction), vec3(1e-12)));
  vec3 a = (OCCUPIED_LOW - origin) / safe, b = (OCCUPIED_HIGH - origin) / safe;
  vec3 enter = min(a, b), leave = max(a, b);
  float near = max(range.x, max(enter.x, max(enter.y, enter.z)));
  float far = min(range.y, min(leave.x, min(leave.y, leave.z)));
  vec4 view[${d || 1}], h[${w}];
  ${META.use_directions ? "encodeDirection(direction, view);" : ""}
  vec3 rgb = vec3(0.0);
  float transmittance = 1.0, sum = 0.0;
  for (int k = 0; k < ${META.max_steps}; k++) {
    float start = near + ${float(META.step_size)} * float(k);
    float end = min(start + ${float(META.step_size)}, far);
    if (start >= far || transmittance <= ${float(META.transmittance_threshold)}) break;
    float middle = 0.5 * (start + end);
    vec3 x = origin + middle * direction;
    ivec3 cell = ivec3(floor((x - LOW) / (HIGH - LOW) * vec3(CELLS)));
    if (any(lessThan(cell, ivec3(0))) || any(greaterThanEqual(cell, CELLS))) continue;
    fetches++;
    if (texelFetch(occupied, cell.zyx, 0).r == 0u) continue;
    float opacity = 1.0 - exp(-density(x, h) * (end - start));
    float sampleWeight = transmittance * opacity;
    if (sampleWeight > ${float(META.color_threshold)}) rgb += sampleWeight * color(h, view);
    sum += sampleWeight * middle;
    transmittance *= 1.0 - opacity;
  }
  float opacity = 1.0 - transmittance;
  reached = sum / max(opacity, 1e-6);
  return vec4(rgb, opacity);
}`;
}

function linkRenderer(buffers) {
  const layers = [];
  let texel = 0, bias = 0;
  for (const [inputs, outputs] of META.layers) {
    layers.push({inputs, outputs, texel, bias});
    texel += 4 * vec4Count(outputs) * vec4Count(inputs);
    bias += vec4Count(outputs);
  }
  const count = META.layers.reduce((sum, [i, o]) => sum + i * o, 0);
  const trits = unpackTrits(buffers.weights, count), given = new Float32Array(buffers.biases.buffer);
  const weights = new Int8Array(4 * 1024 * Math.ceil(texel / 1024));
  const biases = new Float32Array(4 * bias);
  let tritIndex = 0, biasIndex = 0;
  for (const {inputs, outputs, texel, bias} of layers) {
    const ins = vec4Count(inputs);
    for (let i = 0; i < inputs; i++) {
      for (let o = 0; o < outputs; o++) {
        const at = texel + 4 * ((o >> 2) * ins + (i >> 2)) + (o & 3);
        weights[4 * at + (i & 3)] = trits[tritIndex++];
      }
    }
    for (let o = 0; o < outputs; o++) biases[4 * bias + o] = given[biasIndex++];
  }
  makeTexture(1, gl.TEXTURE_2D);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8I, 1024, weights.length / 4096, 0, gl.RGBA_INTEGER, gl.BYTE, weights);
  makeTexture(2, gl.TEXTURE_2D);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, bias, 1, 0, gl.RGBA, gl.FLOAT, biases);
  makeTexture(3, gl.TEXTURE_3D);
  const [nx, ny, nz] = META.grid_resolution;
  const cells = new Uint8Array(nx * ny * nz);
  // Bits are packed highest first, with z varying fastest: z is the texture's width.
  for (let i = 0; i < cells.length; i++) cells[i] = (buffers.occupied[i >> 3] >> (7 - (i & 7))) & 1;
  gl.texImage3D(gl.TEXTURE_3D, 0, gl.R8UI, nz, ny, nx, 0, gl.RED_INTEGER, gl.UNSIGNED_BYTE, cells);

  const program = link(FULL_CANVAS, frameCode(traceCode(layers)));
  setSamplers(program, {weights: 1, biases: 2, occupied: 3});
  gl.uniform1fv(gl.getUniformLocation(program, "scales"), new Float32Array(buffers.scales.buffer));
  return program;
}
