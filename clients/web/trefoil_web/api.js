// Requests to the server that served this page: JSON, and server-sent events as an async iterator.

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem("key") ?? "",
  set: (value) => sessionStorage.setItem("key", value),
};

function headers(extra) {
  return { ...(key.get() ? { authorization: `Bearer ${key.get()}` } : {}), ...extra };
}

async function checked(response) {
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new Refused(told?.error?.message ?? response.statusText, response.status);
}

export async function get(path) {
  return (await checked(await fetch(path, { headers: headers() }))).json();
}

export async function getText(path) {
  return (await checked(await fetch(path, { headers: headers() }))).text();
}

export async function post(path, body, signal) {
  const init = { method: "POST", headers: headers({ "content-type": "application/json" }), body: JSON.stringify(body), signal };
  return (await checked(await fetch(path, init))).json();
}

export async function upload(file) {
  const form = new FormData();
  form.append("purpose", "fine-tune");
  form.append("file", file);
  return (await checked(await fetch("/v1/files", { method: "POST", headers: headers(), body: form }))).json();
}

/** The payloads of a stream until `[DONE]` or its end; an error event is thrown. */
export async function* events(path, { body, signal } = {}) {
  const init = body
    ? { method: "POST", headers: headers({ "content-type": "application/json" }), body: JSON.stringify(body), signal }
    : { headers: headers(), signal };
  const response = await checked(await fetch(path, init));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const payload = JSON.parse(data);
      if (payload.error?.message && !payload.object) throw new Refused(payload.error.message, 503);
      yield payload;
    }
  }
}
