// Calls to the service. Whatever is not an answer becomes a Problem, whose message is a sentence to show.

const LONGEST_WAIT_S = 10;
let key = ""; // kept in this page only, never in the browser's storage

export function useKey(value) {
  key = value;
}

export class Problem extends Error {
  constructor(status, told = {}) {
    const said = [told.title, told.detail].filter(Boolean).join(": ") || `The service answered ${status} without a reason`;
    super(/[.!?]$/.test(said) ? said : `${said}.`);
    this.status = status;
    this.code = told.code ?? "";
  }
}

// The answer and how long it took to come. A 503 is tried once more, after the time that it asks for.
export async function call(method, path, { body, signal, onWait } = {}) {
  let { response, started } = await send(method, path, body, signal);
  if (response.status === 503) {
    const asked = Number(response.headers.get("retry-after") ?? 1);
    const wait_s = Math.min(Number.isFinite(asked) ? asked : 1, LONGEST_WAIT_S);
    onWait?.(wait_s);
    await pause(wait_s, signal);
    ({ response, started } = await send(method, path, body, signal));
  }
  const text = await response.text();
  const roundTrip_ms = performance.now() - started;
  let told;
  try {
    told = text ? JSON.parse(text) : undefined;
  } catch {
    throw new Problem(response.status, { title: "The answer is not JSON", detail: "something between may have answered" });
  }
  if (!response.ok) throw new Problem(response.status, told);
  return { answer: told, roundTrip_ms };
}

async function send(method, path, body, signal) {
  const headers = {};
  if (body) headers["content-type"] = "application/json";
  if (key) headers.authorization = `Bearer ${key}`;
  const started = performance.now();
  try {
    const response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
    return { response, started };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { title: "The service did not answer", detail: "it may have stopped, or the network is gone" });
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
