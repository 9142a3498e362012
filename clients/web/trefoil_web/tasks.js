// Fill-mask and span filling, entities, classification: one text in, what the model sees in it out.
import { html, useState } from "/static/vendor/htm-preact.mjs";
import { post } from "/static/api.js";
import { Bars, ModelChoice, Problem, useModel, useWork } from "/static/parts.js";

function Form({ t, text, setText, work, model, children }) {
  const onKey = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); work.run(); } };
  return html`<div class="row"><${ModelChoice} t=${t} model=${model}/>${children}</div>
    <div class="compose"><textarea rows="3" value=${text} aria-label=${t("Text")} onInput=${(event) => setText(event.target.value)} onKeyDown=${onKey}></textarea>
      <button class="go" disabled=${work.busy || !text.trim() || !model.name} onClick=${() => work.run()}>${t("Run")}</button></div>
    <${Problem} error=${work.error}/>`;
}

export function Fill({ t, models }) {
  const model = useModel(models, "fill-mask", "span-filling");
  const [own, setText] = useState(null);
  const tasks = model.able.find((one) => one.id === model.name)?.tasks ?? [];
  const fills = tasks.includes("fill-mask");
  const text = own ?? `The capital of France is ${fills ? "[MASK]" : "___"}.`;
  const work = useWork(() => fills
    ? post("/v1/tasks/fill-mask", { model: model.name, inputs: text, parameters: { top_k: 8 } })
    : post("/v1/tasks/span-filling", { model: model.name, inputs: text, parameters: { num_candidates: 4 } }));
  return html`<section><p class="note">${t("Use [MASK] for one word, or ___ for a span")}</p>
    <${Form} t=${t} text=${text} setText=${setText} work=${work} model=${model}/>
    ${work.result && (work.result.spans ? html`<${Spans} t=${t} result=${work.result}/>` : html`<${Masks} t=${t} result=${work.result}/>`)}</section>`;
}

function Masks({ t, result }) {
  const masks = Array.isArray(result[0]) ? result : [result];
  return masks.map((candidates, number) => html`<div class="card"><h3>${t("Mask")} ${number + 1}</h3>
    <${Bars} rows=${candidates.map((one) => ({ label: one.token_str, score: one.score }))}/>
    <p class="result">${candidates[0].sequence}</p></div>`);
}

function Spans({ t, result }) {
  return html`<div class="card"><p class="result">${result.text}</p>
    <ul>${result.spans.map((span) => html`<li>${t("Span")} ${span.index + 1}: <mark>${span.text}</mark></li>`)}</ul>
    ${result.candidates?.length ? html`<h3>${t("Candidates")}</h3><ol>${result.candidates.map((one) => html`<li>${one.text ?? JSON.stringify(one)}</li>`)}</ol>` : null}</div>`;
}

export function Entities({ t, models }) {
  const model = useModel(models, "token-classification");
  const [text, setText] = useState("Anna lives in Paris and works in Tokyo.");
  const work = useWork(async () => ({
    text, found: await post("/v1/tasks/token-classification", { model: model.name, inputs: text, parameters: { aggregation_strategy: "simple" } }),
  }));
  return html`<section><${Form} t=${t} text=${text} setText=${setText} work=${work} model=${model}/>
    ${work.result && html`<div class="card"><p class="result marked">${coloured(work.result)}</p>
      ${work.result.found.length ? null : html`<p class="note">${t("No entity was found")}</p>`}</div>`}</section>`;
}

/** The text, with each entity in the colour of its name. */
function coloured({ text, found }) {
  const characters = Array.from(text);
  const names = [...new Set(found.map((one) => one.entity_group ?? one.entity))];
  const parts = [];
  let at = 0;
  for (const one of [...found].sort((a, b) => a.start - b.start)) {
    const name = one.entity_group ?? one.entity;
    parts.push(characters.slice(at, one.start).join(""));
    parts.push(html`<mark class=${`e${names.indexOf(name) % 6}`} title=${one.score.toFixed(3)}>${characters.slice(one.start, one.end).join("")}<small>${name}</small></mark>`);
    at = one.end;
  }
  return [...parts, characters.slice(at).join("")];
}

export function Classify({ t, models }) {
  const model = useModel(models, "text-classification", "zero-shot-classification");
  const [text, setText] = useState("What a wonderful day!");
  const [labels, setLabels] = useState("");
  const own = labels.split(/[,，]/).map((label) => label.trim()).filter(Boolean);
  const work = useWork(async () => own.length
    ? zeroShot(await post("/v1/tasks/zero-shot-classification", { model: model.name, inputs: text, parameters: { candidate_labels: own } }))
    : flat(await post("/v1/tasks/text-classification", { model: model.name, inputs: text })));
  return html`<section><${Form} t=${t} text=${text} setText=${setText} work=${work} model=${model}>
      <label class="field wide"><span>${t("Your own labels, separated by commas")}</span><input value=${labels} onInput=${(event) => setLabels(event.target.value)}/></label><//>
    ${work.result && html`<div class="card"><${Bars} rows=${work.result}/></div>`}</section>`;
}

const flat = (answer) => (Array.isArray(answer[0]) ? answer[0] : answer);
const zeroShot = (answer) => (Array.isArray(answer) ? answer : answer.labels.map((label, at) => ({ label, score: answer.scores[at] })));
