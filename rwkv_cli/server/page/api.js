// Requests to the server that this page comes from.

let key = sessionStorage.getItem("key") ?? "";

export function useKey(text) {
  key = text;
  sessionStorage.setItem("key", text);
}

export class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function call(path, options = {}) {
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}) };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "The server does not answer.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Failure(response.status, body.error?.message ?? `The server answered ${response.status}.`);
}

export const getJson = async (path) => (await call(path)).json();

export const postJson = async (path, fields) =>
  (await call(path, { method: "POST", body: JSON.stringify(fields) })).json();

// The chunks of an answer, as they come.
export async function* chat(fields, signal) {
  const body = JSON.stringify({ ...fields, stream: true, stream_options: { include_usage: true } });
  const response = await call("v1/chat/completions", { method: "POST", body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (held + value).split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Failure(500, chunk.error.message);
      yield chunk;
    }
  }
}
