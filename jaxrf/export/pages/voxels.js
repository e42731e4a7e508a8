// The renderer of voxels: marches through blocks of 4^3 cells, whose corners are texels that the
// graphics card interpolates, composites features, and colors each ray once by a small network.

const BLOCK = 4, TILE = BLOCK + 1;

// ---- Blocks ---------------------------------------------------------------------------------

// Which of a block's 64 points are in use, as jaxrf.export.voxel_blocks.Masks.
const isSet = (bits, block, point) => (bits[8 * block + (point >> 3)] >> (point & 7)) & 1;

// For each block, the number of the mask that it has, from 1 on; 0 if it has none.
function numberBlocks(blocks, count) {
  const numbers = new Int32Array(count);
  blocks.forEach((block, i) => { numbers[block] = i + 1; });
  return numbers;
}

// Row of the table at each corner point of the blocks that have any, or -1.
function numberRows(bits) {
  const rows = new Int32Array(8 * bits.length);
  let row = 0;
  for (let i = 0; i < rows.length; i++) rows[i] = isSet(bits, i >> 6, i & 63) ? row++ : -1;
  return rows;
}

// Distance of each block from the nearest one with cells, along the axis where it is largest, up to
// 255: two passes over the neighbors that come before and after.
function spreadDistances(numbers, [nx, ny, nz]) {
  const distances = Uint8Array.from(numbers, number => number ? 0 : 255);
  const neighbors = [];
  for (let dx = -1; dx <= 1; dx++) for (let dy = -1; dy <= 1; dy++) for (let dz = -1; dz <= 1; dz++) {
    if (dx < 0 || (dx === 0 && (dy < 0 || (dy === 0 && dz < 0)))) neighbors.push([dx, dy, dz]);
  }
  const visit = (x, y, z, sign) => {
    const at = (x * ny + y) * nz + z;
    let least = distances[at];
    for (const [dx, dy, dz] of neighbors) {
      const u = x + sign * dx, v = y + sign * dy, w = z + sign * dz;
      if (u < 0 || v < 0 || w < 0 || u >= nx || v >= ny || w >= nz) continue;
      least = Math.min(least, distances[(u * ny + v) * nz + w] + 1);
    }
    distances[at] = least;
  };
  for (let x = 0; x < nx; x++) for (let y = 0; y < ny; y++) for (let z = 0; z < nz; z++) visit(x, y, z, 1);
  for (let x = nx - 1; x >= 0; x--) for (let y = ny - 1; y >= 0; y--) for (let z = nz - 1; z >= 0; z--) visit(x, y, z, -1);
  return distances;
}

// Textures of blocks: tiles of 5^3 corners, four channels each, and the tiles' numbers by block.
function buildTextures(buffers) {
  const [nx, ny, nz] = META.blocks, channels = META.channels;
  const cellBlocks = new Int32Array(buffers.cell_blocks.buffer), cornerBlocks = new Int32Array(buffers.corner_blocks.buffer);
  const cells = numberBlocks(cellBlocks, nx * ny * nz), corners = numberBlocks(cornerBlocks, nx * ny * nz);
  const rows = numberRows(buffers.corner_bits), numRows = buffers.table.length / channels;
  const distances = spreadDistances(cells, META.blocks);

  const side = Math.ceil(Math.cbrt(cellBlocks.length)), deep = Math.ceil(cellBlocks.length / side ** 2);
  const limit = gl.getParameter(gl.MAX_3D_TEXTURE_SIZE);
  if (TILE * side > limit) throw new Error(`its textures are ${TILE * side} wide, and this graphics card has ${limit} at most.`);
  const width = TILE * side, tiles = Array.from({length: vec4Count(channels)}, () => new Uint8Array(4 * width * width * TILE * deep));
  cellBlocks.forEach((block, number) => {
    const bx = Math.floor(block / (ny * nz)), by = Math.floor(block / nz) % ny, bz = block % nz;
    const tx = TILE * (number % side), ty = TILE * (Math.floor(number / side) % side), tz = TILE * Math.floor(number / side ** 2);
    for (let x = 0; x < TILE; x++) for (let y = 0; y < TILE; y++) for (let z = 0; z < TILE; z++) {
      const owner = corners[((bx + (x >> 2)) * ny + by + (y >> 2)) * nz + bz + (z >> 2)];
      const row = owner ? rows[64 * (owner - 1) + ((x & 3) * BLOCK + (y & 3)) * BLOCK + (z & 3)] : -1;
      if (row < 0) continue;
      const texel = 4 * (((tz + z) * width + ty + y) * width + tx + x);
      for (let c = 0; c < channels; c++) tiles[c >> 2][texel + (c & 3)] = buffers.table[c * numRows + row];
    }
  });
  // x is the textures' width.
  const index = new Uint32Array(nx * ny * nz);
  for (let x = 0; x < nx; x++) for (let y = 0; y < ny; y++) for (let z = 0; z < nz; z++) {
    const from = (x * ny + y) * nz + z;
    index[(z * ny + y) * nx + x] = cells[from] ? 0x80000000 + cells[from] - 1 : distances[from];
  }
  const lines = Math.ceil(cellBlocks.length / 1024), masks = new Uint8Array(8 * 1024 * lines);
  masks.set(buffers.cell_bits);
  return {tiles, width, depth: TILE * deep, side, index, masks: new Uint32Array(masks.buffer), lines};
}

// ---- The network ----------------------------------------------------------------------------

// Matrices of one uniform block, of which 16 KiB are sure to fit, and layers cut into such blocks.
const MATRICES = 256;

function planNetwork() {
  const parts = [];
  let biases = 0, at = 0;
  META.layers.forEach(([inputs, outputs], layer) => {
    const ins = vec4Count(inputs), outs = vec4Count(outputs), rows = Math.max(Math.floor(MATRICES / ins), 1);
    for (let begin = 0; begin < outs; begin += rows) {
      parts.push({layer, inputs, outputs, ins, begin, rows: Math.min(rows, outs - begin), bias: biases + begin, at});
    }
    biases += outs;
    at += inputs * outputs + outputs;
  });
  return {parts, biases};
}

function networkCode({parts, biases}) {
  const blocks = parts.map((part, i) => `layout(std140) uniform Part${i} { mat4 part${i}[${part.rows * part.ins}]; };`);
  const layers = META.layers.map(([inputs, outputs], layer) => {
    const ins = vec4Count(inputs), last = layer === META.layers.length - 1;
    const loops = parts.flatMap((part, i) => part.layer !== layer ? [] : `
  for (int j = 0; j < ${part.rows}; j++) {
    vec4 sum = networkBias[j + ${part.bias}];
    for (int i = 0; i < ${ins}; i++) sum += part${i}[j * ${ins} + i] * x[i];
    y[j + ${part.begin}] = ${last ? "sum" : "max(sum, vec4(0.0))"};
  }`);
    return `void layer${layer}(vec4 x[${ins}], out vec4 y[${vec4Count(outputs)}]) {${loops.join("")}
}`;
  });
  return `layout(std140) uniform Biases { vec4 networkBias[${biases}]; };
${blocks.join("\n")}
${layers.join("\n")}`;
}

// Fills the uniform blocks of a program from kernels (inputs x outputs) and biases, layer by layer.
function setNetwork(program, {parts, biases}, weights) {
  const bind = (name, unit, values) => {
    gl.bindBufferBase(gl.UNIFORM_BUFFER, unit, gl.createBuffer());
    gl.bufferData(gl.UNIFORM_BUFFER, values, gl.STATIC_DRAW);
    gl.uniformBlockBinding(program, gl.getUniformBlockIndex(program, name), unit);
  };
  const bias = new Float32Array(4 * biases);
  parts.forEach(({inputs, outputs, ins, begin, rows, bias: first, at}, unit) => {
    const matrices = new Float32Array(16 * rows * ins);
    for (let o = 4 * begin; o < Math.min(4 * (begin + rows), outputs); o++) {
      const row = (o >> 2) - begin;
      for (let i = 0; i < inputs; i++) {
        matrices[16 * (row * ins + (i >> 2)) + 4 * (i & 3) + (o & 3)] = weights[at + i * outputs + o];
      }
      bias[4 * (first + row) + (o & 3)] = weights[at + inputs * outputs + o];
    }
    bind(`Part${unit}`, unit, matrices);
  });
  bind("Biases", parts.length, bias);
}

// ---- The shader -----------------------------------------------------------------------------

// From the distances that steps are even in to those along the ray, and to positions in the grid.
function spaceCode() {
  if (!META.bounds) return `
float toDistance(float s, float radius, float scale) { return s; }
vec3 toGrid(vec3 x) { return x; }`;
  const [low, high] = META.bounds;
  const center = low.map((v, i) => 0.5 * (v + high[i])), half = low.map((v, i) => 0.5 * (high[i] - v));
  const norm = META.contraction_norm === "euclidean" ? "length(u)" : "max(abs(u.x), max(abs(u.y), abs(u.z)))";
  return `
const vec3 CENTER = ${vec3(center)}, HALF = ${vec3(half)};
float toDistance(float s, float radius, float scale) {
  float unscaled = s / scale;
  return unscaled > radius ? radius / clamp(2.0 - unscaled / radius, ${float(1 / META.max_distance_factor)}, 1.0) : unscaled;
}
vec3 toGrid(vec3 x) {
  vec3 u = (x - CENTER) / HALF;
  float m = max(${norm}, 1.0);
  return CENTER + (x - CENTER) * (2.0 - 1.0 / m) / m;
}`;
}

// Begins a ray: near and far in the distances that steps are even in.
function beginCode() {
  const clip = `
  vec3 safe = mix(direction, vec3(1e-12), lessThan(abs(direction), vec3(1e-12)));
  vec3 a = (LOW - origin) / safe, b = (HIGH - origin) / safe, enter = min(a, b), leave = max(a, b);
  near = max(near, max(enter.x, max(enter.y, enter.z)));
  far = min(far, min(leave.x, min(leave.y, leave.z)));`;
  if (META.ndc) {
    // As jaxrf.cameras.ndc.rays_to_ndc; rays that look back meet nothing.
    const [x, y, plane] = META.ndc;
    return `
  float radius = 1.0, scale = 1.0, ahead = -direction.z;
  bool looksAhead = ahead > 1e-6;
  ahead = looksAhead ? ahead : 1.0;
  vec2 slopes = vec2(${float(x)}, ${float(y)});
  origin += (${float(plane)} + origin.z) / ahead * direction;
  float depth = -origin.z;
  vec3 begin = vec3(origin.xy / (slopes * depth), 1.0 - ${float(2 * plane)} / depth);
  vec3 span = vec3(direction.xy / (slopes * ahead), 1.0) - begin;
  float near = 0.0, far = looksAhead ? length(span) : 0.0;
  origin = begin;
  direction = normalize(span);${clip}`;
  }
  if (META.bounds) return `
  float radius = length(origin - CENTER) + length(HALF);
  float scale = min(${float(META.max_march_diagonals)} * length(HALF) / radius, 1.0);
  float near = range.x * scale, far = radius * (2.0 - ${float(1 / META.max_distance_factor)}) * scale;
  if (range.x > radius) near = radius * (2.0 - radius / range.x) * scale;`;
  return `
  float radius = 1.0, scale = 1.0, near = range.x, far = range.y;${clip}`;
}

// Distance that surely holds nothing, in cells, from a position g in cells.
function skipCode() {
  const speed = META.bounds ? META.max_march_speed : 1.0;
  return `
    if (any(lessThan(g, vec3(0.0))) || any(greaterThanEqual(g, CELLS))) {
      vec3 beyond = max(-g, g - CELLS);
      float cells = max(beyond.x, max(beyond.y, beyond.z));
      k += int(cells / ${float(speed)} / STEP_CELLS) + 1;
      continue;
    }
    fetches++;
    uint entry = texelFetch(blocks, block, 0).r;
    if ((entry & 0x80000000u) == 0u) {
      // Nothing is in the blocks closer than this one's distance.
      float margin = 4.0 * (float(entry) - 1.0);
      vec3 low = g - 4.0 * vec3(block), high = 4.0 - low;
      ${META.bounds ? `
      float cells = margin + min(min(low.x, min(low.y, low.z)), min(high.x, min(high.y, high.z)));
      k += int(cells / ${float(speed)} / STEP_CELLS) + 1;` : `
      vec3 exits = (mix(low, high, greaterThan(direction, vec3(0.0))) + margin) / max(abs(direction), vec3(1e-6));
      k += int(min(exits.x, min(exits.y, exits.z)) / STEP_CELLS) + 1;`}
      continue;
    }`;
}

function traceCode(network) {
  const count = vec4Count(META.channels), names = [...Array(count).keys()];
  const features = META.channels - 1, inputs = META.layers[0][0], encoding = META.direction_encoding;
  const sums = [["features", features], ["encoded", encoding.size]];
  const featureCode = [];
  for (let c = 1; c <= features; c++) {
    const at = c - 1;
    featureCode.push(`features[${at >> 2}][${at & 3}] = ${float(META.low[c])} + ${float(META.high[c] - META.low[c])} * sums[${c >> 2}][${c & 3}] + ${float(META.offset[at])};`);
  }
  return `
uniform usampler3D blocks;
uniform usampler2D masks;
${names.map(i => `uniform sampler3D tiles${i};`).join("\n")}
const vec3 LOW = ${vec3(META.aabb[0])}, HIGH = ${vec3(META.aabb[1])}, CELL = ${vec3(META.cell)}, CELLS = ${vec3(META.cells)};
const float STEP = ${float(META.step_size)}, STEP_CELLS = ${float(META.step_size / Math.min(...META.cell))};
uniform vec3 tileSize;
uniform int tileSide;
${spaceCode()}
${encodeCode("encodeDirection", encoding)}
${networkCode(network)}

vec4 trace(vec3 origin, vec3 direction, out float reached) {${beginCode()}
  vec4 sums[${count}];
  for (int i = 0; i < ${count}; i++) sums[i] = vec4(0.0);
  float transmittance = 1.0, distances = 0.0;
  for (int k = 0; k < ${META.max_steps};) {
    float start = near + STEP * float(k), end = min(start + STEP, far);
    if (start >= far || transmittance <= ${float(META.transmittance_threshold)}) break;
    float from = toDistance(start, radius, scale), to = toDistance(end, radius, scale), middle = 0.5 * (from + to);
    vec3 g = (toGrid(origin + middle * direction) - LOW) / CELL;
    ivec3 block = ivec3(g) >> 2;${skipCode()}
    k++;
    int number = int(entry & 0x7fffffffu);
    uvec2 mask = texelFetch(masks, ivec2(number & 1023, number >> 10), 0).rg;
    fetches++;
    ivec3 cell = ivec3(g) & 3;
    int point = (cell.x * 4 + cell.y) * 4 + cell.z;
    if ((((point < 32 ? mask.x : mask.y) >> uint(point & 31)) & 1u) == 0u) continue;
    ivec3 tile = 5 * ivec3(number % tileSide, number / tileSide % tileSide, number / (tileSide * tileSide));
    vec3 at = (vec3(tile) + g - 4.0 * vec3(block) + 0.5) / tileSize;
    vec4 values0 = texture(tiles0, at);
    fetches++;
    float raw = ${float(META.density_gain)} * (${float(META.low[0])} + ${float(META.high[0] - META.low[0])} * values0.r) + ${float(META.density_shift)};
    float density = ${float(META.density_scale)} * (max(raw, 0.0) + log(1.0 + exp(-abs(raw))));
    float opacity = 1.0 - exp(-density * (to - from));
    float sampleWeight = transmittance * opacity;
    transmittance *= 1.0 - opacity;
    if (sampleWeight < 1e-4) continue;
    distances += sampleWeight * middle;
    sums[0] += sampleWeight * vec4(1.0, values0.gba);
    ${names.slice(1).map(i => `sums[${i}] += sampleWeight * texture(tiles${i}, at);`).join("\n    ")}
    fetches += ${count - 1};
  }
  float opacity = sums[0].x;
  reached = distances / max(opacity, 1e-6);
  ${META.ndc ? `reached = reached / max(far - near, 1e-6) * ${float(META.radius)};` : ""}
  if (opacity < 1e-3) return vec4(0.0);
  for (int i = 0; i < ${count}; i++) sums[i] /= opacity;
  vec4 features[${vec4Count(features)}], encoded[${vec4Count(encoding.size)}], x0[${vec4Count(inputs)}];
  ${featureCode.join("\n  ")}
  encodeDirection(direction, encoded);
  ${joinCode("x0", sums)}
  ${META.layers.map(([, outputs], i) => `vec4 x${i + 1}[${vec4Count(outputs)}]; layer${i}(x${i}, x${i + 1});`).join("\n  ")}
  return vec4(opacity / (1.0 + exp(-x${META.layers.length}[0].rgb)), opacity);
}`;
}

function linkRenderer(buffers) {
  const {tiles, width, depth, side, index, masks, lines} = buildTextures(buffers), network = planNetwork();
  const [nx, ny, nz] = META.blocks, units = {blocks: 1, masks: 2};
  makeTexture(1, gl.TEXTURE_3D);
  gl.texImage3D(gl.TEXTURE_3D, 0, gl.R32UI, nx, ny, nz, 0, gl.RED_INTEGER, gl.UNSIGNED_INT, index);
  makeTexture(2, gl.TEXTURE_2D);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RG32UI, 1024, lines, 0, gl.RG_INTEGER, gl.UNSIGNED_INT, masks);
  tiles.forEach((texels, i) => {
    units[`tiles${i}`] = 3 + i;
    makeTexture(3 + i, gl.TEXTURE_3D, gl.LINEAR);
    gl.texImage3D(gl.TEXTURE_3D, 0, gl.RGBA8, width, width, depth, 0, gl.RGBA, gl.UNSIGNED_BYTE, texels);
  });
  const program = link(FULL_CANVAS, frameCode(traceCode(network)));
  setSamplers(program, units);
  gl.uniform3f(gl.getUniformLocation(program, "tileSize"), width, width, depth);
  gl.uniform1i(gl.getUniformLocation(program, "tileSide"), side);
  setNetwork(program, network, new Float32Array(buffers.network.buffer));
  return program;
}
