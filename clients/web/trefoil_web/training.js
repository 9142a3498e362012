// Training: data in, a job, its curves while it runs, and the result to be asked.
import { html, useEffect, useRef, useState } from "/static/vendor/htm-preact.mjs";
import { events, get, post, upload } from "/static/api.js";
import { Chart, ModelChoice, Problem, useEvery, useModel, useWork } from "/static/parts.js";

const METHODS = ["supervised", "dpo", "reward", "ppo", "grpo", "pretrain", "classification", "token_classification", "question_answering"];
const SAMPLED = ["ppo", "grpo"];
const OF_HEADS = ["reward", "classification", "token_classification", "question_answering"]; // these train all weights
const ENDED = ["succeeded", "failed", "cancelled"];
const REWARDS = ["reward", "kl", "rewards/margins", "rewards/accuracies"];

export function Training({ t, models, refresh, ask }) {
  const [jobs, setJobs] = useState([]);
  const [error, setError] = useState(null);
  const [chosen, choose] = useState(null);
  const list = () => get("/v1/fine_tuning/jobs?limit=20").then(
    (answer) => { setJobs(answer.data); setError(null); },
    (problem) => setError(problem.status === 404 ? new Error(t("This server does not train.")) : problem));
  useEvery(3, list);
  const job = jobs.find((one) => one.id === chosen) ?? null;
  return html`<section><${Problem} error=${error}/>
    <${NewJob} t=${t} models=${models} started=${(made) => { choose(made.id); list(); }}/>
    <h2>${t("Jobs")}</h2>
    ${jobs.length ? null : html`<p class="note">${t("No job yet")}</p>`}
    <ul class="jobs">${jobs.map((one) => html`<li><button class=${one.id === chosen ? "chosen" : ""} onClick=${() => choose(one.id)}>
      <span class=${`state ${one.status}`}>${t(one.status)}</span> <code>${one.id}</code> <span>${one.method?.type} · ${one.model}</span></button></li>`)}</ul>
    ${job && html`<${Progress} key=${job.id} t=${t} job=${job} changed=${list} refresh=${refresh} ask=${ask}/>`}</section>`;
}

function NewJob({ t, models, started }) {
  const model = useModel(models, ...new Set(models.flatMap((one) => one.tasks)));
  const judge = useModel(models, "reward");
  const [fields, set] = useState({ method: "supervised", epochs: 3, rate: 0.0005, rank: 8, suffix: "mine" });
  const file = useRef(null);
  const change = (name) => (event) => set({ ...fields, [name]: event.target.value });
  const work = useWork(async () => {
    const data = file.current.files[0];
    if (!data) throw new Error(t("Choose a file first"));
    const rank = OF_HEADS.includes(fields.method) ? 0 : Number(fields.rank);
    const hyperparameters = { n_epochs: Number(fields.epochs), learning_rate: Number(fields.rate), lora: rank ? { r: rank, alpha: 2 * rank } : null };
    if (SAMPLED.includes(fields.method)) hyperparameters.reward_model = judge.name;
    const method = { type: fields.method, [fields.method]: { hyperparameters } };
    const made = await post("/v1/fine_tuning/jobs", { model: model.name, training_file: (await upload(data)).id, method, suffix: fields.suffix || undefined });
    started(made);
  });
  return html`<form class="card" onSubmit=${(event) => { event.preventDefault(); work.run(); }}>
    <div class="row"><${ModelChoice} t=${t} model=${model}/>
      <label class="field wide"><span>${t("Data (JSON lines)")}</span><input type="file" accept=".jsonl,.json,.txt" ref=${file}/></label></div>
    <div class="row"><label class="field"><span>${t("Method")}</span><select value=${fields.method} onChange=${change("method")}>${METHODS.map((name) => html`<option value=${name}>${name}</option>`)}</select></label>
      ${SAMPLED.includes(fields.method) && html`<${ModelChoice} t=${t} model=${judge} title=${t("Reward model")}/>`}
      <label class="field small"><span>${t("Epochs")}</span><input type="number" min="1" max="100" value=${fields.epochs} onInput=${change("epochs")}/></label>
      <label class="field small"><span>${t("Learning rate")}</span><input type="number" step="any" min="0" value=${fields.rate} onInput=${change("rate")}/></label>
      ${!OF_HEADS.includes(fields.method) && html`<label class="field"><span>${t("LoRA rank (0 trains all weights)")}</span><input type="number" min="0" max="256" value=${fields.rank} onInput=${change("rank")}/></label>`}
      <label class="field small"><span>${t("Name of the result")}</span><input value=${fields.suffix} maxlength="64" onInput=${change("suffix")}/></label>
      <button class="go" disabled=${work.busy || !model.name}>${t("Start training")}</button></div>
    <${Problem} error=${work.error}/></form>`;
}

function Progress({ t, job, changed, refresh, ask }) {
  const [told, setTold] = useState([]);
  const [error, setError] = useState(null);
  useEffect(() => {
    const leaving = new AbortController();
    (async () => {
      const all = [];
      try {
        for await (const event of events(`/v1/fine_tuning/jobs/${job.id}/events?stream=true`, { signal: leaving.signal })) {
          all.push(event);
          setTold([...all]);
        }
        changed();
        refresh();
      } catch (problem) {
        if (problem.name !== "AbortError") setError(problem);
      }
    })();
    return () => leaving.abort();
  }, []);
  const metrics = told.filter((event) => event.type === "metrics").map((event) => event.data);
  const curve = (name) => metrics.filter((one) => typeof one[name] === "number").map((one) => [one.step, one[name]]);
  const last = metrics[metrics.length - 1];
  return html`<div class="card"><div class="row"><span class=${`state ${job.status}`}>${t(job.status)}</span>
      ${last ? html`<progress max=${last.total_steps} value=${last.step}></progress><span>${t("Step")} ${last.step} ${t("of")} ${last.total_steps}</span>` : null}
      ${ENDED.includes(job.status) ? null : html`<button class="stop" onClick=${() => post(`/v1/fine_tuning/jobs/${job.id}/cancel`, {}).then(changed, setError)}>${t("Cancel")}</button>`}
      ${job.fine_tuned_model ? html`<button class="go" onClick=${() => ask(job.fine_tuned_model)}>${t("Ask the result")}</button>` : null}</div>
    <${Problem} error=${job.error?.message ? job.error : error}/>
    <${Chart} title=${t("Loss")} points=${curve("train_loss")}/>
    ${REWARDS.map((name) => html`<${Chart} title=${name === "reward" ? t("Reward") : name} points=${curve(name)}/>`)}
    <details><summary>${t("Messages")}</summary><ul>${told.filter((event) => event.type !== "metrics").map((event) => html`<li>${event.message}</li>`)}</ul></details></div>`;
}
