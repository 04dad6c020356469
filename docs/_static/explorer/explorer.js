/* The page on which a Randers metric is dragged: three panels drawn as SVG, and what they say in numbers.
 *
 * The state is the dashed ellipse {v' M v = 1} (half-axes and angle) and M⁻¹ω, the raised one-form, in its frame, so that dragging the ellipse
 * keeps |omega|. Handles answer to mouse, touch and the arrow keys.
 */
"use strict";

(() => {
  /* Whatever can be dragged to fits: balls reach 2 / (1 - 0.65) = 5.7 pixels, corners of a lattice under the affine map 6.1. */
  const LIMITS = { axis: [0.7, 2], raised: [0, 0.65] };
  const VIEW = { tangent: 6.5, cotangent: 2.5 };
  const RADIUS = 7; // of the pixel grid of the filter
  const START = { axes: [1.9, 1.2], angle: 0.5, raised: [-0.5, -0.25] };
  const NAMES = {
    axis0: "first half-axis of M",
    axis1: "second half-axis of M",
    raised: "M⁻¹ω",
    omega: "one-form ω, the centre of the dual ball",
  };
  const LABELS = { axis0: "axis 1", axis1: "axis 2", raised: "M⁻¹ω", omega: "ω" };

  const svg = (tag, attributes = {}, parent = null) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (parent) parent.appendChild(element);
    return element;
  };
  const html = (tag, attributes = {}, parent = null, text = "") => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    if (parent) parent.appendChild(element);
    return element;
  };
  const clamp = (x, [low, high]) => Math.min(high, Math.max(low, x));
  const length = (v) => Math.hypot(v[0], v[1]);
  const show = (x) => (Math.abs(x) < 0.0005 ? 0 : x).toFixed(3).replace("-", "−");
  const row = (v) => `(${v.map(show).join(", ")})`;
  const path = (points) =>
    `M${points.map(([r, c]) => `${c.toFixed(4)},${r.toFixed(4)}`).join("L")}Z`;

  /* The axes of the dashed ellipse as vectors [row, column]. */
  const frame = ({ axes, angle }) => [
    [axes[0] * Math.sin(angle), axes[0] * Math.cos(angle)],
    [axes[1] * Math.cos(angle), -axes[1] * Math.sin(angle)],
  ];
  const raisedVector = (state) => {
    const [e, f] = frame(state);
    return [0, 1].map((i) => state.raised[0] * e[i] + state.raised[1] * f[i]);
  };
  const metricOf = (state) => {
    const [e, f] = frame(state);
    const [p, q] = state.axes.map((a) => a ** -4);
    const M = [0, 1].map((i) => [0, 1].map((j) => p * e[i] * e[j] + q * f[i] * f[j]));
    return { M, omega: randers.apply(M, raisedVector(state)) };
  };

  const withRaised = (state, vector) => {
    const [e, f] = frame(state);
    let raised = [
      randers.dot(vector, e) / state.axes[0] ** 2,
      randers.dot(vector, f) / state.axes[1] ** 2,
    ];
    const size = length(raised);
    const [, most] = LIMITS.raised;
    if (size > most) raised = raised.map((x) => (x * most) / size);
    return { ...state, raised };
  };
  /* What the state becomes when a handle is moved to a point [row, column] of its panel. */
  const moves = {
    axis0: (state, v) => ({
      ...state,
      axes: [clamp(length(v), LIMITS.axis), state.axes[1]],
      angle: Math.atan2(v[0], v[1]),
    }),
    axis1: (state, v) => ({
      ...state,
      axes: [state.axes[0], clamp(length(v), LIMITS.axis)],
      angle: Math.atan2(-v[1], v[0]),
    }),
    raised: withRaised,
    omega: (state, p) => withRaised(state, randers.apply(randers.inverse(metricOf(state).M), p)),
  };
  const places = {
    axis0: (state) => frame(state)[0],
    axis1: (state) => frame(state)[1],
    raised: raisedVector,
    omega: (state) => metricOf(state).omega,
  };
  /* The number of a handle as a slider, and its range: a half-axis in pixels, or the norm of omega, which is that of M⁻¹ω. */
  const sizes = {
    axis0: { of: (state) => state.axes[0], range: LIMITS.axis, text: "length" },
    axis1: { of: (state) => state.axes[1], range: LIMITS.axis, text: "length" },
    raised: { of: (state) => length(state.raised), range: LIMITS.raised, text: "norm" },
    omega: { of: (state) => length(state.raised), range: LIMITS.raised, text: "norm" },
  };

  const build = (host) => {
    let state = START;
    const controls = html("div", { class: "explorer-controls" }, host);
    const choose = (label, options, chosen) => {
      const wrapper = html("label", {}, controls, `${label} `);
      const select = html("select", {}, wrapper);
      for (const option of options) html("option", { value: option }, select, option);
      select.value = chosen;
      select.addEventListener("change", () => draw());
      return select;
    };
    const kernel = choose("kernel", ["3", "5", "7", "11"], "5");
    const set = choose("reference set", Object.keys(randers.sets), "concentric");
    const map = choose("map", Object.keys(randers.maps), "radial");
    const reset = html("button", { type: "button" }, controls, "reset");
    reset.addEventListener("click", () => {
      state = START;
      draw();
    });

    const panels = html("div", { class: "explorer-panels" }, host);
    const panel = (title, caption, half) => {
      const figure = html("figure", {}, panels);
      html("figcaption", {}, figure, title);
      const view = svg(
        "svg",
        { viewBox: `${-half} ${-half} ${2 * half} ${2 * half}`, role: "group", "aria-label": title },
        figure,
      );
      html("small", {}, figure, caption);
      return view;
    };
    const tangent = panel(
      "Ball, wind and kernel",
      "Orange: the unit ball. Blue: where the kernel samples, in pixels. Red: the wind W, to the ball's centre. " +
        "Dashed: the ball of M alone. Drag the ends of its two axes and M⁻¹ω, the way that costs most.",
      VIEW.tangent,
    );
    const cotangent = panel(
      "Dual ball",
      "The unit ball of the dual metric F*: the ellipse of shape M around ω. Drag ω.",
      VIEW.cotangent,
    );
    const pixels = panel(
      "The filter it makes",
      "Equal weights at the blue points, read between pixels by bilinear interpolation: the stronger a pixel, the heavier.",
      RADIUS + 0.5,
    );

    const grid = svg("g", { class: "explorer-grid" }, tangent);
    const edge = VIEW.tangent;
    for (let x = -edge; x <= edge; x += 1) {
      svg("line", { x1: x, x2: x, y1: -edge, y2: edge }, grid);
      svg("line", { y1: x, y2: x, x1: -edge, x2: edge }, grid);
    }
    const axes = svg("g", { class: "explorer-grid" }, cotangent);
    const far = VIEW.cotangent;
    svg("line", { x1: -far, x2: far, y1: 0, y2: 0 }, axes);
    svg("line", { y1: -far, y2: far, x1: 0, x2: 0 }, axes);
    const cells = Array.from({ length: (2 * RADIUS + 1) ** 2 }, (_, i) => {
      const size = 2 * RADIUS + 1;
      const place = { x: (i % size) - RADIUS - 0.5, y: Math.floor(i / size) - RADIUS - 0.5 };
      return svg("rect", { ...place, width: 1, height: 1, class: "explorer-cell" }, pixels);
    });
    const ball = svg("path", { class: "explorer-ball" }, tangent);
    const symmetric = svg("path", { class: "explorer-dashed" }, tangent);
    // What comes later is drawn on top: no crowd of samples hides the wind, and no handle the pixel.
    const samples = svg("g", { class: "explorer-samples" }, tangent);
    const wind = svg("line", { class: "explorer-wind", x1: 0, y1: 0 }, tangent);
    const windEnd = svg("circle", { class: "explorer-wind-end", r: 0.16 }, tangent);
    const dualBall = svg("path", { class: "explorer-ball" }, cotangent);
    const numbers = html("table", { class: "explorer-numbers", "aria-live": "polite" }, host);
    const cellsOf = {};
    for (const [key, label] of [
      ["M", "M"],
      ["omega", "ω"],
      ["lambda", "λ = 1 − ωᵀM⁻¹ω"],
      ["W", "wind W, centre of the ball"],
      ["area", "area of the ball"],
      ["asymmetry", "largest F(−v) / F(v)"],
    ]) {
      const line = html("tr", {}, numbers);
      html("th", { scope: "row" }, line, label);
      cellsOf[key] = html("td", { "data-value": key }, line);
    }

    const handle = (name, view, half) => {
      const group = svg(
        "g",
        {
          class: "explorer-handle",
          tabindex: 0,
          role: "slider",
          "aria-label": NAMES[name],
          "aria-valuemin": sizes[name].range[0],
          "aria-valuemax": sizes[name].range[1],
          "data-handle": name,
        },
        view,
      );
      // A finger is wider than what the eye needs to see.
      svg("circle", { r: half / 9, class: "explorer-grip" }, group);
      svg("circle", { r: half / 28, class: "explorer-knob" }, group);
      const label = { class: "explorer-label", "font-size": half / 15, "stroke-width": half / 60 };
      svg("text", { ...label, "aria-hidden": "true" }, group).textContent = LABELS[name];
      const move = (point) => {
        state = moves[name](state, point);
        draw();
      };
      const place = (event) => {
        const point = new DOMPoint(event.clientX, event.clientY);
        const { x, y } = point.matrixTransform(view.getScreenCTM().inverse());
        return [y, x];
      };
      group.addEventListener("pointerdown", (event) => {
        group.setPointerCapture(event.pointerId);
        group.focus();
        event.preventDefault();
      });
      group.addEventListener("pointermove", (event) => {
        if (group.hasPointerCapture(event.pointerId)) move(place(event));
      });
      group.addEventListener("keydown", (event) => {
        const step = (event.shiftKey ? 1 : 5) * (half / 250);
        const by = {
          ArrowUp: [-step, 0],
          ArrowDown: [step, 0],
          ArrowLeft: [0, -step],
          ArrowRight: [0, step],
        }[event.key];
        if (!by) return;
        event.preventDefault();
        const here = places[name](state);
        move([here[0] + by[0], here[1] + by[1]]);
      });
      return group;
    };
    const handles = {
      axis0: handle("axis0", tangent, VIEW.tangent),
      axis1: handle("axis1", tangent, VIEW.tangent),
      raised: handle("raised", tangent, VIEW.tangent),
      omega: handle("omega", cotangent, VIEW.cotangent),
    };
    svg("circle", { class: "explorer-origin", r: VIEW.tangent / 60 }, tangent);
    svg("circle", { class: "explorer-origin", r: VIEW.cotangent / 60 }, cotangent);

    const draw = () => {
      const metric = metricOf(state);
      const { W } = randers.zermelo(metric);
      const size = Number(kernel.value);
      const points = randers.sets[set.value](size);
      const dot = 0.13 * Math.min(1, 5 / size);
      const positions = randers.maps[map.value](metric, points);
      ball.setAttribute("d", path(randers.boundary(metric, 128)));
      symmetric.setAttribute("d", path(randers.boundary({ M: metric.M, omega: [0, 0] }, 128)));
      dualBall.setAttribute("d", path(randers.boundary(randers.dual(metric), 128)));
      wind.setAttribute("x2", W[1]);
      wind.setAttribute("y2", W[0]);
      windEnd.setAttribute("cx", W[1]);
      windEnd.setAttribute("cy", W[0]);
      samples.replaceChildren(
        ...positions.map(([r, c]) => svg("circle", { cx: c, cy: r, r: dot })),
      );
      const image = randers.filter(positions, RADIUS);
      const heaviest = Math.max(...image);
      cells.forEach((cell, i) => cell.setAttribute("fill-opacity", image[i] / heaviest));
      for (const [name, group] of Object.entries(handles)) {
        const [r, c] = places[name](state);
        group.setAttribute("transform", `translate(${c} ${r})`);
        const { of, text } = sizes[name];
        group.setAttribute("aria-valuenow", of(state).toFixed(3));
        group.setAttribute("aria-valuetext", `${text} ${show(of(state))}, row ${show(r)}, column ${show(c)}`);
        // The label is beyond the knob, seen from the origin.
        const label = group.querySelector("text");
        const out = [r, c].map((x) => x / Math.max(length([r, c]), 1e-9));
        const gap = 1.1 * label.getAttribute("font-size");
        label.setAttribute("x", gap * out[1]);
        label.setAttribute("y", gap * out[0]);
        label.setAttribute("text-anchor", out[1] < 0 ? "end" : "start");
      }
      cellsOf.M.textContent = metric.M.map(row).join(" ");
      cellsOf.omega.textContent = row(metric.omega);
      cellsOf.lambda.textContent = show(randers.lambda(metric));
      cellsOf.W.textContent = `${row(W)} px`;
      cellsOf.area.textContent = `${show(randers.area(metric))} px²`;
      cellsOf.asymmetry.textContent = show(randers.asymmetry(metric));
      // For scripts that look at the page, in full precision.
      host.dataset.metric = JSON.stringify(metric);
      host.dataset.positions = JSON.stringify(positions);
    };
    draw();
  };

  const start = () => document.querySelectorAll("[data-explorer]").forEach(build);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
