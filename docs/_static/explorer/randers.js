/* Randers metrics of the plane, their balls and kernels: the formulas of finslerconv.metrics and finslerconv.balls.
 *
 * A metric is {M: [[a, b], [b, c]], omega: [r, s]}; vectors are [row, column]. tests/docs compares all of it with Python.
 * A plain script, not a module: browsers refuse modules to pages that are opened from a disk.
 */
"use strict";

const randers = (() => {
  const dot = (u, v) => u[0] * v[0] + u[1] * v[1];
  const apply = (A, v) => [dot(A[0], v), dot(A[1], v)];
  const combine = (s, A, t, B) => A.map((row, i) => row.map((x, j) => s * x + t * B[i][j]));
  const outer = (u, v) => u.map((x) => v.map((y) => x * y));
  const det = (A) => A[0][0] * A[1][1] - A[0][1] * A[1][0];
  const inverse = (A) => {
    const d = det(A);
    return [
      [A[1][1] / d, -A[0][1] / d],
      [-A[1][0] / d, A[0][0] / d],
    ];
  };
  /* The root of a positive definite matrix (identity "sqrtm"). */
  const root = (A) => {
    const s = Math.sqrt(det(A));
    const t = Math.sqrt(A[0][0] + A[1][1] + 2 * s);
    return [
      [(A[0][0] + s) / t, A[0][1] / t],
      [A[1][0] / t, (A[1][1] + s) / t],
    ];
  };

  const norm = ({ M, omega }, v) => Math.sqrt(Math.max(0, dot(v, apply(M, v)))) + dot(omega, v);
  const lambda = ({ M, omega }) => 1 - dot(omega, apply(inverse(M), omega));
  const zermelo = (metric) => {
    const { M, omega } = metric;
    const lam = lambda(metric);
    return {
      h: combine(lam, M, -lam, outer(omega, omega)),
      W: apply(inverse(M), omega).map((x) => -x / lam),
    };
  };
  const dual = (metric) => {
    const { h, W } = zermelo(metric);
    return { M: inverse(h), omega: W };
  };
  const dualNorm = (metric, p) => norm(dual(metric), p);
  const area = (metric) => Math.PI / (lambda(metric) ** 1.5 * Math.sqrt(det(metric.M)));
  const asymmetry = (metric) => {
    const n = Math.sqrt(1 - lambda(metric));
    return (1 + n) / (1 - n);
  };
  /* n points around the unit ball. */
  const boundary = (metric, n) => {
    const { M, omega } = dual(metric);
    const A = root(M);
    return Array.from({ length: n }, (_, i) => {
      const angle = (2 * Math.PI * i) / n;
      const v = apply(A, [Math.sin(angle), Math.cos(angle)]);
      return [omega[0] + v[0], omega[1] + v[1]];
    });
  };

  const lattice = (k) => {
    const r = Math.max(1, Math.floor(k / 2));
    return Array.from({ length: k * k }, (_, i) => [
      (Math.floor(i / k) - (k - 1) / 2) / r,
      ((i % k) - (k - 1) / 2) / r,
    ]);
  };
  const concentric = (k) =>
    lattice(k).map(([a, b]) => {
      const ring = Math.max(Math.abs(a), Math.abs(b));
      if (ring === 0) return [0, 0];
      const quarter = Math.PI / 4;
      let angle;
      if (Math.abs(b) >= Math.abs(a)) {
        angle = b >= 0 ? (quarter * a) / ring : Math.PI - (quarter * a) / ring;
      } else {
        angle = a >= 0 ? 2 * quarter - (quarter * b) / ring : -2 * quarter + (quarter * b) / ring;
      }
      return [ring * Math.sin(angle), ring * Math.cos(angle)];
    });
  const polar = (k) =>
    Array.from({ length: k * k }, (_, i) => {
      const angle = (2 * Math.PI * (i % k)) / k;
      const radius = (Math.floor(i / k) + 1) / k;
      return [radius * Math.sin(angle), radius * Math.cos(angle)];
    });
  const sunflower = (k) => {
    const n = k * k;
    return Array.from({ length: n }, (_, i) => {
      const angle = i * Math.PI * (3 - Math.sqrt(5));
      const radius = Math.sqrt((i + 0.5) / n);
      return [radius * Math.sin(angle), radius * Math.cos(angle)];
    });
  };

  const radial = (metric, points) =>
    points.map((g) => {
      const length = Math.sqrt(dot(g, g));
      const scale = length === 0 ? 0 : length / norm(metric, g);
      return [g[0] * scale, g[1] * scale];
    });
  const affine = (metric, points) => {
    const { M, omega } = dual(metric);
    const A = root(M);
    return points.map((g) => {
      const v = apply(A, g);
      return [omega[0] + v[0], omega[1] + v[1]];
    });
  };

  /* What equal weights at the positions are on the pixel grid, (2 r + 1)^2 numbers: bilinear interpolation, read backwards. */
  const filter = (positions, r) => {
    const size = 2 * r + 1;
    const image = new Array(size * size).fill(0);
    for (const [row, column] of positions) {
      const top = Math.floor(row);
      const left = Math.floor(column);
      for (const [i, s] of [[top, 1 - (row - top)], [top + 1, row - top]]) {
        for (const [j, t] of [[left, 1 - (column - left)], [left + 1, column - left]]) {
          if (Math.abs(i) <= r && Math.abs(j) <= r) {
            image[(i + r) * size + j + r] += (s * t) / positions.length;
          }
        }
      }
    }
    return image;
  };

  const sets = { lattice, concentric, polar, sunflower };
  const maps = { radial, affine };
  return {
    dot, apply, inverse, norm, lambda, zermelo, dual, dualNorm, area, asymmetry, boundary, sets, maps, filter,
  };
})();

if (typeof module !== "undefined") module.exports = randers;
