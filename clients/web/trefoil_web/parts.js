// Pieces that several pages use: the choice of a model, an error, bars, a line chart.
import { html, useEffect, useState } from "/static/vendor/htm-preact.mjs";

/** The served models that can do one of these tasks, and which is chosen. */
export function useModel(models, ...tasks) {
  const able = models.filter((model) => tasks.some((task) => model.tasks.includes(task)));
  const [chosen, choose] = useState("");
  const name = able.some((model) => model.id === chosen) ? chosen : able[0]?.id ?? "";
  return { able, name, choose };
}

export function ModelChoice({ t, model, title = t("Model") }) {
  if (!model.able.length) return html`<p class="note">${t("No served model can do this. Start the server with one that can.")}</p>`;
  return html`<label class="field model"><span>${title}</span>
    <select value=${model.name} onChange=${(event) => model.choose(event.target.value)}>
      ${model.able.map((one) => html`<option value=${one.id}>${one.id}</option>`)}
    </select></label>`;
}

export const Problem = ({ error }) => (error ? html`<p class="problem" role="alert">${error.message}</p>` : null);

export function Bars({ rows }) {
  return html`<ul class="bars">${rows.map(({ label, score }) => html`
    <li><span class="name">${label}</span>
      <span class="track"><span class="bar" style=${{ width: `${Math.max(0, Math.min(1, score)) * 100}%` }}></span></span>
      <span class="number">${(score * 100).toFixed(1)}%</span></li>`)}</ul>`;
}

/** Points `[x, y]` as a line, with the first and last values written out. */
export function Chart({ points, title }) {
  if (points.length < 2) return null;
  const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const x = (value) => 4 + (592 * (value - left)) / (right - left || 1);
  const y = (value) => 12 + 120 * (1 - (value - low) / (high - low || 1));
  const path = points.map(([a, b], at) => `${at ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  const last = ys[ys.length - 1];
  return html`<figure class="chart"><figcaption>${title} <b>${last.toPrecision(4)}</b></figcaption>
    <svg viewBox="0 0 600 144" preserveAspectRatio="none" role="img" aria-label=${`${title} ${last.toPrecision(4)}`}>
      <path d=${path} class="line" vector-effect="non-scaling-stroke"/></svg>
    <div class="range"><span>${left}</span><span>${high.toPrecision(3)} – ${low.toPrecision(3)}</span><span>${right}</span></div></figure>`;
}

/** Work that runs at most once at a time: what came of it, what went wrong, and how to start it. */
export function useWork(work) {
  const [state, set] = useState({ result: null, error: null, busy: false });
  async function run(...given) {
    set((before) => ({ ...before, error: null, busy: true }));
    try {
      const result = await work(...given);
      set({ result, error: null, busy: false });
    } catch (error) {
      set({ result: null, error, busy: false });
    }
  }
  return { ...state, run };
}

/** Call `tick` now and every so often while the page is shown. */
export function useEvery(seconds, tick) {
  useEffect(() => {
    tick();
    const timer = setInterval(() => document.hidden || tick(), seconds * 1000);
    return () => clearInterval(timer);
  }, []);
}
