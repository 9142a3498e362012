// Chat: answers as they come, and for each word what else the model considered.
import { html, useEffect, useRef, useState } from "/static/vendor/htm-preact.mjs";
import { events } from "/static/api.js";
import { Bars, ModelChoice, Problem, useModel } from "/static/parts.js";

const OPENINGS = ["What is the capital of France?", "3加4等于几？", "Tell me a story.", "What is the opposite of hot?"];

export function Chat({ t, models, wanted }) {
  const model = useModel(models, "text-generation", "chat");
  const [turns, setTurns] = useState([]);
  const [draft, setDraft] = useState("");
  const [options, setOptions] = useState({ temperature: 0.7, max_tokens: 256 });
  const [seen, look] = useState(null);
  const [error, setError] = useState(null);
  const working = useRef(null);
  const [busy, setBusy] = useState(false);
  const end = useRef(null);

  useEffect(() => { if (wanted) model.choose(wanted); }, [wanted]);
  useEffect(() => { end.current?.scrollIntoView({ block: "nearest" }); }, [turns]);

  async function send(words = draft) {
    if (!words.trim() || busy || !model.name) return;
    const said = [...turns, { role: "user", pieces: [{ text: words }] }];
    const pieces = [];
    setDraft(""); setError(null); setBusy(true); look(null);
    setTurns([...said, { role: "assistant", pieces, model: model.name }]);
    working.current = new AbortController();
    const body = { model: model.name, messages: said.map(message), stream: true, logprobs: true, top_logprobs: 5, ...options };
    try {
      for await (const chunk of events("/v1/chat/completions", { body, signal: working.current.signal })) {
        const choice = chunk.choices[0];
        if (!choice?.delta?.content && !choice?.logprobs?.content?.length) continue;
        pieces.push({ text: choice.delta.content, tokens: choice.logprobs?.content ?? [] });
        setTurns([...said, { role: "assistant", pieces: [...pieces], model: model.name }]);
      }
    } catch (problem) {
      if (problem.name !== "AbortError") setError(problem);
      if (!pieces.length) setTurns(said);
    }
    setBusy(false);
  }

  function onKey(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
    if (event.key === "Escape") working.current?.abort();
  }

  function move(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || !seen) return;
    event.preventDefault();
    const pieces = turns[seen.turn].pieces;
    look({ turn: seen.turn, at: (seen.at + by + pieces.length) % pieces.length });
  }

  const piece = seen && turns[seen.turn]?.pieces[seen.at];
  return html`<section class="chat">
    <div class="row"><${ModelChoice} t=${t} model=${model}/>
      <${NumberField} label=${t("Temperature")} name="temperature" step="0.1" min="0" max="2" options=${options} set=${setOptions}/>
      <${NumberField} label=${t("Most tokens")} name="max_tokens" step="1" min="1" options=${options} set=${setOptions}/>
      <button class="quiet" onClick=${() => { working.current?.abort(); setTurns([]); look(null); setError(null); }}>${t("New conversation")}</button></div>
    <div class="turns" tabindex="0" onKeyDown=${move} aria-live="polite">
      ${turns.map((turn, number) => html`<article class=${`turn ${turn.role}`}>
        <h3>${turn.role === "user" ? t("You") : `${t("Assistant")} · ${turn.model}`}</h3>
        <p>${turn.pieces.map((one, at) => turn.role === "user" ? one.text : html`<${Piece} piece=${one} chosen=${seen?.turn === number && seen.at === at}
          onClick=${() => look({ turn: number, at })}/>`)}${busy && number === turns.length - 1 ? html`<span class="caret"></span>` : null}</p></article>`)}
      ${turns.length ? null : html`<div class="openings">${OPENINGS.map((words) => html`<button class="quiet" disabled=${!model.name} onClick=${() => send(words)}>${words}</button>`)}</div>`}
      <div ref=${end}></div></div>
    ${turns.length > 1 ? html`<aside class="alternatives">${piece?.tokens?.length
      ? piece.tokens.map((token) => html`<h4><code>${shown(token.token)}</code> ${t("Probability")} ${(Math.exp(token.logprob) * 100).toFixed(1)}%</h4>
          <${Bars} rows=${token.top_logprobs.map((other) => ({ label: shown(other.token), score: Math.exp(other.logprob) }))}/>`)
      : html`<p class="note">${t("Click a word, or use the arrow keys, to see what else the model considered")}</p>`}</aside>` : null}
    <${Problem} error=${error}/>
    <div class="compose"><textarea rows="2" value=${draft} placeholder=${t("Say something")} aria-label=${t("Say something")} onInput=${(event) => setDraft(event.target.value)} onKeyDown=${onKey}></textarea>
      ${busy ? html`<button class="stop" onClick=${() => working.current.abort()}>${t("Stop")}</button>`
             : html`<button class="go" disabled=${!draft.trim() || !model.name} onClick=${() => send()}>${t("Send")}</button>`}</div>
    <p class="note">${t("Enter sends, Shift+Enter makes a new line, Escape stops")}</p></section>`;
}

const message = (turn) => ({ role: turn.role, content: turn.pieces.map((piece) => piece.text).join("") });
const shown = (text) => (text.trim() ? text : JSON.stringify(text));

function NumberField({ label, name, options, set, ...rest }) {
  return html`<label class="field small"><span>${label}</span>
    <input type="number" value=${options[name]} ...${rest} onInput=${(event) => event.target.value !== "" && set({ ...options, [name]: Number(event.target.value) })}/></label>`;
}

/** A piece of an answer; the less sure the model was, the stronger its colour. */
function Piece({ piece, chosen, onClick }) {
  const sure = Math.exp(Math.min(...piece.tokens.map((token) => token.logprob), 0));
  return html`<span class=${`piece p${Math.min(4, Math.floor((1 - sure) * 5))} ${chosen ? "chosen" : ""}`} onClick=${onClick}>${piece.text}</span>`;
}
