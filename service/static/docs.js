// The API, drawn from /openapi.json: what each call takes and answers, and a button to try it.

const make = (tag, text = "", ...children) => {
  const node = document.createElement(tag);
  node.textContent = text;
  node.append(...children);
  return node;
};

const document_ = await (await fetch("/openapi.json")).json();
const resolve = (schema) => schema?.$ref ? document_.components.schemas[schema.$ref.split("/").pop()] : schema;

// A type in words: what a reader needs before sending something.
function words(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf || schema.oneOf) return (schema.anyOf ?? schema.oneOf).map(words).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  const limits = [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["minLength", "length ≥"],
    ["maxLength", "length ≤"], ["minItems", "items ≥"], ["maxItems", "items ≤"]]
    .filter(([name]) => name in schema).map(([name, sign]) => `${sign} ${schema[name]}`).join(", ");
  const kind = schema.type === "array" ? `list of ${words(schema.items)}` : schema.type ?? "anything";
  return limits ? `${kind} (${limits})` : kind;
}

function fields(schema, seen = new Set()) {
  const table = make("table");
  const nested = [];
  for (const [name, field] of Object.entries(resolve(schema)?.properties ?? {})) {
    const needed = resolve(schema).required?.includes(name) ? " *" : "";
    const fallback = "default" in field && field.default !== null ? ` Default ${JSON.stringify(field.default)}.` : "";
    table.append(make("tr", "", make("td", "", make("code", name + needed)), make("td", words(field)),
      make("td", (field.description ?? "") + fallback)));
    for (const [, inner] of JSON.stringify(field).matchAll(/#\/components\/schemas\/(\w+)/g)) nested.push(inner);
  }
  const all = make("div", "", table);
  for (const inner of new Set(nested)) {
    if (seen.has(inner)) continue;
    seen.add(inner);
    all.append(make("h4", inner), fields({ $ref: `#/components/schemas/${inner}` }, seen));
  }
  return all;
}

function attempt(method, path, call) {
  const form = make("form");
  const inputs = (call.parameters ?? []).map((parameter) => {
    const input = make("input");
    input.value = parameter.schema.default ?? "";
    input.required = parameter.required ?? false;
    form.append(make("label", `${parameter.name} `, input));
    return [parameter, input];
  });
  const body = call.requestBody && make("textarea");
  if (body) {
    body.setAttribute("aria-label", "body");
    body.value = JSON.stringify(resolve(call.requestBody.content["application/json"].schema).example ?? {}, null, 2);
    form.append(body);
  }
  const answer = make("pre");
  answer.setAttribute("aria-live", "polite");
  form.append(make("button", "Send"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    let target = path;
    const query = new URLSearchParams();
    for (const [parameter, input] of inputs) {
      if (parameter.in === "path") target = target.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      else if (input.value) query.set(parameter.name, input.value);
    }
    const headers = body ? { "content-type": "application/json" } : {};
    const key = document.getElementById("key").value;
    if (key) headers["x-api-key"] = key;
    try {
      const response = await fetch(query.size ? `${target}?${query}` : target,
        { method: method.toUpperCase(), headers, body: body?.value });
      let text = await response.text();
      try { text = JSON.stringify(JSON.parse(text), null, 2); } catch { /* it is not JSON: shown as it is */ }
      answer.textContent = `${response.status} ${response.statusText}\n${text}`;
    } catch (error) {
      answer.textContent = `no answer: ${error.message}`;
    }
  });
  return make("div", "", form, answer);
}

function described(method, path, call) {
  const box = make("details", "", make("summary", "", make("b", method.toUpperCase()), make("code", path),
    make("span", ` ${call.summary ?? ""}`)));
  box.addEventListener("toggle", () => {
    if (box.dataset.drawn) return;
    box.dataset.drawn = "yes";
    box.append(make("p", call.description ?? ""));
    if (call.parameters?.length) {
      const table = make("table");
      for (const { name, required, schema, description } of call.parameters) {
        table.append(make("tr", "", make("td", "", make("code", name + (required ? " *" : ""))),
          make("td", words(schema)), make("td", description ?? "")));
      }
      box.append(make("h3", "Parameters"), table);
    }
    if (call.requestBody) {
      box.append(make("h3", "Body"), fields(call.requestBody.content["application/json"].schema));
    }
    box.append(make("h3", "Answers"));
    for (const [status, answer] of Object.entries(call.responses)) {
      box.append(make("p", "", make("b", status), make("span", ` ${answer.description}`)));
      const schema = answer.content?.["application/json"]?.schema;
      if (schema && status < 300) box.append(fields(schema));
    }
    box.append(make("h3", "Try it"), attempt(method, path, call));
  });
  return box;
}

document.getElementById("about").textContent = `${document_.info.version}. ${document_.info.description}`;
const calls = document.getElementById("calls");
for (const [path, methods] of Object.entries(document_.paths)) {
  for (const [method, call] of Object.entries(methods)) calls.append(described(method, path, call));
}
