// The API's description, OpenAPI 3.1, made from the verb table and its schemas.
import { z } from 'zod';
import { ERROR_CODES, type ErrorCode } from '../../domain/errors.ts';
import { execRequest, type Verb, verbs } from '../../services/verbs.ts';
import * as views from '../../services/views.ts';
import { takesBody } from './input.ts';

const ALWAYS: readonly ErrorCode[] = [
  'invalid_argument',
  'unauthenticated',
  'permission_denied',
  'unavailable',
  'deadline_exceeded',
  'cancelled',
  'internal',
];

type Json = Record<string, unknown>;

export function openApi(version: string): Json {
  const components: Record<string, Json> = {};
  const take = (schema: z.ZodType, io: 'input' | 'output'): Json =>
    lift(z.toJSONSchema(schema, { io, unrepresentable: 'any', target: 'draft-2020-12' }) as Json, components);
  for (const schema of Object.values(views)) take(schema, 'output');
  take(execRequest.meta({ id: 'ExecRequest' }), 'input');
  const paths: Record<string, Json> = {};
  for (const [name, verb] of Object.entries(verbs) as [string, Verb][]) {
    const path = paths[verb.path] ?? {};
    path[verb.method.toLowerCase()] = operation(name, verb, take);
    paths[verb.path] = path;
  }
  return {
    openapi: '3.1.0',
    info: { title: 'Hutch', version, description: 'Sandboxes on your own machines. Sockets and streams: see docs/api.md.' },
    servers: [{ url: 'http://127.0.0.1:4880' }],
    security: [{ key: [] }],
    paths,
    components: { schemas: components, securitySchemes: { key: { type: 'http', scheme: 'bearer' } } },
  };
}

function operation(name: string, verb: Verb, take: (schema: z.ZodType, io: 'input' | 'output') => Json): Json {
  const input = take(verb.input, 'input');
  const properties = (input['properties'] ?? {}) as Record<string, Json>;
  const required = new Set((input['required'] ?? []) as string[]);
  const inPath = [...verb.path.matchAll(/\{(\w+)\}/g)].map(([, param]) => param ?? '');
  const rest = Object.fromEntries(Object.entries(properties).filter(([key]) => !inPath.includes(key)));
  const byQuery = takesBody(verb) ? {} : rest;
  const parameters = [
    ...inPath.map((param) => ({ name: param, in: 'path', required: true, schema: properties[param] ?? { type: 'string' } })),
    ...Object.entries(byQuery).map(([param, schema]) => ({ name: param, in: 'query', required: required.has(param), schema })),
  ];
  const body = { ...input, properties: rest, required: [...required].filter((key) => !inPath.includes(key)) };
  return {
    operationId: name,
    summary: verb.summary,
    'x-hutch-kind': verb.kind,
    'x-hutch-reads': verb.reads,
    'x-hutch-idempotent': verb.idempotent,
    parameters,
    ...(takesBody(verb) && Object.keys(rest).length > 0 ? { requestBody: { content: { 'application/json': { schema: body } } } } : {}),
    ...(verb.kind === 'upload'
      ? { requestBody: { content: { 'application/octet-stream': { schema: { type: 'string', format: 'binary' } } } } }
      : {}),
    responses: { ...success(verb, take(verb.output, 'output')), ...failures(verb) },
  };
}

function success(verb: Verb, output: Json): Json {
  const headers = { 'Hutch-Op-Id': { schema: { type: 'string' }, description: 'the operation that this request was' } };
  switch (verb.kind) {
    case 'socket':
      return { 101: { description: 'WebSocket; the last message has the type exit, end or error (docs/api.md)', headers } };
    case 'download':
      return {
        200: {
          description: verb.summary,
          headers,
          content: { 'application/octet-stream': { schema: { type: 'string', format: 'binary' } } },
        },
      };
    case 'lines':
      return {
        200: { description: `${verb.summary}: one JSON document a line`, headers, content: { 'application/x-ndjson': { schema: output } } },
      };
    case 'unary':
    case 'upload':
      return { 200: { description: verb.summary, headers, content: { 'application/json': { schema: output } } } };
  }
}

function failures(verb: Verb): Json {
  const byStatus = new Map<number, ErrorCode[]>();
  for (const code of new Set([...ALWAYS, ...verb.errors])) {
    const { httpStatus } = ERROR_CODES[code];
    byStatus.set(httpStatus, [...(byStatus.get(httpStatus) ?? []), code]);
  }
  return Object.fromEntries(
    [...byStatus].map(([status, codes]) => [
      String(status),
      { description: codes.join(', '), content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' } } } },
    ]),
  );
}

/** Moves a schema's own definitions to the components; those with an id become references. */
function lift(schema: Json, components: Record<string, Json>): Json {
  const { $defs, $schema: _, id, ...rest } = schema as { $defs?: Record<string, Json>; $schema?: unknown; id?: string } & Json;
  for (const [name, definition] of Object.entries($defs ?? {})) components[name] ??= relink(strip(definition));
  const linked = relink(rest);
  if (typeof id !== 'string') return linked;
  components[id] ??= linked;
  return { $ref: `#/components/schemas/${id}` };
}

function strip(definition: Json): Json {
  const { id: _, ...rest } = definition;
  return rest;
}

function relink(value: Json): Json {
  return JSON.parse(JSON.stringify(value).replaceAll('"#/$defs/', '"#/components/schemas/')) as Json;
}
