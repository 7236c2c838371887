// The page at `/docs`: the OpenAPI document, for people.

const $ = (id) => document.getElementById(id);
/** Deepest object within an object that is shown. */
const MAX_DEPTH = 4;

/** An element with attributes and content; texts stay texts. */
function element(name, attributes = {}, ...content) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...content);
  return made;
}

const kinds = (schema) => [schema.type ?? []].flat().filter((kind) => kind !== 'null');
const isEmpty = (schema) => schema.type === 'null';
/** The schemas that a value may have, without null. */
const choices = (schema) => (schema.anyOf ?? [schema]).filter((one) => !isEmpty(one));

/** A number as people read it; those of 32 and 64 bits at their ends say nothing. */
function bound(x) {
  return x === undefined || Math.abs(x) > 1e15 ? '' : String(x);
}

/** What a value is, in a few words. */
function kind(schema) {
  const all = choices(schema);
  if (all.length > 1) return [...new Set(all.map(kind))].join(' or ');
  const one = all[0];
  if (one === undefined) return 'null';
  if (one.enum) return one.enum.filter((value) => value !== null).map((value) => JSON.stringify(value)).join(', ');
  if (one.$ref) return one.$ref.split('/').pop();
  const from = bound(one.minimum);
  const to = bound(one.maximum);
  const range = from && to ? ` from ${from} to ${to}` : from ? ` from ${from}` : to ? ` up to ${to}` : '';
  const file = one.format === 'binary' ? 'file' : one.contentEncoding === 'base64' ? 'base64' : null;
  const list = one.items ? `list of ${kind(one.items)}` : null;
  return `${file ?? list ?? (kinds(one).join(' or ') || 'anything')}${range}`;
}

/** The fields of a value that is, or holds, objects. */
function fieldsOf(schema) {
  for (const one of choices(schema)) {
    if (one.properties) return one;
    const within = one.items ?? (typeof one.additionalProperties === 'object' ? one.additionalProperties : null);
    const found = within && fieldsOf(within);
    if (found) return found;
  }
  return null;
}

/** A row per field, with those of objects within it. */
function rows(schema, depth = 0) {
  const fields = fieldsOf(schema);
  if (!fields || depth > MAX_DEPTH) return [];
  return Object.entries(fields.properties).flatMap(([name, value]) => {
    const cell = element('td', depth ? { class: 'inner' } : {}, element('code', {}, `${'· '.repeat(depth)}${name}`));
    if (fields.required?.includes(name)) cell.append(element('span', { class: 'needed' }, 'required'));
    const row = element('tr', {}, cell, element('td', {}, kind(value)), element('td', {}, value.description ?? ''));
    return [row, ...rows(value, depth + 1)];
  });
}

function table(schema) {
  const all = rows(schema);
  return all.length ? [element('table', {}, element('tbody', {}, ...all))] : [element('p', {}, kind(schema))];
}

function parameters(list) {
  if (!list?.length) return [];
  const row = (one) =>
    element(
      'tr',
      {},
      element('td', {}, element('code', {}, one.name)),
      element('td', {}, `${one.in}, ${kind(one.schema)}`),
      element('td', {}, one.description ?? ''),
    );
  return [element('h3', {}, 'Parameters'), element('table', {}, element('tbody', {}, ...list.map(row)))];
}

function bodies(content, title) {
  return Object.entries(content ?? {}).flatMap(([type, { schema }]) => [
    element('h3', {}, `${title}: `, element('code', {}, type)),
    ...table(schema),
  ]);
}

function answers(responses) {
  const of = (isFault) => Object.entries(responses).filter(([status]) => status >= '400' === isFault);
  const told = of(false).flatMap(([status, one]) => {
    const content = bodies(one.content, `Answers ${status}`);
    return content.length ? content : [element('h3', {}, `Answers ${status}: ${one.description}`)];
  });
  const row = ([status, one]) =>
    element('tr', {}, element('td', {}, element('code', {}, status)), element('td', {}, one.description));
  const faults = element('table', {}, element('tbody', {}, ...of(true).map(row)));
  return [...told, element('h3', {}, 'Refuses'), faults];
}

function operation(method, path, about) {
  const head = element(
    'summary',
    {},
    element('span', { class: `method ${method}` }, method.toUpperCase()),
    element('code', {}, path),
    element('span', { class: 'about' }, about.summary),
  );
  const details = element('details', { id: about.operationId }, head);
  // What is inside is made when somebody looks.
  details.addEventListener('toggle', () => {
    if (details.childElementCount > 1) return;
    const body = bodies(about.requestBody?.content, 'Takes');
    details.append(element('div', {}, ...parameters(about.parameters), ...body, ...answers(about.responses)));
  });
  return details;
}

function show({ info, paths }) {
  const groups = new Map();
  for (const [path, methods] of Object.entries(paths))
    for (const [method, about] of Object.entries(methods)) {
      const tag = about.tags[0];
      if (!groups.has(tag)) groups.set(tag, element('section', {}, element('h2', {}, tag)));
      groups.get(tag).append(operation(method, path, about));
    }
  $('groups').replaceChildren(...groups.values());
  $('status').textContent = `version ${info.version}`;
  const asked = location.hash && document.getElementById(location.hash.slice(1));
  if (asked) asked.open = true;
}

function find() {
  const words = $('search').value.toLowerCase().split(/\s+/);
  for (const section of document.querySelectorAll('section')) {
    for (const one of section.querySelectorAll('details')) {
      const text = one.querySelector('summary').textContent.toLowerCase();
      one.hidden = !words.every((word) => text.includes(word));
    }
    section.hidden = !section.querySelector('details:not([hidden])');
  }
}

$('search').addEventListener('input', find);
const key = sessionStorage.getItem('kiln-key');
const response = await fetch('/openapi.json', { headers: key ? { Authorization: `Bearer ${key}` } : {} });
if (response.ok) show(await response.json());
else $('status').textContent = `The server answered ${response.status}`;
