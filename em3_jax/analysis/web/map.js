// The map: a canvas of points that can be zoomed, dragged, hovered and tapped.
function makeMap({ canvas, side, describe, pick }) {
  const pen = canvas.getContext("2d");
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  let extent = [1, 1],
    places = [],
    colours = [],
    faint = null,
    picked = -1,
    linked = [],
    hue = "";
  let from = null,
    began = 0,
    frame = 0,
    width = 1,
    height = 1;
  let view = { scale: 1, x: 0, y: 0 }; // x, y: shift in CSS pixels
  const DURATION = 650,
    NEAR = 18,
    MARGIN = 16;

  const onScreen = ([x, y]) => {
    const unit = view.scale * Math.min((width - 2 * MARGIN) / extent[0], (height - 2 * MARGIN) / extent[1]);
    return [width / 2 + view.x + (x - side / 2) * unit, height / 2 + view.y + (y - side / 2) * unit];
  };
  function fit() {
    // each map fills the canvas as well as its shape allows
    extent = [1, 1];
    for (const place of places) {
      for (const axis of place.keys()) extent[axis] = Math.max(extent[axis], Math.abs(2 * place[axis] - side));
    }
  }
  const between = (k, share) => {
    const to = places[k].length ? onScreen(places[k]) : null;
    if (!to || !from || !from[k]) return to;
    return [from[k][0] + (to[0] - from[k][0]) * share, from[k][1] + (to[1] - from[k][1]) * share];
  };

  function draw(now) {
    frame = 0;
    const passed = from ? Math.min((now - began) / DURATION, 1) : 1;
    const share = 1 - (1 - passed) ** 3;
    const ratio = window.devicePixelRatio || 1;
    const style = getComputedStyle(canvas);
    const strong = style.getPropertyValue("--strong"),
      panel = style.getPropertyValue("--panel");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const radius = (width < 500 ? 2.6 : 3.3) * Math.min(view.scale ** 0.4, 2.2);
    const at = places.map((_, k) => between(k, share));
    const dot = (k, size) => {
      pen.beginPath();
      pen.arc(at[k][0], at[k][1], size, 0, 7);
      pen.fill();
    };
    for (const strongOnes of [false, true]) {
      // faint points lie under the others
      pen.globalAlpha = strongOnes ? 0.82 : 0.13;
      for (let k = 0; k < at.length; k++) {
        if (!at[k] || Boolean(faint && faint(k)) === strongOnes) continue;
        pen.fillStyle = colours[k];
        dot(k, radius);
      }
    }
    pen.globalAlpha = 1;
    if (picked >= 0 && at[picked]) {
      pen.strokeStyle = hue;
      pen.lineWidth = 1.4;
      for (const k of linked) {
        if (!at[k]) continue;
        pen.beginPath();
        pen.moveTo(...at[picked]);
        pen.lineTo(...at[k]);
        pen.stroke();
      }
      for (const k of linked) {
        if (!at[k]) continue;
        pen.fillStyle = panel;
        dot(k, radius + 3.4);
        pen.fillStyle = hue;
        dot(k, radius + 2.2);
        pen.fillStyle = colours[k];
        dot(k, radius);
      }
      pen.fillStyle = panel;
      dot(picked, radius + 7.5);
      pen.fillStyle = strong;
      dot(picked, radius + 5.5);
      pen.fillStyle = colours[picked];
      dot(picked, radius + 2.5);
    }
    if (passed < 1) again();
    else from = null;
  }
  const again = () => {
    frame = frame || requestAnimationFrame(draw);
  };

  function resize() {
    const box = canvas.getBoundingClientRect(),
      ratio = window.devicePixelRatio || 1;
    [width, height] = [Math.max(box.width, 1), Math.max(box.height, 1)];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    again();
  }

  function middle() {
    // the picked item, where it is to be seen
    const [x, y] = picked >= 0 && places[picked].length ? onScreen(places[picked]) : [-1, -1];
    return x > 0 && y > 0 && x < width && y < height ? [x, y] : [width / 2, height / 2];
  }
  function zoom(factor, ...at) {
    const [x, y] = at.length ? at : middle();
    const scale = Math.min(Math.max(view.scale * factor, 1), 24);
    const grown = scale / view.scale; // what lies under (x, y) stays there
    view = {
      scale,
      x: (view.x - (x - width / 2)) * grown + x - width / 2,
      y: (view.y - (y - height / 2)) * grown + y - height / 2,
    };
    if (scale === 1) view = { scale, x: 0, y: 0 };
    canvas.classList.toggle("zoomed", scale > 1);
    again();
  }

  function nearest(x, y, reach) {
    let best = -1,
      least = reach * reach;
    for (let k = 0; k < places.length; k++) {
      if (!places[k].length || (faint && faint(k) && k !== picked && !linked.includes(k))) continue;
      const [px, py] = onScreen(places[k]);
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [k, distance];
    }
    return best;
  }

  const fingers = new Map();
  let moved = 0,
    spread = 0;
  const local = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const apart = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a[0] - b[0], a[1] - b[1]);
  };
  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, local(event));
    if (event.pointerType !== "touch" || view.scale > 1) canvas.setPointerCapture(event.pointerId);
    moved = 0;
    if (fingers.size === 2) spread = apart();
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = local(event),
      old = fingers.get(event.pointerId);
    if (!old) {
      const k = nearest(x, y, NEAR);
      describe(k, ...(k < 0 ? [0, 0] : onScreen(places[k])));
      return;
    }
    moved += Math.hypot(x - old[0], y - old[1]);
    fingers.set(event.pointerId, [x, y]);
    if (fingers.size === 2) {
      const [a, b] = [...fingers.values()],
        now = apart();
      zoom(now / (spread || now), (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      spread = now;
    } else if (view.scale > 1) {
      view = { ...view, x: view.x + x - old[0], y: view.y + y - old[1] };
      describe(-1);
      again();
    }
  });
  const lift = (event) => {
    const down = fingers.delete(event.pointerId);
    if (!down || event.type !== "pointerup" || moved > 8) return;
    const touch = event.pointerType === "touch",
      k = nearest(...local(event), touch ? 28 : NEAR);
    if (k >= 0) {
      pick(k);
      if (touch) describe(k, ...onScreen(places[k]));
    } else describe(-1);
  };
  for (const type of ["pointerup", "pointercancel"]) canvas.addEventListener(type, lift);
  canvas.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch") describe(-1);
  });
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // a plain wheel scrolls the page
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 200), ...local(event));
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
    if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (step && view.scale > 1) {
      view = { ...view, x: view.x + step[0], y: view.y + step[1] };
      again();
      event.preventDefault();
    }
  });
  new ResizeObserver(resize).observe(canvas);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);

  return {
    zoom,
    whole: () => zoom(0),
    places(next) {
      if (next === places) return;
      const moves = places.length === next.length && !still.matches;
      from = moves ? places.map((place) => (place.length ? onScreen(place) : null)) : null;
      [places, began] = [next, performance.now()];
      view = { scale: 1, x: 0, y: 0 };
      canvas.classList.remove("zoomed");
      fit();
      again();
    },
    paint(next, isFaint) {
      [colours, faint] = [next, isFaint];
      again();
    },
    choose(item, neighbours, colour) {
      [picked, linked, hue] = [item, neighbours, colour];
      again();
    },
    where: (item) => {
      const box = canvas.getBoundingClientRect(),
        [x, y] = onScreen(places[item]);
      return [box.left + x, box.top + y];
    },
  };
}
